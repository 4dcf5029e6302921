"""The quick look never misses a word that the tokenizer finds."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tokenizer_families import FAMILIES
from vocabgraft.index.model_diff import ModelDifference, _word_filter
from vocabgraft.tokens.word_filter import WordFilter

WORDS = ["nephrolith", "Hépatome", "heart attack", "beta-blocker", "ﬁbro", "中文", "->", "ab c", "x\u0301y"]
PIECES = [*WORDS, "NEPHROLITH", "nephroliths", "betablocker", "beta", "<|IsA|>", "[SEP]", "hepatome", "中", "文"]
SIGNS = [" ", "  ", "\t", "\n", "\u00a0", "\u200b", "\u0301", "\x1c", ",", "-", "q", "\x00", "\u3000", "İ"]
WRITTEN = st.lists(st.sampled_from([*PIECES, *SIGNS]) | st.characters(codec="utf-8"), max_size=8).map("".join)


def extend(name: str) -> tuple[object, object]:
    """A family's tokenizer, and the same with words, a symbol and special tokens, some hiding others."""
    from tokenizers import AddedToken, Tokenizer

    base = FAMILIES[name]()
    extended = Tokenizer.from_str(base.to_str())
    extended.add_tokens([AddedToken(word, single_word=word != "->", normalized=True) for word in WORDS])
    extended.add_tokens([AddedToken("<|IsA|>", normalized=False), AddedToken("beta", single_word=True)])
    return base, extended


EXTENDED = {name: extend(name) for name in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(WRITTEN, min_size=1, max_size=6))
def test_a_text_that_is_cut_otherwise_is_always_found(family: str, texts: list[str]) -> None:
    base, extended = EXTENDED[family]
    word_filter = _word_filter(base, extended, frozenset())  # type: ignore[arg-type]
    assert word_filter is not None
    quick = ModelDifference(None, base, extended, frozenset(), "", word_filter)  # type: ignore[arg-type]
    exact = ModelDifference(None, base, extended)  # type: ignore[arg-type]
    assert quick.stale(texts).tolist() == exact.stale(texts).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_leaves_out_what_holds_no_word(family: str) -> None:
    base, extended = EXTENDED[family]
    found = _word_filter(base, extended, frozenset({}))  # type: ignore[arg-type]
    assert found is not None and found.places(["the dog of it", "", "beta", "x nephroliths"]) == [2, 3]


def test_an_added_token_of_spaces_alone_switches_the_filter_off() -> None:
    assert WordFilter.of(FAMILIES["wordpiece uncased"](), ["word", " "], []) is None


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vocabgraft.tokens.word_filter.REMEMBERED_FORMS", 4)
    found = WordFilter.of(FAMILIES["wordpiece uncased"](), ["dog"], [])
    assert found is not None
    for text in ("a dog", "the cat and the fish", "a Dog again", "no"):
        assert found.places([text]) == ([0] if "og" in text else [])
        assert len(found.seen) <= 4 + 5
