"""Held-out triples are scored as their loss trains them, and no more of them than the bound lets through."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.vocabgraft.conftest import Graft, WriteDataset, load
from vocabgraft.config.datasets import DatasetParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.triples.relation_ranks import (
    LEAST_TRIPLES,
    MOST_TRIPLES,
    QUESTIONS,
    HeldOutTriples,
    held_out_sample,
    held_out_triples,
    known_sample,
    relation_scores,
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


@pytest.mark.parametrize(
    ("relations", "each", "kept"), [(14, 40, MOST_TRIPLES), (3, 40, MOST_TRIPLES), (60, 40, LEAST_TRIPLES), (2, 1, 1)]
)
def test_questions_are_bounded_and_each_relation_keeps_its_fewest(relations: int, each: int, kept: int) -> None:
    triples = of_relations(relations, each)
    for chosen in (held_out_sample(triples), known_sample(triples)):
        assert Counter(relation for _, relation, _ in chosen) == dict.fromkeys(triples.relations, kept)
        if kept > LEAST_TRIPLES:
            assert len(chosen) * relations <= QUESTIONS


def test_a_sample_of_the_known_triples_is_of_all_splits_and_does_not_depend_on_their_order() -> None:
    triples = of_relations(3, 40)
    fewer = replace(triples, held_out=triples.held_out[:5], known=frozenset(reversed(triples.held_out)))
    assert known_sample(fewer) == known_sample(triples)
    assert len(known_sample(fewer)) > len(held_out_sample(fewer))


@pytest.mark.parametrize("similarity", [None, "euclidean", "cosine"])
def test_each_triple_is_scored_with_every_relation_by_the_real_model(graft: Graft, similarity: Any) -> None:
    triples = (("dog", "IsA", "animal"), ("house", "MadeOf", "wood"), ("dog", "UsedFor", "pain"))
    of = HeldOutTriples("r", triples, frozenset(triples), "{head} {relation}", similarity)
    found = relation_scores(load(graft.merged["tokens"]), of, triples, 8)
    assert found.tokens == ("<|IsA|>", "<|MadeOf|>", "<|UsedFor|>")
    assert found.right.tolist() == [0, 1, 2]
    assert found.scores.shape == (3, 3) and np.isfinite(found.scores).all()


def test_another_relation_that_is_true_takes_no_part(graft: Graft) -> None:
    triples = (("dog", "IsA", "animal"), ("dog", "MadeOf", "animal"))
    of = HeldOutTriples("r", triples, frozenset(triples), "{head} {relation}", None)
    found = relation_scores(load(graft.merged["tokens"]), of, triples, 8)
    assert np.isnan(found.scores).tolist() == [[False, True], [True, False]]


def test_a_score_that_is_nan_is_an_error() -> None:
    class Answers:
        def encode_query(self, texts: list[str], **_: Any) -> Any:
            return np.full((len(texts), 4), np.nan, dtype=np.float32)

        encode_document = encode_query

    triples = of_relations(3, 2)
    with pytest.raises(VocabgraftError, match=r"dataset relations: .* NaN"):
        relation_scores(Answers(), triples, triples.held_out, 8)  # type: ignore[arg-type]
