"""Packs that agree become one; where they conflict, each conflict is named, and nothing is guessed."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from tests.vocabgraft.conftest import load
from tests.vocabgraft.pack_samples import KIDNEY, LIVER, make_pack
from vocabgraft.errors import VocabgraftError
from vocabgraft.packs.bank import VocabularyBank
from vocabgraft.packs.combine import Conflict, combine, overlaps
from vocabgraft.packs.pack import Pack
from vocabgraft.tokens.new_token import NewToken

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer


@pytest.fixture(scope="module")
def tiny(tiny_base: Path) -> "SentenceTransformer":
    return load(tiny_base)


def pack_of(model: "SentenceTransformer", name: str, *tokens: NewToken, seed: int = 1) -> Pack:
    return make_pack(model, name, tokens, seed)


def word(text: str) -> NewToken:
    return NewToken(text, "word", "")


def symbol(text: str) -> NewToken:
    return NewToken(text, "symbol", "made of")


def test_packs_that_agree_are_one_after_the_other(tiny: "SentenceTransformer", base_tokenizer: "Tokenizer") -> None:
    kidney, liver = make_pack(tiny, "kidney", KIDNEY, seed=1), make_pack(tiny, "liver", LIVER, seed=2)
    combined = combine([kidney, liver], base_tokenizer)
    assert combined.conflicts == () and combined.left_out == ()
    assert combined.pack.name == "kidney+liver" and combined.pack.licence == "CC0-1.0"
    assert combined.pack.texts == kidney.texts + liver.texts
    assert torch.equal(combined.pack.rows, torch.cat([kidney.rows, liver.rows]))
    assert combined.pack.contexts == kidney.contexts + liver.contexts
    mixed = combine([kidney, replace(liver, licence="MIT")], base_tokenizer, name="both").pack
    assert (mixed.name, mixed.licence) == ("both", "CC0-1.0 AND MIT")


def test_a_token_with_the_same_row_is_shared(tiny: "SentenceTransformer", base_tokenizer: "Tokenizer") -> None:
    kidney, liver = make_pack(tiny, "kidney", KIDNEY, seed=1), make_pack(tiny, "liver", LIVER, seed=2)
    more = replace(
        liver, tokens=(*liver.tokens, kidney.tokens[1]), rows=torch.cat([liver.rows, kidney.rows[1:2]]), name="more"
    )
    combined = combine([kidney, more], base_tokenizer)
    assert combined.conflicts == () and combined.pack.texts == kidney.texts + liver.texts


@pytest.mark.parametrize(
    ("first", "second", "kind", "tokens"),
    [
        (word("hepatoma"), word("hepatoma"), "rows", ("hepatoma", "hepatoma")),
        (word("hepatoma"), symbol("hepatoma"), "matching", ("hepatoma", "hepatoma")),
        (word("hepatoma"), word("Hepatoma"), "same text", ("hepatoma", "Hepatoma")),
        # In beta-blockers the longer is tried, is no whole word, and hides the shorter.
        (word("beta"), word("beta-blocker"), "hides", ("beta", "beta-blocker")),
        (word("beta-blocker"), word("beta"), "hides", ("beta-blocker", "beta")),
        (symbol("pato"), word("hepatoma"), "hides", ("pato", "hepatoma")),
        (word("hepatoma"), symbol("makes"), "hides", ("hepatoma", "makes")),
        (word("alpha-x"), word("x-beta"), "hides", ("alpha-x", "x-beta")),
    ],
)
def test_a_contradiction_is_refused_with_its_tokens_or_the_first_stands(
    first: NewToken,
    second: NewToken,
    kind: str,
    tokens: tuple[str, str],
    tiny: "SentenceTransformer",
    base_tokenizer: "Tokenizer",
) -> None:
    one, other = pack_of(tiny, "one", first), pack_of(tiny, "other", second, word("gastrodyn"), seed=2)
    with pytest.raises(VocabgraftError, match="conflict") as told:
        combine([one, other], base_tokenizer)
    assert tokens[1] in str(told.value) and "--on-conflict first" in str(told.value)
    combined = combine([one, other], base_tokenizer, on_conflict="first")
    assert combined.conflicts[0] == Conflict(kind, ("one", "other"), tokens)  # type: ignore[arg-type]
    assert combined.left_out == (("other", second.text),)
    assert combined.pack.texts == (first.text, "gastrodyn")
    assert torch.equal(combined.pack.rows, torch.cat([one.rows, other.rows[1:]]))


def test_a_refused_conflict_is_one_that_changes_a_text_of_one_pack_alone(tiny: "SentenceTransformer") -> None:
    bank = VocabularyBank(tiny)
    bank.put(pack_of(tiny, "one", word("beta")))
    bank.put(pack_of(tiny, "other", word("beta-blocker"), seed=2))
    text = ["the beta-blockers"]
    alone = bank.encode(text, vocabulary="one")
    # The other does not hold the word, and would all the same take away what the first one reads.
    assert np.array_equal(bank.encode(text, vocabulary="other"), bank.encode(text, vocabulary=None))
    assert not np.array_equal(alone, bank.encode(text, vocabulary=None))
    with pytest.raises(VocabgraftError, match="'beta' of one, 'beta-blocker' of other: the longer hides"):
        bank.activate(["one", "other"])
    bank.put(bank.combine(["one", "other"], on_conflict="first", name="both").pack)
    assert np.array_equal(bank.encode(text, vocabulary="both"), alone)


def test_words_in_each_other_that_hide_nothing_are_reported_and_combined(
    tiny: "SentenceTransformer", base_tokenizer: "Tokenizer"
) -> None:
    one = pack_of(tiny, "one", symbol("=>"), word("astro"))
    other = pack_of(tiny, "other", symbol("==>"), word("gastrodyn"), seed=2)
    combined = combine([one, other], base_tokenizer)
    assert combined.conflicts == ()
    (conflict,) = overlaps([one, other], base_tokenizer)
    assert conflict == Conflict("overlap", ("one", "other"), ("=>", "==>")) and not conflict.refused
    assert "read as the longer only" in str(conflict)


def test_packs_for_different_bases_are_refused(tiny: "SentenceTransformer", base_tokenizer: "Tokenizer") -> None:
    one = pack_of(tiny, "one", word("hepatoma"))
    other = replace(pack_of(tiny, "other", word("gastrodyn")), base=replace(one.base, weights_sha256="0" * 64))
    with pytest.raises(VocabgraftError, match=r"vocabgraft pack transfer"):
        combine([one, other], base_tokenizer)


def test_of_many_conflicts_the_first_are_shown_and_all_counted(
    tiny: "SentenceTransformer", base_tokenizer: "Tokenizer"
) -> None:
    words = [word(f"gastro{letter}dyn") for letter in "abcdefghijklmnop"]
    with pytest.raises(VocabgraftError, match=r"^16 tokens conflict[\s\S]*and 6 more$"):
        combine([pack_of(tiny, "one", *words), pack_of(tiny, "other", *words, seed=2)], base_tokenizer)
