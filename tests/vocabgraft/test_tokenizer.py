"""The extended tokenizer: new words are one id each, and every other text keeps the ids that it had."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import WORDS
from tests.vocabgraft.conftest import NEW_TOKENS
from vocabgraft.artifacts import new_folder, write_json
from vocabgraft.errors import VocabgraftError
from vocabgraft.tokenizer import (
    ExtendedToken,
    extend_tokenizer,
    holds_new_token,
    load_raw_tokenizer,
    load_tokenizer,
    normalised,
    pieces_of,
    read_tokens,
    segmentation_report,
)
from vocabgraft.vocabulary import NewToken

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
        ([NewToken("kidney", "word", "")], "token 'kidney' got the id"),
        ([NewToken("x" * 65, "word", "")], "has 65 characters; allowed: 64"),
        ([NewToken("renal", "word", ""), NewToken("renal", "symbol", "")], "token 'renal' got the id"),
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


def test_a_report_of_no_texts_is_of_zeros(base_tokenizer: "Tokenizer", extended: Extended) -> None:
    report = segmentation_report(base_tokenizer, *extended, [])
    assert (report.texts, report.tokens_per_text_before, report.tokens_per_text_after) == (0, 0.0, 0.0)


def test_tokens_come_back_from_json_as_they_were(extended: Extended, tmp_path: Path) -> None:
    with new_folder(tmp_path / "made") as work:
        write_json(work / "tokens.json", [token.as_json() for token in extended[1]])
    assert read_tokens(tmp_path / "made" / "tokens.json") == extended[1]
