"""Compares the model with the control: how much of a gain comes from the vocabulary."""

from collections.abc import Sequence
from typing import Any

from vocabgraft.config.benefits import SUBSETS
from vocabgraft.evaluation.metrics import Measurement, verdict_json


def judge_control(
    measurements: Sequence[Measurement], recompute: dict[str, float | None], smoke_under: int, seed: int
) -> dict[str, Any]:
    """The vocabulary's part of the gain, its cost, and whether the control without new words is better.

    Args:
        measurements: measurements of base, merged and control on the same items.
        recompute: share of stored vectors, in percent, that `merged` and `control` must compute again.
        smoke_under: number of items below which a metric supports no claim.
        seed: seed of the intervals.

    Returns:
        `trained`; `items`, for each dataset's main metric and subset `base`, `control`, `merged`, and `gain`, that of
        merged over the control, with its interval, test and verdict; `recompute`; and `says`, sentences.
    """
    items = [
        {
            "dataset": entry.dataset,
            "subset": subset,
            "metric": entry.metric,
            **{model: entry.figure(model, subset) for model in ("base", "control", "merged")},
            **verdict_json(entry, comparison, subset, smoke_under),
        }
        for entry in measurements
        if entry.main
        for subset in SUBSETS
        if (comparison := entry.compare("control", "merged", subset, seed)) is not None
        and entry.figure("base", subset) is not None
    ]
    whole = [item for item in items if item["subset"] == "all"]
    says = [*(_part_of_the_gain(item) for item in whole), *_cost(recompute), *_advice(whole, recompute)]
    return {"trained": True, "items": items, "recompute": recompute, "says": says}


def _part_of_the_gain(item: dict[str, Any]) -> str:
    gains = {model: item[model] - item["base"] for model in ("control", "merged")}
    return (
        f"{item['dataset']}, {item['metric']}: {gains['merged']:+.2f} over the base with the new words, "
        f"{gains['control']:+.2f} with an adapter but no new words; the difference, {item['gain']:+.2f} "
        f"({item['low']:+.2f} to {item['high']:+.2f}: {item['verdict']}), is the vocabulary's part"
    )


def _cost(recompute: dict[str, float | None]) -> list[str]:
    merged, control = recompute["merged"], recompute["control"]
    if merged is None or control is None:
        return []
    return [f"stored vectors to compute again: {merged:.1f} % with the new words, {control:.1f} % with the control"]


def _advice(whole: Sequence[dict[str, Any]], recompute: dict[str, float | None]) -> list[str]:
    ahead = [item["dataset"] for item in whole if item["verdict"] == "worse"]
    leading = [item["dataset"] for item in whole if item["verdict"] == "better"]
    reasons = "tokens that the base cannot express (relations, symbols, codes), shorter texts"
    if (recompute["merged"] or 0) < (recompute["control"] or 0):
        reasons += ", stored vectors that stay valid"
    advice = []
    if ahead:
        advice.append(
            f"the control without new words is better on {', '.join(ahead)}; new words are then worth adding only for "
            f"what the control lacks: {reasons}"
        )
    if leading:
        advice.append(f"with the new words the model is better than an adapter without them on {', '.join(leading)}")
    if not ahead and not leading:
        advice.append(
            f"these items show no difference between the new words and an adapter without them; other reasons for new "
            f"words: {reasons}"
        )
    return advice
