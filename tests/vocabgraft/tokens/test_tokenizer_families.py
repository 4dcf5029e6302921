"""For every family of tokenizers: new words are found wherever they stand, and every other text keeps its ids."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, find, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from tests.tokenizer_families import FAMILIES, as_fast
from vocabgraft.errors import VocabgraftError
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.tokenizer import (
    ExtendedToken,
    added_token,
    extend_tokenizer,
    hidden_by,
    load_raw_tokenizer,
    load_tokenizer,
    matches_inside,
    normalised,
    pieces_of,
    readable,
    tokens_added_before,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

CHINESE, THAI, INTEGRAL = "\u814e\u7d50\u77f3", "\u0e19\u0e34\u0e48\u0e27", "\u222e"
NEW = (
    NewToken("nephrolith", "word", ""),
    NewToken("Hepatoma", "word", ""),
    NewToken("caf\u00e9ine", "word", "a drug in coffee"),
    NewToken("beta-blocker", "word", "a drug of the heart"),
    NewToken(CHINESE, "word", "a stone of the kidney"),
    NewToken(THAI, "word", "a stone"),
    NewToken("->", "symbol", "is made into"),
    NewToken(INTEGRAL, "symbol", "is the sum of"),
    NewToken("<|IsA|>", "special", "is a kind of"),
)
SPACED = [token for token in NEW if token.kind == "word" and not matches_inside(token.text)]
MORE = (NewToken("cholelith", "word", ""), NewToken("nephro", "word", ""), NewToken("<|MadeOf|>", "special", "is of"))

PARTS = st.sampled_from(
    [
        *("nephrolith", "NephroLith", "nephro", "lith", "ne\u0301phrolith", "hepatoma", "Hepatoma", "hepato", "s", "x"),
        *("caf\u00e9ine", "cafe\u0301ine", "CAF\u00c9INE", "cafeine", "beta-blocker", "beta", "-", "blocker"),
        *(CHINESE, CHINESE[:2], CHINESE[2], "\u4e2d", THAI, THAI[:2], "\ud55c\uad6d", "\u3042"),
        *("->", ">", "<|IsA|>", "<|isa|>", "<|", "|>", INTEGRAL, "\U0001f600", "\U0001f468\u200d\U0001f469", "\ufe0f"),
        *(" ", "  ", "\n", "\t", "\u00a0", "\u3000", "\u200b", "\u200d", "\u00ad", "_", "7", "'", "'s", "\u2019", "."),
        *("\u0301", "\u0338", "\ufb01", "\uff1e", "\u0130", "\u1e9e", "dog", "kidney", "The heart", "\u2581", "\u0120"),
    ]
)
TEXTS = st.lists(PARTS, max_size=8).map("".join) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@dataclass(frozen=True)
class Family:
    """A base of one family and its extension by NEW."""

    base: "Tokenizer"
    extended: "PreTrainedTokenizerFast"
    tokens: Sequence[ExtendedToken]

    def ids(self, text: str) -> list[int]:
        """The ids of a text after the extension."""
        found: list[int] = self.extended(text, add_special_tokens=False)["input_ids"]
        return found

    def id_of(self, text: str) -> int:
        """The id of a new token."""
        return next(token.id for token in self.tokens if token.text == text)

    def keeps(self, text: str) -> bool:
        """Whether a text has the ids that it had, or holds a new word."""
        return holds_new_word(self.base, text) or tuple(self.ids(text)) == pieces_of(self.base, text)


def family_of(build: Callable[[], "Tokenizer"], tokens: Sequence[NewToken] = NEW) -> Family:
    base = build()
    extended = as_fast(base)
    return Family(base, extended, extend_tokenizer(extended, base, tokens, 64))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return family_of(FAMILIES[request.param])


def is_word_character(sign: str) -> bool:
    """As the tokenizers library's regular expressions say it, which take marks and joiners for parts of a word."""
    return unicodedata.category(sign)[0] in "LM" or unicodedata.category(sign) in ("Nd", "Nl", "Pc") or sign in JOINERS


