"""The extended tokenizer: new words are one id each, and every other text keeps the ids that it had."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import WORDS, build_wordpiece
from tests.tokenizer_families import build_unigram
from tests.vocabgraft.conftest import NEW_TOKENS, Graft, load, rows_of
from vocabgraft.config.stages import PromptParams, ResizeBaseParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.resize import write_resized
from vocabgraft.storage.artifacts import new_folder, write_json
from vocabgraft.token_embeddings.build import make_rows
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.segmentation import segmentation_report
from vocabgraft.tokens.tokenizer import (
    ExtendedToken,
    added_token,
    added_tokens,
    extend_tokenizer,
    holds_new_token,
    load_raw_tokenizer,
    load_tokenizer,
    matches_inside,
    normalised,
    pieces_of,
    read_tokens,
    rewritten,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

Extended = tuple["PreTrainedTokenizerFast", list[ExtendedToken]]

# Whole new words, parts of them, and what may stand beside them, so that near misses are drawn often.
PARTS = st.sampled_from(
    [
        *WORDS[:8],
        "nephrolith",
        "NephroLITH",
        "nephro",
        "lith",
        "s",
        "thrombopenia",
        "Thrombopeni",
        "a",
        "_",
        "7",
        "-",
        ">",
        *("<|IsA|>", "<|isa|>", "<|", "|>", " ", ".", "'", "\n", "\u4e2d", "\u0301"),
    ]
)
TEXTS = st.lists(PARTS, max_size=8).map("".join) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
WHOLE_WORD = re.compile(r"(?<!\w)(nephrolith|thrombopenia)(?!\w)", re.IGNORECASE)


@given(text=TEXTS)
@example(text="nephroliths and xnephrolith")
@example(text="nephrolith_")
@settings(max_examples=300, deadline=None)
def test_a_text_without_a_new_word_keeps_its_ids(base_tokenizer: "Tokenizer", extended: Extended, text: str) -> None:
    tokenizer, _ = extended
    read = normalised(base_tokenizer, text)
    if not WHOLE_WORD.search(read) and "->" not in read and "<|IsA|>" not in text:
        assert tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) == pieces_of(base_tokenizer, text)


@given(left=TEXTS, right=TEXTS, word=st.sampled_from(["nephrolith", "Nephrolith", "THROMBOPENIA", "->", "<|IsA|>"]))
@settings(max_examples=150, deadline=None)
def test_a_new_word_is_found_between_any_texts(extended: Extended, left: str, right: str, word: str) -> None:
    tokenizer, tokens = extended
    # A dash or bracket beside a new token may take a sign of it away, and a combining mark joins the letter before it.
    text = f"{left} . {word} . {right}"
    expected = next(token.id for token in tokens if token.text.casefold() == word.casefold())
    assert expected in tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(holds_new_token(tokenizer, [text], [token.id for token in tokens])) == [True]


@pytest.mark.parametrize("text", ["nephroliths", "xnephrolith", "nephrolith2", "nephrolith_", "<|isa|>", "<|IsA |>"])
def test_part_of_another_word_is_no_match(extended: Extended, text: str) -> None:
    tokenizer, tokens = extended
    assert not holds_new_token(tokenizer, [text], [token.id for token in tokens]).any()


@pytest.mark.parametrize(
    "text", ["NEPHROLITH", "n\u00e9phrolith", "a nephrolith, the", "x->y", "thrombopenia", "dog<|IsA|>cat"]
)
def test_words_match_as_the_base_normalises_and_symbols_and_specials_anywhere(extended: Extended, text: str) -> None:
    tokenizer, tokens = extended
    assert holds_new_token(tokenizer, [text], [token.id for token in tokens]).all()


def test_new_ids_follow_on_those_of_the_base_in_order(base_tokenizer: "Tokenizer", extended: Extended) -> None:
    tokenizer, tokens = extended
    first = base_tokenizer.get_vocab_size()
    assert [token.id for token in tokens] == list(range(first, first + len(NEW_TOKENS)))
    assert [token.new_token for token in tokens] == list(NEW_TOKENS)
    assert len(tokenizer) == first + len(NEW_TOKENS)


def test_every_new_token_is_one_id_and_decodes_to_what_it_matches(extended: Extended) -> None:
    tokenizer, tokens = extended
    for token in tokens:
        assert tokenizer(token.text, add_special_tokens=False)["input_ids"] == [token.id]
    decoded = [tokenizer.decode([token.id], skip_special_tokens=True) for token in tokens]
    assert decoded == ["nephrolith", "thrombopenia", "->", "<|IsA|>"]


def test_pieces_are_the_bases_ids_of_text_and_description(base_tokenizer: "Tokenizer", extended: Extended) -> None:
    for token in extended[1]:
        assert token.pieces == tuple(base_tokenizer.encode(token.text, add_special_tokens=False).ids)
        assert token.description_pieces == tuple(base_tokenizer.encode(token.description, add_special_tokens=False).ids)
        assert token.id not in token.pieces


def test_a_saved_tokenizer_reads_as_the_one_in_memory(extended: Extended, tmp_path: Path) -> None:
    tokenizer, tokens = extended
    tokenizer.save_pretrained(tmp_path)
    texts = ["a nephroliths <|IsA|> x->y", "Thrombopenia <|isa|>", *(token.text for token in tokens)]
    assert load_tokenizer(tmp_path)(texts)["input_ids"] == tokenizer(texts)["input_ids"]


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        ([NewToken("kidney", "word", "")], "token 'kidney' is one token in the base already; take it out"),
        ([NewToken("Kidney", "symbol", "")], "token 'Kidney' is one token in the base already; take it out"),
        ([NewToken("[MASK]", "special", "x")], "token '[MASK]' is one token in the base already; take it out"),
        ([NewToken("##a", "symbol", "")], "token '##a' is one token in the base already; take it out"),
        ([NewToken("\u0301", "symbol", "an accent")], "is empty after the base's normalization"),
        ([NewToken("\u222e", "symbol", "")], "has no subword token to start from and the description ''"),
        ([NewToken("\u222e", "symbol", "\u222e \u4e2d")], "has no subword token to start from and the description"),
        ([NewToken("<|IsA|>", "special", "")], "has no subword token to start from and the description ''"),
        ([NewToken("<|Is\u200bA|>", "special", "is")], "normalization turns into '<|isa|>'"),
        ([NewToken("<|a\u0301|>", "special", "is")], "normalization turns into '<|\u00e1|>'"),
        ([NewToken("x" * 65, "word", "")], "has 65 characters; allowed: 64"),
        ([NewToken("renal", "word", ""), NewToken("renal", "symbol", "")], "token 'renal' got the id"),
        ([NewToken("renalith", "word", ""), NewToken("r\u00e9nalith", "symbol", "")], "collides with another token"),
        ([NewToken("Renal", "word", ""), NewToken("renal", "word", "")], "collides with another token"),
        ([NewToken("r\u00e9nal", "word", ""), NewToken("renal", "word", "")], "collides with another token"),
    ],
)
def test_a_token_that_cannot_be_one_is_refused(
    tiny_base: Path, base_tokenizer: "Tokenizer", tokens: list[NewToken], told: str
) -> None:
    with pytest.raises(VocabgraftError) as caught:
        extend_tokenizer(load_tokenizer(tiny_base), base_tokenizer, tokens, 64)
    assert told in str(caught.value)


NEPHROLITH, THROMBOPENIA, ARROW, IS_A = NEW_TOKENS


def grown_base(extended: Extended, folder: Path) -> "tuple[PreTrainedTokenizerFast, Tokenizer]":
    """The extended tokenizer as the base of a second run, to be extended and as it stays."""
    extended[0].save_pretrained(folder)
    return load_tokenizer(folder), load_raw_tokenizer(folder / "tokenizer.json")


def test_kept_tokens_are_not_listed_unless_they_train_again(extended: Extended, tmp_path: Path) -> None:
    tokenizer, base = grown_base(extended, tmp_path)
    first, *_, last = extended[1]
    more = NewToken("hepatoma", "word", "")
    tokens = extend_tokenizer(tokenizer, base, [more, *NEW_TOKENS], 64, ["<|IsA|>", "nephrolith"])
    assert [(token.text, token.id) for token in tokens] == [
        ("nephrolith", first.id),
        ("<|IsA|>", last.id),
        ("hepatoma", last.id + 1),
    ]
    assert [token.retrained for token in tokens] == [True, True, False]
    # Whatever a row starts from, its text or its description, it starts from itself.
    assert [(token.pieces, token.description_pieces) for token in tokens[:2]] == [
        ((first.id,), (first.id,)),
        ((last.id,), (last.id,)),
    ]


def test_training_again_alone_adds_nothing(extended: Extended, tmp_path: Path) -> None:
    tokenizer, base = grown_base(extended, tmp_path)
    (token,) = extend_tokenizer(tokenizer, base, NEW_TOKENS, 64, ["->"])
    assert (token.text, token.id) == ("->", extended[1][2].id)
    assert len(tokenizer) == len(extended[0])


def test_nothing_to_add_and_nothing_to_train_is_refused(extended: Extended, tmp_path: Path) -> None:
    with pytest.raises(VocabgraftError, match=r"all 4 words of the vocabulary are in the base already.*add new words"):
        extend_tokenizer(*grown_base(extended, tmp_path), NEW_TOKENS, 64)


@pytest.mark.parametrize(
    ("wanted", "named", "told"),
    [
        (NEW_TOKENS, "hepatoma", "lists 'hepatoma'.*allowed: nephrolith, Thrombopenia, ->, <|IsA|>;"),
        (NEW_TOKENS, "[MASK]", "lists '[MASK]'"),
        ([NEPHROLITH, NewToken("hepatoma", "word", "")], "hepatoma", "allowed: nephrolith; take it out"),
        ([NEPHROLITH], "->", "allowed: nephrolith; take it out"),
        ([NewToken("hepatoma", "word", "")], "hepatoma", "allowed: none, since all its words are new"),
        ([NewToken("nephrolith", "symbol", "")], "nephrolith", "is of kind symbol, but the base has it as word"),
        ([NewToken("->", "word", "")], "->", "is of kind word, but the base has it as symbol"),
        ([NewToken("<|IsA|>", "word", "")], "<|IsA|>", "is of kind word, but the base has it as special"),
        ([NewToken("Nephrolith", "word", ""), IS_A], "<|IsA|>", "'Nephrolith' is one token in the base already"),
    ],
)
def test_a_growth_that_cannot_be_is_refused(
    extended: Extended, tmp_path: Path, wanted: list[NewToken], named: str, told: str
) -> None:
    tokenizer, base = grown_base(extended, tmp_path)
    before = tokenizer.backend_tokenizer.to_str()
    with pytest.raises(VocabgraftError) as caught:
        extend_tokenizer(tokenizer, base, wanted, 64, [named])
    assert re.search(re.escape(told).replace(r"\.\*", ".*"), str(caught.value))
    assert tokenizer.backend_tokenizer.to_str() == before


def test_many_allowed_tokens_are_not_all_named() -> None:
    from transformers import BertTokenizerFast

    words = [NewToken(f"w{number}", "word", "") for number in range(13)]
    tokenizer = BertTokenizerFast(tokenizer_object=build_wordpiece())
    extend_tokenizer(tokenizer, build_wordpiece(), words, 64)
    with pytest.raises(VocabgraftError, match=r"allowed: w0, .*, w9 and 3 more; take it out"):
        extend_tokenizer(tokenizer, tokenizer.backend_tokenizer, words, 64, ["x"])


def test_rows_of_a_first_run_stay_and_those_that_train_again_start_from_themselves(
    graft: Graft, tmp_path: Path
) -> None:
    import torch

    merged = graft.merged["tokens"]
    before = rows_of(load(merged))
    tokenizer, base = load_tokenizer(merged), load_raw_tokenizer(merged / "tokenizer.json")
    more = [NewToken("hepatoma", "word", ""), NewToken("<|MadeOf|>", "special", "is made of")]
    tokens = extend_tokenizer(tokenizer, base, [*NEW_TOKENS, *more], 64, ["<|IsA|>", "nephrolith"])
    method = ResizeBaseParams(initialisation="subword_mean")
    rows, _ = make_rows(merged, tokenizer, added_tokens(tokens), [], method, PromptParams(), seed=0)
    (tmp_path / "second").mkdir()
    write_resized(merged, tokenizer, rows, PromptParams(), None, tmp_path / "second")
    after = rows_of(load(tmp_path / "second"))
    assert len(after) == len(before) + 2
    torch.testing.assert_close(after[: len(before)], before, rtol=0, atol=0)
    texts = ["a nephrolith", "dog <|IsA|> cat", "thrombopenia, x->y"]
    assert load_tokenizer(tmp_path / "second")(texts)["input_ids"] == graft_ids(graft, texts)


def graft_ids(graft: Graft, texts: list[str]) -> Any:
    """The ids of texts after the first run."""
    return load_tokenizer(graft.tokenizer)(texts)["input_ids"]


@pytest.mark.parametrize("text", ["<|IsA|>", "<|Caf\u00e9|>", "<|is a|>", "\u222e", "<|\ud55c\uad6d|>", "[X]"])
def test_a_special_token_may_have_case_accents_and_spaces_that_the_base_folds(
    base_tokenizer: "Tokenizer", text: str
) -> None:
    assert rewritten(base_tokenizer, text) is None


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("<|Cafe\u0301|>", "<|Caf\u00e9|>"),
        ("<|\u212b|>", "<|\u00c5|>"),
        ("<|a\u200bb|>", "<|ab|>"),
        ("<|a\ufeffb|>", "<|ab|>"),
    ],
)
def test_a_special_token_that_texts_would_hold_in_another_form_is_reported(
    base_tokenizer: "Tokenizer", text: str, becomes: str
) -> None:
    assert rewritten(base_tokenizer, text) == becomes


def test_a_normaliser_of_compatible_signs_makes_fullwidth_ones_unstable() -> None:
    assert rewritten(build_unigram(), "\uff1c|IsA|\uff1e") == "<|IsA|>"
    assert rewritten(build_unigram(), "<|IsA|>") is None


@pytest.mark.parametrize(
    "word",
    ["\u814e\u7d50\u77f3", "\u3053\u3093", "\u30b3\u30fc", "\uff76", "\u4eba\u3005", "\u0e19\u0e34\u0e48"],
)
def test_words_of_scripts_without_spaces_match_inside(word: str) -> None:
    assert matches_inside(word)
    assert not added_token(NewToken(word, "word", "")).single_word


@pytest.mark.parametrize(
    "word",
    ["kidney", "\ud55c\uad6d", "CT\u691c\u67fb", "\u691c\u67fbCT", "\u043f\u043e\u0447\u043a\u0430", "\u30fb", ""],
)
def test_other_words_match_whole(word: str) -> None:
    assert not matches_inside(word)
    assert added_token(NewToken(word, "word", "")).single_word


def test_special_tokens_of_two_casings_are_two(tiny_base: Path, base_tokenizer: "Tokenizer") -> None:
    tokens = [NewToken("<|IsA|>", "special", "is"), NewToken("<|isa|>", "special", "has")]
    tokenizer = load_tokenizer(tiny_base)
    first, second = extend_tokenizer(tokenizer, base_tokenizer, tokens, 64)
    assert tokenizer("<|isa|><|IsA|>", add_special_tokens=False)["input_ids"] == [second.id, first.id]


def test_padding_and_truncation_of_the_file_are_not_taken_over(tmp_path: Path, base_tokenizer: "Tokenizer") -> None:
    from tokenizers import Tokenizer

    asked = Tokenizer.from_str(base_tokenizer.to_str())
    asked.enable_truncation(4)
    asked.enable_padding(length=16)
    asked.save(str(tmp_path / "tokenizer.json"))
    assert len(pieces_of(load_raw_tokenizer(tmp_path / "tokenizer.json"), "dog " * 9)) == 9
    assert len(pieces_of(load_raw_tokenizer(tmp_path / "tokenizer.json"), "dog")) == 1


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabgraftError, match="does not load as a tokenizer"):
        load_tokenizer(tmp_path)


def test_text_is_normalised_as_the_base_does(base_tokenizer: "Tokenizer") -> None:
    from tokenizers import Tokenizer, models

    assert normalised(base_tokenizer, "N\u00c9phro") == "nephro"
    assert normalised(Tokenizer(models.WordLevel({"a": 0})), "N\u00c9phro") == "N\u00c9phro"


def test_no_text_holds_no_new_token(extended: Extended) -> None:
    assert holds_new_token(extended[0], [], [1]).shape == (0,)


def test_the_report_counts_texts_and_reads_specials_as_described_before(
    base_tokenizer: "Tokenizer", extended: Extended
) -> None:
    tokenizer, tokens = extended
    texts = ["dog <|IsA|> animal", "nephrolith nephrolith", "dog cat"]
    report = segmentation_report(base_tokenizer, tokenizer, tokens, texts)
    assert (report.texts, report.texts_changed) == (3, 2)
    assert report.uses == {"nephrolith": 1, "Thrombopenia": 0, "->": 0, "<|IsA|>": 1}
    # Before: dog is a kind of animal (6), n ##e ##p ... twice (20), dog cat (2).
    assert report.tokens_per_text_before == round((6 + 20 + 2) / 3, 4)
    assert report.tokens_per_text_after == round((3 + 2 + 2) / 3, 4)


def test_a_report_after_a_second_run_counts_what_that_changed(extended: Extended, tmp_path: Path) -> None:
    tokenizer, base = grown_base(extended, tmp_path)
    more = NewToken("hepatoma", "word", "")
    tokens = extend_tokenizer(tokenizer, base, [*NEW_TOKENS, more], 64, ["<|IsA|>"])
    report = segmentation_report(base, tokenizer, tokens, ["dog <|IsA|> cat", "a hepatoma <|IsA|> x", "a nephrolith"])
    assert report.uses == {"<|IsA|>": 2, "hepatoma": 1}
    # A text with a kept token alone has the ids that it had, be it trained again or not.
    assert report.texts_changed == 1
    assert report.tokens_per_text_before == round((3 + 11 + 2) / 3, 4)
    assert report.tokens_per_text_after == round((3 + 4 + 2) / 3, 4)


def test_a_report_of_no_texts_is_of_zeros(base_tokenizer: "Tokenizer", extended: Extended) -> None:
    report = segmentation_report(base_tokenizer, *extended, [])
    assert (report.texts, report.tokens_per_text_before, report.tokens_per_text_after) == (0, 0.0, 0.0)


def test_tokens_come_back_from_json_as_they_were(extended: Extended, tmp_path: Path) -> None:
    with new_folder(tmp_path / "made") as work:
        write_json(work / "tokens.json", [token.as_json() for token in extended[1]])
    assert read_tokens(tmp_path / "made" / "tokens.json") == extended[1]
