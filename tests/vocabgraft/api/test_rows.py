"""Rows in memory: their columns say the format, and what is no dataset is refused."""

from typing import Any

import pytest

import vocabgraft as vg
from vocabgraft.api.rows import as_dataset, in_format, training_sets
from vocabgraft.config.datasets import LossParams

PAIRS = [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("rows", "expected", "columns"),
    [
        (PAIRS, "pairs", ["anchor", "positive"]),
        ([("a", "b", "c")], "triplets", ["anchor", "positive", "negative"]),
        ([("a", "b", "c", "d")], "triplets", ["anchor", "positive", "negative", "negative_2"]),
        ([("a", "b", 0.5)], "scored_pairs", ["sentence1", "sentence2", "score"]),
        ([("a", "b", 1)], "labelled_pairs", ["sentence1", "sentence2", "label"]),
        ([("a", 1)], "labelled_texts", ["text", "label"]),
        (["a", "b"], "texts", ["text"]),
        ([{"question": "a", "answer": "b"}], "pairs", ["anchor", "positive"]),
        ([{"positive": "b", "anchor": "a"}], "pairs", ["anchor", "positive"]),
        ([{"score": 0.5, "left": "a", "right": "b"}], "scored_pairs", ["sentence1", "sentence2", "score"]),
        ([{"head": "a", "relation": "IsA", "tail": "b"}], "triples", ["head", "relation", "tail"]),
        ([{"query": "a", "positive": "b", "negative": "c", "margin": 1.0}], "margins", None),
    ],
)
def test_columns_say_the_format(rows: Any, expected: str, columns: list[str] | None) -> None:
    dataset_format, table = in_format(as_dataset(rows, "train_dataset"), "data")
    assert dataset_format == expected
    assert columns is None or table.column_names == columns


def test_columns_of_known_names_are_not_exchanged() -> None:
    _, table = in_format(as_dataset([{"positive": "answer", "anchor": "question"}], "train_dataset"), "data")
    assert table[0] == {"anchor": "question", "positive": "answer"}


@pytest.mark.parametrize("rows", ["a text", 3, [], [("a", "b"), ("a",)], [(1, 2)], [{"a": 1.0}], [("a", 0.5)]])
def test_what_is_no_dataset_is_refused(rows: Any) -> None:
    with pytest.raises(vg.VocabgraftError, match=r"train_dataset|dataset"):
        training_sets(rows, None, None, None, 0)


def test_each_dataset_has_its_loss_and_weight() -> None:
    rows = {"terms": PAIRS, "scored": [("a", "b", 0.5)]}
    terms, scored = training_sets(rows, {"terms": PAIRS[:1]}, {"scored": "AnglELoss"}, {"scored": 0.5}, 0)
    assert isinstance(terms.loss, LossParams) and isinstance(scored.loss, LossParams)
    assert (terms.loss.name, terms.weight) == ("MultipleNegativesRankingLoss", 1.0)
    assert (scored.loss.name, scored.weight) == ("AnglELoss", 0.5)
    assert terms.validation is not None and len(terms.validation) == 1
    assert scored.validation is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"held_out": {"other": PAIRS}}, "other"),
        ({"loss": {"other": "AnglELoss"}}, "other"),
        ({"weights": {"other": 1.0}}, "other"),
        ({"loss": "CoSENTLoss"}, "CoSENTLoss"),
        ({"loss": "NoLoss"}, "NoLoss"),
        ({"held_out": {"terms": [("a", "b", 0.5)]}}, "scored_pairs"),
    ],
)
def test_what_does_not_fit_the_rows_is_named(changes: dict[str, Any], told: str) -> None:
    given = {"held_out": None, "loss": None, "weights": None} | changes
    with pytest.raises(vg.VocabgraftError, match=told):
        training_sets({"terms": PAIRS}, **given, seed=0)