JOINERS = "\u200c\u200d"


def holds_new_word(base: "Tokenizer", text: str) -> bool:
    """Whether a new word stands in a text, said without the extended tokenizer."""
    return any(_holds(base, token, text) for token in NEW)


def _holds(base: "Tokenizer", token: NewToken, text: str) -> bool:
    if token.kind == "special":
        return token.text in text
    word, read = normalised(base, token.text), normalised(base, text)
    if token.kind == "symbol" or matches_inside(token.text):
        return word in read
    places = [at for at in range(len(read)) if read.startswith(word, at)]
    beside = [(read[at - 1 : at] if at else "", read[at + len(word) :][:1]) for at in places]
    return any(not any(sign and is_word_character(sign) for sign in pair) for pair in beside)


@given(text=TEXTS)
@settings(max_examples=200, deadline=None)
def test_a_text_without_a_new_word_keeps_its_ids(family: Family, text: str) -> None:
    assert family.keeps(text)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_property_fails_for_words_that_match_inside_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def anywhere(token: NewToken) -> AddedToken:
        return AddedToken(token.text, single_word=False, normalized=token.kind != "special", special=False)

    monkeypatch.setattr("vocabgraft.tokens.tokenizer.added_token", anywhere)
    planted = family_of(FAMILIES[name])
    found = find(TEXTS, lambda text: not planted.keeps(text), settings=settings(derandomize=True, database=None))
    assert any(normalised(planted.base, token.text) in normalised(planted.base, found) for token in SPACED)


BEFORE = ["", "a ", "(", '"', "'", "x-", "/", "\n", "\u201c", "\U0001f600"]
AFTER = ["", " b", ")", ",", ".", "'s", "\u2019s", "-x", "/", "\n", "\u3002", "\U0001f600"]


@pytest.mark.parametrize("token", NEW, ids=lambda token: token.text)
def test_a_new_token_is_found_at_the_ends_of_a_text_and_beside_spaces_and_punctuation(
    family: Family, token: NewToken
) -> None:
    missed = [
        text
        for before in BEFORE
        for after in AFTER
        if family.ids(text := f"{before}{token.text}{after}").count(family.id_of(token.text)) != 1
    ]
    assert missed == []


@given(left=TEXTS, right=TEXTS, token=st.sampled_from(NEW))
@settings(max_examples=100, deadline=None)
def test_a_new_token_is_found_between_any_texts(family: Family, left: str, right: str, token: NewToken) -> None:
    assert family.id_of(token.text) in family.ids(f"{left} . {token.text} . {right}")


def test_a_word_is_found_in_the_casings_that_the_base_folds_and_in_no_other(family: Family) -> None:
    word = family.id_of("nephrolith")
    folds = normalised(family.base, "NEPHROLITH") == "nephrolith"
    assert [word in family.ids(f"a {text}, b") for text in ("nephrolith", "Nephrolith", "NEPHROLITH")] == [
        True,
        folds,
        folds,
    ]
    strips = normalised(family.base, "n\u00e9phrolith") == "nephrolith"
    assert (word in family.ids("a n\u00e9phrolith")) == strips


@pytest.mark.parametrize("text", ["nephroliths", "xnephrolith", "nephrolith2", "nephrolith_", "\u4e2dnephroliths"])
def test_part_of_another_word_is_no_match(family: Family, text: str) -> None:
    assert tuple(family.ids(text)) == pieces_of(family.base, text)


@pytest.mark.parametrize("word", [CHINESE, THAI])
def test_a_word_of_a_script_without_spaces_is_found_inside_its_text(family: Family, word: str) -> None:
    around = "\u4e2d" if word == CHINESE else "\u0e01"
    assert family.id_of(word) in family.ids(around + word + around)


