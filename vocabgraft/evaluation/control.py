"""Compares with the control: how much of a gain comes from the vocabulary, and whether new words are needed."""

from collections.abc import Sequence
from typing import Any

from vocabgraft.config.benefits import SUBSETS
from vocabgraft.evaluation.metrics import Measurement, verdict_json


def judge_control(
    measurements: Sequence[Measurement], recompute: dict[str, float | None], smoke_under: int, seed: int
) -> dict[str, Any]:
    """Which part of the gain is the vocabulary's, what it costs, and when a user does better without new words.

    Args:
        measurements: of base, merged and control on the same items.
        recompute: the share of stored vectors, in percent, that `merged` and `control` have to compute again.
        smoke_under: items under which a figure carries no claim.
        seed: of the intervals.

    Returns:
        `trained`, `items` (for each dataset's main metric and subset `base`, `control`, `merged`, and as `gain` what
        merged has over the control, with its interval, test and verdict), `recompute` and `says`, plain sentences.
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
        f"{gains['control']:+.2f} with an adapter and none; the difference, {item['gain']:+.2f} ({item['low']:+.2f} to "
        f"{item['high']:+.2f}: {item['verdict']}), is what the vocabulary brings"
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
            f"without new words a user does better on {', '.join(ahead)}: add them only for what the control cannot "
            f"give: {reasons}"
        )
    if leading:
        advice.append(f"the new words bring more than an adapter alone on {', '.join(leading)}")
    if not ahead and not leading:
        advice.append(
            f"these items do not tell the new words from an adapter alone; what else speaks for them: {reasons}"
        )
    return advice
