"""Figures of items: means and correlations by subset, and verdicts with their numbers."""

from typing import Any

import numpy as np

from vocabgraft.evaluation.metrics import Measurement, compared_items, figures_of, problems_of


def ranked(count: int = 4, **changes: Any) -> Measurement:
    """Items of which the first half hold a new word; base, resized and merged give 50, 50 and 60 percent."""
    settings: dict[str, Any] = {
        "dataset": "terms",
        "metric": "mrr",
        "items": [f"item {number}" for number in range(count)],
        "groups": [str(number // 2) for number in range(count)],
        "new_word": np.arange(count) < count // 2,
        "values": {
            name: np.full(count, value) for name, value in (("base", 50.0), ("resized", 50.0), ("merged", 60.0))
        },
    }
    return Measurement(**(settings | changes))


def test_figures_are_means_by_subset_with_their_counts() -> None:
    values = {"base": np.array([100.0, 50, 25, 10]), "merged": np.array([100.0, 100, 50, 10])}
    found = figures_of([ranked(values=values), ranked(metric="recall@10", values=values)])
    assert found["base"]["terms"]["all"] == {"mrr": 46.25, "recall@10": 46.25, "queries": 4}
    assert found["merged"]["terms"]["new_word"] == {"mrr": 100.0, "recall@10": 100.0, "queries": 2}
    assert found["merged"]["terms"]["no_new_word"]["mrr"] == 30.0


def test_an_empty_subset_has_its_count_alone_and_no_comparison() -> None:
    entry = ranked(new_word=np.ones(4, dtype=bool))
    assert figures_of([entry])["base"]["terms"]["no_new_word"] == {"queries": 0}
    assert [item["subset"] for item in compared_items([entry], 0, 17)] == ["all", "new_word"]
    assert problems_of([entry], ["no_new_word"]) == ["terms without a new word: no mrr, because there are no queries"]


def test_an_item_of_the_comparison_has_every_model_and_says_who_is_missing() -> None:
    (item, *_) = compared_items([ranked()], 200, 17)
    assert item | {"low": 0, "high": 0, "p_value": 0, "standard_error": 0} == {
        "dataset": "terms",
        "subset": "all",
        "metric": "mrr",
        "base": 50.0,
        "resized": 50.0,
        "merged": 60.0,
        "control": None,
        "gain": 10.0,
        "low": 0,
        "high": 0,
        "p_value": 0,
        "standard_error": 0,
        "queries": 4,
        "groups": 2,
        "verdict": "smoke figure",
    }
    values = {**ranked().values, "control": np.full(4, 70.0)}
    assert compared_items([ranked(values=values)], 200, 17)[0]["control"] == 70.0


def test_what_to_one_model_is_all_alike_has_no_figure_for_that_model_alone() -> None:
    values = {"base": np.array([0.1, 0.2, 0.3, 0.4]), "merged": np.full(4, 0.5)}
    entry = ranked(metric="spearman", values=values, scores=np.array([1.0, 2, 3, 4]), counted="pairs")
    assert (entry.figure("base", "all"), entry.figure("merged", "all")) == (100.0, None)
    assert entry.compare("base", "merged", "all", 17) is None
    assert problems_of([entry], ["all"]) == ["terms: no spearman, because for merged all 4 pairs are equally similar"]


def test_of_a_figure_that_is_better_when_lower_a_fall_is_a_gain() -> None:
    values = {"base": np.array([9.0, 8, 7, 6]), "merged": np.array([7.0, 7, 5, 5])}
    entry = ranked(metric="tokens", values=values, percent=False, lower_is_better=True)
    found = entry.compare("base", "merged", "all", 17)
    assert found is not None and (found.gain, entry.figure("merged", "all")) == (1.5, 6.0)
    assert found.low >= 1