def test_a_symbol_is_found_inside_words_and_a_special_token_exactly(family: Family) -> None:
    assert family.id_of("->") in family.ids("x->y")
    assert family.id_of(INTEGRAL) in family.ids(f"a{INTEGRAL}b")
    assert family.id_of("<|IsA|>") in family.ids("dog<|IsA|>cat")
    for text in ("dog <|isa|> cat", "dog <|IsA |> cat"):
        assert family.id_of("<|IsA|>") not in family.ids(text)


@pytest.mark.parametrize("token", NEW, ids=lambda token: token.text)
def test_the_space_before_a_new_token_stays_where_the_base_keeps_spaces(family: Family, token: NewToken) -> None:
    ids = family.ids(f"dog {token.text} kidney")
    place = ids.index(family.id_of(token.text))
    # Byte-level has pieces for "dog " and " kidney"; the others read them as they read "dog" and "kidney".
    assert tuple(ids[:place]) == pieces_of(family.base, "dog ")
    assert tuple(ids[place + 1 :]) == pieces_of(family.base, " kidney")


def test_a_text_with_new_words_decodes_to_itself(family: Family) -> None:
    text = f"dog nephrolith, hepatoma {INTEGRAL} x <|IsA|> kidney nephrolith."
    text = normalised(family.base, text.replace("hepatoma", "Hepatoma")).replace("<|isa|>", "<|IsA|>")
    decoded = family.extended.decode(family.ids(text), clean_up_tokenization_spaces=False)
    # WordPiece drops spaces, and Metaspace puts one behind a new token: their bases do so too, around specials.
    assert decoded.replace(" ", "") == text.replace(" ", "")


def test_byte_level_decodes_texts_with_new_words_sign_by_sign() -> None:
    family = family_of(FAMILIES["roberta"])
    text = f"dog  nephrolith, Hepatoma{INTEGRAL} x<|IsA|> kidney\nnephrolith ."
    assert family.extended.decode(family.ids(text), clean_up_tokenization_spaces=False) == text


def test_old_pieces_leave_out_a_lone_space(family: Family) -> None:
    for token in family.tokens:
        shown = [family.base.id_to_token(piece) for piece in token.pieces]
        assert token.pieces
        assert "\u2581" not in shown
        assert "\u0120" not in shown


def test_old_pieces_of_a_word_are_those_after_a_space() -> None:
    family = family_of(FAMILIES["roberta"], [NewToken("kidneys", "word", "")])
    assert family.tokens[0].pieces == pieces_of(family.base, " kidneys") != pieces_of(family.base, "kidneys")


def test_a_symbol_that_unigram_cannot_read_starts_from_its_description() -> None:
    base = FAMILIES["unigram"]()
    with pytest.raises(VocabgraftError, match="has no subword token to start from"):
        extend_tokenizer(as_fast(base), base, [NewToken(INTEGRAL, "symbol", "")], 64)
    (token,) = extend_tokenizer(as_fast(base), base, [NewToken(INTEGRAL, "symbol", "is a sum")], 64)
    assert readable(base, token.pieces) == ()


@pytest.mark.parametrize("name", ["roberta", "modernbert", "qwen", "unigram"])
def test_a_word_that_is_one_token_after_a_space_is_refused(name: str) -> None:
    base = FAMILIES[name]()
    with pytest.raises(VocabgraftError, match="'kidney' is one token in the base already; take it out"):
        extend_tokenizer(as_fast(base), base, [NewToken("kidney", "word", "")], 64)


def test_casings_are_two_words_to_a_cased_base_and_one_to_an_uncased(family: Family) -> None:
    tokens = [NewToken("renalith", "word", ""), NewToken("Renalith", "word", "")]
    if normalised(family.base, "Renalith") == "Renalith":
        assert len(extend_tokenizer(as_fast(family.base), family.base, tokens, 64)) == 2
    else:
        with pytest.raises(VocabgraftError, match="collides with another token"):
            extend_tokenizer(as_fast(family.base), family.base, tokens, 64)


