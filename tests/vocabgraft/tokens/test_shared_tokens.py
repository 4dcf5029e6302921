"""Tokens of two families are matched by what they say and where."""

from itertools import permutations

import pytest

from tests.conftest import WORDS
from tests.tokenizer_families import FAMILIES
from vocabgraft.tokens.shared_tokens import _pieces, shared_tokens, shared_words


@pytest.mark.parametrize(("first", "second"), list(permutations(FAMILIES, 2)))
def test_shared_tokens_say_the_same_at_the_same_place(first: str, second: str) -> None:
    one, other = FAMILIES[first](), FAMILIES[second]()
    pairs = shared_tokens(one, other)
    said = [{number: piece for piece, number in _pieces(tokenizer).items()} for tokenizer in (one, other)]
    assert len(pairs) >= 26
    assert all(said[0][a] == said[1][b] for a, b in pairs)
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)
    assert sorted((b, a) for a, b in pairs) == shared_tokens(other, one)


@pytest.mark.parametrize(("first", "second"), list(permutations(FAMILIES, 2)))
def test_shared_words_are_one_piece_of_both_after_a_space(first: str, second: str) -> None:
    tokenizers = FAMILIES[first](), FAMILIES[second]()
    words = shared_words(*tokenizers)
    assert len(words) > 5 and set(words) == set(shared_words(*tokenizers[::-1]))
    for tokenizer in tokenizers:
        assert {(word, True) for word in words} <= _pieces(tokenizer).keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_piece_begins_a_word_as_the_tokenizer_reads_it(family: str) -> None:
    """Each word that is one piece after a space is known as one that begins a word."""
    tokenizer = FAMILIES[family]()
    pieces = _pieces(tokenizer)
    before = tokenizer.encode("a", add_special_tokens=False).ids
    whole = 0
    for word in dict.fromkeys(WORDS):
        ids = tokenizer.encode(f"a {word}", add_special_tokens=False).ids
        if len(ids) == len(before) + 1 and ids[:-1] == before:
            whole += 1
            assert pieces[(word, True)] == ids[-1]
    assert whole > 5


def test_special_tokens_and_broken_characters_are_no_pieces() -> None:
    for family in FAMILIES:
        said = {text for text, _ in _pieces(FAMILIES[family]())}
        assert not said & {"[CLS]", "<s>", "<pad>", "", " ", "\u2581", "\u0120"}
        assert not any("\ufffd" in text for text in said)
