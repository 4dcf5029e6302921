"""Verdicts of relations: each judged by its own held-out triples, corrected for how many relations there are."""

import numpy as np
import pytest

from tests.vocabgraft.conftest import WriteDataset
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.evaluation.metrics import Measurement
from vocabgraft.evaluation.relations import compare_relations

TRIPLES = ("head", "relation", "tail")


def measured(
    write_dataset: WriteDataset, gains: dict[str, list[float]], heads: int | None = None, name: str = "facts"
) -> tuple[AcceptedDataset, list[Measurement]]:
    """A dataset whose triples gain these points in link prediction, by relation; heads are all different or few."""
    rows = [
        (f"{relation} {place if heads is None else place % heads}", relation, f"tail {place}")
        for relation, values in gains.items()
        for place in range(len(values))
    ]
    dataset = write_dataset(name, "triples", TRIPLES, train=[("a", "IsA", "b")], test=rows)
    after = 40 + np.array([value for values in gains.values() for value in values])
    entry = Measurement(
        dataset=name,
        metric="link_mrr",
        items=[f"{row[0]} {row[1]}" for row in rows],
        groups=dataset.groups("test"),
        new_word=np.ones(len(rows), dtype=bool),
        values={"base": np.full(len(rows), 40.0), "merged": after},
    )
    return dataset, [entry]


@pytest.mark.parametrize(("gain", "verdict"), [(5.0, "better"), (-5.0, "worse")])
def test_one_relation_has_a_verdict(gain: float, verdict: str, write_dataset: WriteDataset) -> None:
    dataset, entries = measured(write_dataset, {"AtLocation": [gain - 1, gain + 1] * 20})
    (row,) = compare_relations(dataset, entries, seed=1)
    assert (row["relation"], row["verdict"], row["queries"], row["groups"]) == ("AtLocation", verdict, 40, 40)
    assert row["gain"] == pytest.approx(gain)
    assert (row["base"], row["merged"]) == (40, 40 + gain)
    assert row["low"] < gain < row["high"]
    assert row["adjusted_p_value"] == row["p_value"] < 0.05


def test_a_hundred_relations_have_a_verdict_each_and_chance_makes_hardly_one(write_dataset: WriteDataset) -> None:
    generator = np.random.default_rng(3)
    alone, called = list[str](), list[str]()
    for draw in range(3):
        gains = {f"Chance{number}": generator.normal(0, 8, 20).tolist() for number in range(98)}
        gains |= {"Good": (6 + generator.normal(0, 4, 20)).tolist(), "Bad": (-6 + generator.normal(0, 4, 20)).tolist()}
        rows = compare_relations(*measured(write_dataset, gains, name=f"facts{draw}"), seed=1)
        assert len(rows) == 100
        assert [row["gain"] for row in rows] == sorted(row["gain"] for row in rows)
        verdicts = {row["relation"]: row["verdict"] for row in rows}
        assert (verdicts["Good"], verdicts["Bad"]) == ("better", "worse")
        alone += [row["relation"] for row in rows if row["p_value"] <= 0.05 and row["relation"] not in ("Good", "Bad")]
        called += [name for name, verdict in verdicts.items() if verdict != "could be chance"]
    # Judged alone, one in 20 of those that gain nothing would be called better or worse.
    assert len(alone) >= 6
    assert len([name for name in called if name.startswith("Chance")]) <= len(alone) / 3


def test_a_relation_of_few_heads_is_not_judged(write_dataset: WriteDataset) -> None:
    dataset, entries = measured(write_dataset, {"AtLocation": [9.0, 11.0] * 20}, heads=5)
    (row,) = compare_relations(dataset, entries, seed=1)
    assert (row["verdict"], row["groups"], row["adjusted_p_value"]) == ("too few to judge", 5, None)