def test_a_second_run_keeps_the_first_ones_tokens_and_adds_to_them(family: Family, tmp_path: Path) -> None:
    family.extended.save_pretrained(tmp_path)
    base, grown = load_raw_tokenizer(tmp_path / "tokenizer.json"), load_tokenizer(tmp_path)
    # In another order, and new ones among them.
    tokens = extend_tokenizer(grown, base, [*MORE, *NEW[::-1]], 64)
    first = base.get_vocab_size()
    assert [(token.text, token.id) for token in tokens] == [(new.text, first + at) for at, new in enumerate(MORE)]
    known = {text: token_id for text, (token_id, _) in tokens_added_before(base).items()}
    assert known == {token.text: token.id for token in family.tokens}
    grown.save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    for token in family.tokens:
        assert again.convert_tokens_to_ids(token.text) == token.id
    texts = [f"dog {token.text}, x{token.text}y {token.text}" for token in NEW]
    for tokenizer in (grown, again):
        assert [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts] == [
            family.ids(text) for text in texts
        ]


@given(text=TEXTS)
@settings(max_examples=100, deadline=None)
def test_after_a_second_run_a_text_with_words_of_the_first_alone_has_its_ids(grown: Family, text: str) -> None:
    if not any(_holds(grown.base, token, text) for token in MORE):
        assert tuple(grown.ids(text)) == pieces_of(grown.base, text)


@pytest.mark.parametrize(
    ("word", "hidden"),
    [
        ("nephrolith-like", "nephrolith"),
        ("post-nephrolith", "nephrolith"),
        ("x-beta", "beta-blocker"),
        ("c->d", "->"),
        (f"x{INTEGRAL}", INTEGRAL),
        ("x-", "->"),
        ("nephroliths", None),
        ("xnephrolith-like", None),
        ("pre-nephroliths", None),
        ("<|IsA|>-like", None),
    ],
)
def test_a_word_that_would_hide_one_of_the_base_is_refused(family: Family, word: str, hidden: str | None) -> None:
    base = family.extended.backend_tokenizer
    added = list(base.get_added_tokens_decoder().values())
    assert hidden_by(base, added, NewToken(word, "word", "")) == hidden
    assert hidden_by(base, added, NewToken(word, "symbol", "")) is None
    if hidden is not None:
        with pytest.raises(VocabgraftError, match=f"hides .*{re.escape(hidden)}"):
            extend_tokenizer(as_fast(base), base, [NewToken(word, "word", "")], 64)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(word=st.lists(PARTS, min_size=2, max_size=4).map("".join), text=TEXTS, data=st.data())
def test_any_word_of_a_second_run_leaves_the_first_ones_alone(
    family: Family, word: str, text: str, data: st.DataObject
) -> None:
    from tokenizers import Tokenizer

    base = Tokenizer.from_str(family.extended.backend_tokenizer.to_str())
    token = NewToken(word, "word", "")
    added = list(base.get_added_tokens_decoder().values())
    assume(normalised(base, word).strip() and word not in tokens_added_before(base))
    assume(hidden_by(base, added, token) is None)
    grown = Tokenizer.from_str(base.to_str())
    grown.add_tokens([added_token(token)])
    read = (
        text + data.draw(st.sampled_from(["", "a", " "])) + word + data.draw(st.sampled_from(["s", "-s", "", "\u0301"]))
    )
    if not _holds(base, token, read):
        assert grown.encode(read, add_special_tokens=False).ids == base.encode(read, add_special_tokens=False).ids


@pytest.fixture(scope="module")
def grown(family: Family) -> Family:
    """The family's extension as the base of a second run."""
    from tokenizers import Tokenizer

    base = Tokenizer.from_str(family.extended.backend_tokenizer.to_str())
    extended = as_fast(base)
    return Family(base, extended, extend_tokenizer(extended, base, [*NEW, *MORE], 64))
