"""Held-out triples are scored as their loss trains them, and no more of them than the bound lets through."""

from typing import Any

import numpy as np
import pytest

from tests.vocabgraft.conftest import Graft, WriteDataset, load
from vocabgraft.config.datasets import DatasetParams
from vocabgraft.triples.relation_ranks import (
    LEAST_TRIPLES,
    QUESTIONS,
    HeldOutTriples,
    chosen_triples,
    held_out_triples,
    relation_places,
)

COLUMNS = ("head", "relation", "tail")


@pytest.mark.parametrize(
    ("loss", "similarity"),
    [
        (None, None),
        ("MultipleNegativesRankingLoss", None),
        ("TranslationLoss", "euclidean"),
        ({"name": "TranslationLoss", "arguments": {"p": 1}}, "manhattan"),
        ("TranslationRankingLoss", "euclidean"),
        ({"name": "TranslationRankingLoss", "arguments": {"similarity": "dot"}}, "dot"),
    ],
)
def test_a_triple_is_scored_as_its_loss_trains_it(write_dataset: WriteDataset, loss: Any, similarity: Any) -> None:
    dataset = write_dataset(
        "relations", "triples", COLUMNS, train=[("a", "IsA", "b")], test=[("c", "MadeOf", "d"), ("c", "IsA", "d")]
    )
    settings = DatasetParams.model_validate(
        {"name": "relations", "format": "triples", "files": {"train": "r.csv"}, "loss": loss}
    )
    found = held_out_triples(dataset, settings)
    assert found.similarity == similarity
    assert found.held_out == (("c", "MadeOf", "d"), ("c", "IsA", "d"))
    assert found.relations == ["IsA", "MadeOf"]
    assert found.counts == {"<|MadeOf|>": 1, "<|IsA|>": 1}


def of_relations(relations: int, each: int) -> HeldOutTriples:
    triples = tuple((f"h{n}", f"R{r:02}", f"t{n} of {r}") for r in range(relations) for n in range(each))
    return HeldOutTriples("relations", triples, frozenset(triples), "{head} {relation}", None)


@pytest.mark.parametrize(("relations", "each", "kept"), [(14, 40, 10), (3, 40, 40), (60, 40, LEAST_TRIPLES), (2, 1, 1)])
def test_questions_are_bounded_and_each_relation_keeps_its_fewest(relations: int, each: int, kept: int) -> None:
    chosen = chosen_triples(of_relations(relations, each))
    assert len(chosen) == relations * kept
    if kept > LEAST_TRIPLES:
        assert len(chosen) * relations <= QUESTIONS


@pytest.mark.parametrize("similarity", [None, "euclidean", "cosine"])
def test_places_are_from_0_to_1_by_the_real_model(graft: Graft, similarity: Any) -> None:
    triples = (("dog", "IsA", "animal"), ("house", "MadeOf", "wood"), ("dog", "UsedFor", "pain"))
    known = frozenset(triples)
    found = relation_places(
        load(graft.merged["tokens"]), HeldOutTriples("r", triples, known, "{head} {relation}", similarity), 8
    )
    assert [entry.token for entry in found] == ["<|IsA|>", "<|MadeOf|>", "<|UsedFor|>"]
    assert all(entry.place in (0, 0.5, 1) for entry in found)


def test_a_triple_without_another_relation_says_nothing(graft: Graft) -> None:
    only = HeldOutTriples(
        "r", (("dog", "IsA", "animal"),), frozenset({("dog", "IsA", "animal")}), "{head} {relation}", None
    )
    assert relation_places(load(graft.merged["tokens"]), only, 8) == []


def test_ties_have_their_mean_and_what_is_no_number_is_no_place() -> None:
    class Answers:
        def __init__(self, value: float) -> None:
            self.value = value

        def encode_query(self, texts: list[str], **_: Any) -> Any:
            return np.full((len(texts), 4), self.value, dtype=np.float32)

        encode_document = encode_query

    triples = of_relations(3, 2)
    assert [entry.place for entry in relation_places(Answers(1.0), triples, 8)] == [0.5] * 6  # type: ignore[arg-type]
    lost = relation_places(Answers(float("nan")), triples, 8)  # type: ignore[arg-type]
    assert np.isnan([entry.place for entry in lost]).all()
