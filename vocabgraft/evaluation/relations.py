"""Judges each relation's token by its held-out triples, for any number of relations."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
from scipy.stats import false_discovery_control

from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.evaluation.metrics import Measurement
from vocabgraft.evaluation.significance import CONFIDENCE, LEAST_GROUPS, Comparison

RelationVerdict = Literal["better", "worse", "could be chance", "too few to judge"]
METRIC = "link_mrr"


def compare_relations(dataset: AcceptedDataset, measured: Sequence[Measurement], seed: int) -> list[dict[str, Any]]:
    """The gain of merged over base in link prediction, by relation, the lowest first.

    The p-values of the relations are adjusted together (Benjamini and Hochberg, 1995): of those called better or worse,
    one in 20 is expected to be a false discovery, for any number of relations. The intervals are not adjusted. A
    relation whose held-out triples have fewer than `LEAST_GROUPS` heads is not judged, because no test could decide.

    Args:
        dataset: triples with a test split.
        measured: measurements of the dataset; `link_mrr` is one of them.
        seed: seed of the intervals and tests.
    """
    entry = next(found for found in measured if (found.dataset, found.metric) == (dataset.name, METRIC))
    of_item = np.array(dataset.columns("test")["relation"])
    parts = {relation: _only(entry, of_item == relation) for relation in sorted(set(of_item.tolist()))}
    compared = {relation: part.compare("base", "merged", "all", seed) for relation, part in parts.items()}
    found = {relation: comparison for relation, comparison in compared.items() if comparison is not None}
    judged = [relation for relation in found if len(set(parts[relation].groups)) >= LEAST_GROUPS]
    adjusted = false_discovery_control([found[name].p_value for name in judged]) if judged else []
    p_values: dict[str, float] = dict(zip(judged, map(float, adjusted), strict=True))
    rows = [
        {
            "dataset": dataset.name,
            "relation": relation,
            "metric": METRIC,
            **{model: parts[relation].figure(model, "all") for model in entry.values},
            **asdict(comparison),
            "adjusted_p_value": p_values.get(relation),
            "queries": len(parts[relation].items),
            "groups": len(set(parts[relation].groups)),
            "verdict": _verdict(comparison, p_values.get(relation)),
        }
        for relation, comparison in found.items()
    ]
    return sorted(rows, key=lambda row: (row["gain"], row["relation"]))


def _only(entry: Measurement, chosen: "np.ndarray[Any, np.dtype[np.bool_]]") -> Measurement:
    places = np.flatnonzero(chosen).tolist()
    return replace(
        entry,
        items=[entry.items[place] for place in places],
        groups=[entry.groups[place] for place in places],
        new_word=entry.new_word[chosen],
        values={model: values[chosen] for model, values in entry.values.items()},
    )


def _verdict(comparison: Comparison, adjusted: float | None) -> RelationVerdict:
    if adjusted is None:
        return "too few to judge"
    if adjusted > 1 - CONFIDENCE or comparison.low <= 0 <= comparison.high:
        return "could be chance"
    return "better" if comparison.gain > 0 else "worse"
