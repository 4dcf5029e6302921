"""Triples are known by what the tokenizer makes of their texts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.vocabgraft.conftest import Graft, load
from vocabgraft.errors import VocabgraftError
from vocabgraft.triples import hashes as known_triples
from vocabgraft.triples.hashes import are_known, combine, hash_features, hash_texts, hash_triples

TRIPLES = {"head": ["dog", "cat", "dog"], "relation": ["<|IsA|>"] * 3, "tail": ["animal", "animal", "animal"]}


def features(rows: list[list[int]], width: int, left: bool = False) -> dict[str, torch.Tensor]:
    """Ids padded to a width."""
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        kept = slice(width - len(row), width) if left else slice(0, len(row))
        ids[place, kept], mask[place, kept] = torch.tensor(row, dtype=torch.long), 1
    return {"input_ids": ids, "attention_mask": mask}


@given(
    rows=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5).map(tuple), min_size=1, max_size=30),
    more=st.integers(0, 4),
    left=st.booleans(),
)
def test_equal_hashes_are_equal_ids_whatever_the_padding(rows: list[tuple[int, ...]], more: int, left: bool) -> None:
    hashes = hash_features(features([list(row) for row in rows], 5))
    padded = hash_features(features([list(row) for row in rows], 5 + more, left))
    assert hashes.tolist() == padded.tolist()
    assert len(set(hashes.tolist())) == len(set(rows))


def test_a_million_hashes_of_near_ids_are_distinct() -> None:
    ids = torch.cartesian_prod(torch.arange(100), torch.arange(100), torch.arange(100))
    assert len(np.unique(hash_features({"input_ids": ids, "attention_mask": torch.ones_like(ids)}))) == 1_000_000


@given(st.permutations([1, 2, 3]))
def test_the_places_of_a_triple_are_reported_apart(order: list[int]) -> None:
    values = np.array([1, 2, 3], dtype=np.uint64)
    first = combine(values[:1], values[1:2], values[2:])
    other = combine(*(np.array([value], dtype=np.uint64) for value in order))
    assert (first == other).all() == (order == [1, 2, 3])


def test_texts_that_the_tokenizer_reads_alike_are_one_text(graft: Graft) -> None:
    model = load(graft.resized)
    hashes = hash_texts(model, ["a dog", "A  Dog", "a cat", "a dog"])
    assert hashes[0] == hashes[1] == hashes[3] != hashes[2]
    assert hash_texts(model, ["a dog"], prompt="query ")[0] != hashes[0]
    assert hash_texts(model, []).shape == (0,)


def test_blocks_do_not_change_what_is_known(graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(graft.resized)
    whole = hash_triples(model, TRIPLES)
    monkeypatch.setattr(known_triples, "ROWS_AT_ONCE", 1)
    assert hash_triples(model, TRIPLES).tolist() == whole.tolist()
    assert len(whole) == 2 and whole.dtype == np.uint64
    assert hash_triples(model, {name: [] for name in TRIPLES}).shape == (0,)


def test_a_dataset_is_read_as_columns_are(graft: Graft) -> None:
    from datasets import Dataset

    model = load(graft.resized)
    assert hash_triples(model, Dataset.from_dict(TRIPLES)).tolist() == hash_triples(model, TRIPLES).tolist()


@given(known=st.lists(st.integers(0, 30)), asked=st.lists(st.integers(0, 30)))
def test_known_is_membership(known: list[int], asked: list[int]) -> None:
    found = are_known(np.array(asked, dtype=np.uint64), np.unique(np.array(known, dtype=np.uint64)))
    assert found.tolist() == [value in known for value in asked]


def test_columns_that_are_absent_or_uneven_are_refused(graft: Graft) -> None:
    model = load(graft.resized)
    with pytest.raises(VocabgraftError, match="have the columns head, tail; relation is absent"):
        hash_triples(model, {"head": [], "tail": []})
    with pytest.raises(VocabgraftError, match="have 1, 2, 1 rows"):
        hash_triples(model, {"head": ["a"], "relation": ["a", "b"], "tail": ["a"]})


def test_features_without_ids_by_row_are_refused() -> None:
    with pytest.raises(VocabgraftError, match="the model's features are input_ids, offsets"):
        hash_features({"input_ids": torch.arange(3), "offsets": torch.arange(1)})
