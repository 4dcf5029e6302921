"""Words as a user writes them: each becomes the token that was meant, or is refused with a remedy."""

from pathlib import Path

import pytest

import vocabgraft as vg
from vocabgraft.api.words import as_new_tokens
from vocabgraft.tokens.new_token import NewToken


def test_plain_texts_get_their_kind() -> None:
    assert [token.kind for token in as_new_tokens(["stent", "->", "b-12", "\u222e"])] == [
        "word",
        "symbol",
        "word",
        "symbol",
    ]


def test_a_mapping_gives_descriptions_and_special_tokens() -> None:
    assert as_new_tokens({"stent": "a tube", "<|IsA|>": "is a kind of"}) == [
        NewToken("stent", "word", "a tube"),
        NewToken("<|IsA|>", "special", "is a kind of"),
    ]


@pytest.mark.parametrize(
    "word",
    [
        "<|IsA|>",
        NewToken("<|IsA|>", "word", "is a kind of"),
        NewToken("<|IsA|>", "symbol", "is a kind of"),
        NewToken("<|IsA|>", "special", " "),
    ],
)
def test_a_special_token_is_never_taken_as_a_word(word: str | NewToken) -> None:
    with pytest.raises(vg.VocabgraftError, match="NewToken") as refused:
        as_new_tokens(["stent", word])
    assert "<|IsA|>" in str(refused.value)
    assert '"special"' in str(refused.value)


def test_repetitions_are_one_and_contradictions_are_refused() -> None:
    assert len(as_new_tokens(["stent", "stent"])) == 1
    with pytest.raises(vg.VocabgraftError, match="twice"):
        as_new_tokens(["stent", NewToken("stent", "symbol", "")])


@pytest.mark.parametrize("words", [[], {}, "stent", [3]])
def test_what_is_no_list_of_words_is_refused(words: object) -> None:
    with pytest.raises(vg.VocabgraftError, match="words"):
        as_new_tokens(words)  # type: ignore[arg-type]


def test_all_words_that_cannot_be_added_are_named_or_skipped(tiny_base: Path) -> None:
    words = ["kidney", "stent", "dog"]
    with pytest.raises(vg.VocabgraftError, match="skip") as refused:
        vg.extend(tiny_base, words, initialization="subword_mean")
    assert all(text in str(refused.value) for text in ("2 of 3", "'kidney'", "'dog'"))
    model = vg.extend(tiny_base, words, initialization="subword_mean", on_invalid="skip")
    assert [token.text for token in model.vocabulary_report.tokens] == ["stent"]
    assert set(model.vocabulary_report.skipped) == {"kidney", "dog"}
