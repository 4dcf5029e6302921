"""Values of all models on the same held-out items, and the metrics computed from them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.stats import spearmanr

from vocabgraft.config.benefits import SUBSETS
from vocabgraft.evaluation.significance import Array, Comparison, compare_correlations, compare_means, verdict_of

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
# A correlation over fewer pairs has no meaning.
LEAST_PAIRS = 3


@dataclass(frozen=True)
class Measurement:
    """One metric of a dataset: the value of each held-out item with each model.

    Attributes:
        dataset: name of the dataset.
        metric: name of the metric, such as `mrr`.
        items: text of each item, such as the query.
        groups: group of each item; items of one group are not independent.
        new_word: whether an item contains a new word.
        values: (items,) by model. The metric is their mean. With `scores` they are similarities, and the metric is
            Spearman's rho of similarities and scores, in percent.
        scores: (items,) or None.
        answers: the other text of each item, if there is one.
        counted: noun for the items.
        main: whether the control is judged by this metric of its dataset.
        percent: whether the values are in percent.
        lower_is_better: whether a lower metric is a gain.
    """

    dataset: str
    metric: str
    items: Sequence[str]
    groups: Sequence[str]
    new_word: BoolArray
    values: Mapping[str, Array]
    scores: Array | None = None
    answers: Sequence[str] | None = None
    counted: Literal["queries", "pairs", "texts"] = "queries"
    main: bool = False
    percent: bool = True
    lower_is_better: bool = False

    def rows(self, subset: str) -> BoolArray:
        """The items of a subset."""
        return {"all": np.ones_like(self.new_word), "new_word": self.new_word, "no_new_word": ~self.new_word}[subset]

    def undefined(self, subset: str, models: Sequence[str] | None = None) -> str | None:
        """Why the metric is undefined in a subset; None if it is defined."""
        rows = self.rows(subset)
        if not rows.any():
            return f"there are no {self.counted}"
        if self.scores is None:
            return None
        if rows.sum() < LEAST_PAIRS:
            return f"there are {rows.sum()} {self.counted}, too few for a correlation (at least {LEAST_PAIRS})"
        if np.ptp(self.scores[rows]) == 0:
            return f"all {rows.sum()} {self.counted} have the score {self.scores[rows][0]:g}"
        alike = [name for name in models or self.values if np.ptp(self.values[name][rows]) == 0]
        return f"for {' and '.join(alike)} all {rows.sum()} {self.counted} are equally similar" if alike else None

    def figure(self, model: str, subset: str) -> float | None:
        """The metric of a model, to four decimals; None if it is undefined."""
        if self.undefined(subset, [model]):
            return None
        rows = self.rows(subset)
        values = self.values[model][rows]
        found = values.mean() if self.scores is None else 100 * spearmanr(values, self.scores[rows]).statistic
        return round(float(found), 4)

    def compare(self, before: str, after: str, subset: str, seed: int) -> Comparison | None:
        """The gain of `after` over `before` in a subset; None if the metric is undefined for either."""
        if self.undefined(subset, [before, after]):
            return None
        rows = self.rows(subset)
        old, new = (self.values[name][rows] for name in ((after, before) if self.lower_is_better else (before, after)))
        groups = [group for group, chosen in zip(self.groups, rows, strict=True) if chosen]
        if self.scores is None:
            return compare_means(old, new, groups, seed)
        return compare_correlations(old, new, self.scores[rows], groups, seed)


def figures_of(measurements: Sequence[Measurement]) -> dict[str, dict[str, dict[str, dict[str, float | int]]]]:
    """The defined metrics and the number of items, by model, dataset and subset."""
    found: dict[str, dict[str, dict[str, dict[str, float | int]]]] = {}
    for entry in measurements:
        for model in entry.values:
            subsets = found.setdefault(model, {}).setdefault(entry.dataset, {})
            for subset in SUBSETS:
                figures = subsets.setdefault(subset, {entry.counted: int(entry.rows(subset).sum())})
                if (figure := entry.figure(model, subset)) is not None:
                    figures[entry.metric] = figure
    return found


def compared_items(measurements: Sequence[Measurement], smoke_under: int, seed: int) -> list[dict[str, Any]]:
    """Every defined gain of merged over base, with interval, test and verdict."""
    return [
        {
            "dataset": entry.dataset,
            "subset": subset,
            "metric": entry.metric,
            "control": None,
            **{model: entry.figure(model, subset) for model in entry.values},
            **verdict_json(entry, comparison, subset, smoke_under),
        }
        for entry in measurements
        for subset in SUBSETS
        if (comparison := entry.compare("base", "merged", subset, seed)) is not None
    ]


def verdict_json(entry: Measurement, comparison: Comparison, subset: str, smoke_under: int) -> dict[str, Any]:
    """A comparison with its numbers of items and groups, and its verdict."""
    rows = entry.rows(subset)
    items = int(rows.sum())
    return {
        **asdict(comparison),
        "queries": items,
        "groups": len({group for group, chosen in zip(entry.groups, rows, strict=True) if chosen}),
        "verdict": verdict_of(comparison, items, smoke_under),
    }


def problems_of(measurements: Sequence[Measurement], subsets: Sequence[str] = SUBSETS) -> list[str]:
    """One sentence for each dataset, metric and subset that could not be measured."""
    named = {"all": "", "new_word": " with a new word", "no_new_word": " without a new word"}
    return [
        f"{entry.dataset}{named[subset]}: no {entry.metric}, because {reason}"
        for entry in measurements
        for subset in subsets
        if (reason := entry.undefined(subset)) is not None
    ]


def highest(scores: "np.ndarray[Any, Any]", count: int) -> list[int]:
    """The indices of the `count` highest scores, best first; equal scores stay in order.

    Only these are sorted, because sorting a whole vocabulary for each of many rows would take minutes.
    """
    count = min(count, len(scores))
    if not count:
        return []
    least = -np.partition(-scores, count - 1)[count - 1]
    places = np.flatnonzero(scores >= least)
    best: list[int] = places[np.argsort(-scores[places], kind="stable")][:count].tolist()
    return best
