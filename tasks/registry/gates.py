"""Decides whether a model may become champion: every gate with its value, interval and verdict."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.registry.champion import Rival
from tasks.registry.gate_results import GateResult, Unit, Verdict
from vocabgraft.config.benefits import (
    RETENTION,
    SPEARMAN,
    TOKENS,
    TOKENS_PER_TEXT,
    WITHOUT_LABELS,
    Benefit,
    parse_benefit,
)
from vocabgraft.config.stages import GateParams
from vocabgraft.evaluation.significance import LEAST_GROUPS, Comparison, is_shown_above, items_needed
from vocabgraft.models.base import own_module_types
from vocabgraft.models.gate import gate_types
from vocabgraft.storage.artifacts import read_json, require_artifact


@dataclass(frozen=True)
class Measured:
    """The results of `evaluate_model`: `metrics.json`, `comparison.json` and `retention.json`."""

    metrics: Mapping[str, Any]
    comparison: Mapping[str, Any]
    retention: Mapping[str, Any]

    @classmethod
    def read(cls, evaluation: Path) -> "Measured":
        """Read the stage's output folder."""
        names = ("metrics", "comparison", "retention")
        return cls(*(read_json(require_artifact(evaluation / f"{name}.json")) for name in names))

    def figure(self, model: str, benefit: Benefit) -> float | None:
        """A metric of a model; None if it was not measured."""
        found = self.metrics[model].get(benefit.dataset)
        if isinstance(found, Mapping):
            found = found.get(benefit.subset, {}).get(benefit.metric)
        return None if found is None else float(found)

    def gain(self, benefit: Benefit) -> Mapping[str, Any] | None:
        """The gain over the base (for fidelity the value itself) with its interval; None if it was not measured."""
        found: Mapping[str, Any] | None
        if benefit.dataset == RETENTION:
            found = self.retention.get(SPEARMAN, {}).get(benefit.subset)
        elif benefit.dataset in WITHOUT_LABELS:
            found = self.comparison.get("without_labels", {}).get(benefit.dataset)
        else:
            items = self.comparison["items"]
            found = next((it for it in items if (it["dataset"], it["subset"], it["metric"]) == benefit.key), None)
        return found

    def why_missing(self, benefit: Benefit) -> str:
        """Why a benefit was not measured."""
        problems = [*self.comparison.get("problems", ()), *self.retention.get("problems", ())]
        own = (f"{benefit.dataset} ", f"{benefit.dataset}:")
        said = [problem for problem in problems if problem.startswith(own)]
        return "; ".join(said) or f"evaluate_model found no held-out item for {benefit}"


def gates_of(
    measured: Measured, passed: bool, speed: Mapping[str, Any], rival: Rival | None, params: GateParams
) -> list[GateResult]:
    """Every gate: consistency, benefit, retention, cost, and the champion if there is one.

    Args:
        measured: results of `evaluate_model`.
        passed: whether every consistency check passed.
        speed: the timing of this model by `evaluate_model`; empty if it timed another model.
        rival: the champion on the same items; None without a champion.
        params: the limits.
    """
    gates = [
        GateResult("consistency", "consistency", "holds" if passed else "not met", "every check passes"),
        _benefit_gate(measured, params),
        _retention_gate(measured, params.max_retention_drop),
        _cost_gate(measured.metrics, speed, params.max_cost_ratio),
    ]
    return gates if rival is None else [*gates, champion_gate(rival)]


def own_module_gates(merged: Path, params: GateParams) -> list[GateResult]:
    """A gate for a model that needs own module classes: a service without them cannot load it."""
    if not (names := [*own_module_types(merged), *gate_types(merged)]):
        return []
    limit = f"no own classes; it needs {', '.join(names)}; register_model.gates.allow_own_modules waives this"
    verdict: Verdict = "holds" if params.allow_own_modules else "not met"
    return [GateResult("own modules", "own modules", verdict, limit, float(len(names)))]


def benefit_of(params: GateParams) -> Benefit | None:
    """The metric that decides on promotion; None if no benefit is required."""
    return None if params.benefit is None else parse_benefit(params.benefit)


def speed_of(path: Path, digest: str) -> dict[str, Any]:
    """The timing of the last `evaluate_model`; empty if it was of another model."""
    speed: dict[str, Any] = read_json(path) if path.is_file() else {}
    return speed if speed.get("merged_digest") == digest else {}


def champion_gate(rival: Rival) -> GateResult:
    """Holds unless the model is shown to be worse than the champion, with the whole interval below 0.

    The model need not be better than the champion, because a model that learned from new data may be equally good on
    old items. The benefit gate still requires its gain over the base.
    """
    name, limit = f"gain over the champion, version {rival.version}", "an interval not entirely below 0"
    claim = f"be no worse than the champion, version {rival.version}"
    if rival.gain is None:
        return GateResult("champion", name, "not shown", limit, claim=claim, note=rival.how)
    return GateResult(
        kind="champion",
        name=name,
        verdict="holds" if rival.gain.high >= 0 else "not met",
        limit=limit,
        figure=rival.gain.gain,
        low=rival.gain.low,
        high=rival.gain.high,
        items=rival.items,
        unit=_unit(rival.benefit),
        claim=claim,
        note=rival.how,
    )


@dataclass(frozen=True)
class _Requirement:
    """The requirement of the benefit gate: a value is shown to be above `limit`."""

    name: str
    limit: float
    claim: str


def _benefit_gate(measured: Measured, params: GateParams) -> GateResult:
    benefit = benefit_of(params)
    if benefit is None:
        limit = "none is required (register_model.gates.benefit is null)"
        return GateResult("benefit", "benefit", "holds", limit)
    required, entry = _required_of(benefit, params), measured.gain(benefit)
    told: dict[str, Any] = {"limit": f"more than {required.limit:g}", "claim": required.claim, "unit": _unit(benefit)}
    if entry is None:
        return GateResult("benefit", required.name, "not shown", items=0, note=measured.why_missing(benefit), **told)
    found = Comparison(**{key: entry[key] for key in ("gain", "low", "high", "p_value", "standard_error")})
    items, groups = entry["queries"], entry["groups"]
    return GateResult(
        kind="benefit",
        name=required.name,
        verdict=_verdict(found, groups, required.limit),
        figure=found.gain,
        low=found.low,
        high=found.high,
        items=items,
        needed=items_needed(found, items, groups, required.limit),
        **told,
    )


def _required_of(benefit: Benefit, params: GateParams) -> _Requirement:
    if benefit.rule == "fidelity":
        return _Requirement("fidelity to the base", params.min_fidelity, "be near enough to the base")
    if benefit.rule == "kept":
        return _Requirement(
            "change of retention", -100 * params.max_retention_drop, "keep the retention within its limit"
        )
    if benefit == TOKENS_PER_TEXT:
        return _Requirement("tokens saved per text", params.min_gain, "save tokens")
    return _Requirement("gain over the base", params.min_gain, "be better")


def _verdict(found: Comparison, groups: int, limit: float) -> Verdict:
    if is_shown_above(found, groups, limit):
        return "holds"
    return "not met" if found.high <= limit and groups >= LEAST_GROUPS else "not shown"


def _unit(benefit: Benefit) -> Unit:
    if benefit.rule == "fidelity":
        return "cosine"
    return "tokens" if benefit.metric == TOKENS else "points"


def _retention_gate(measured: Measured, most: float) -> GateResult:
    """The drop of Spearman's rho on pairs without a new word, judged by its value and reported with its interval.

    The gate fails if the measured drop is above the limit, whether or not that is statistically shown: nobody should
    have to prove a loss. It is `not shown` if the drop is within the limit but its interval is not.
    """
    benefit = Benefit(RETENTION, "no_new_word", SPEARMAN)
    told: dict[str, Any] = {"limit": f"at most {most:g}", "claim": "keep the drop of retention within its limit"}
    entry = measured.gain(benefit)
    if entry is None:
        note = measured.why_missing(benefit)
        return GateResult("retention", "retention drop", "not shown", note=note, **told)
    drop, low, high = (round(-entry[name] / 100, 6) + 0.0 for name in ("gain", "high", "low"))
    verdict: Verdict = "not met" if drop > most else "holds" if high <= most else "not shown"
    return GateResult(
        kind="retention",
        name="retention drop",
        verdict=verdict,
        figure=drop,
        low=low,
        high=high,
        items=entry["queries"],
        unit="rho",
        **told,
    )


def _cost_gate(metrics: Mapping[str, Any], speed: Mapping[str, Any], most: float) -> GateResult:
    """Ratio of seconds per text to the base's; of tokens per text if this model was not timed on this machine."""
    before, after = (metrics[model].get(TOKENS_PER_TEXT.dataset) for model in ("base", "merged"))
    limit = f"at most {most:g}"
    if "ratio" in speed:
        cost, note = 1 / speed["ratio"], "as timed"
    elif before and after:
        cost, note = after / before, "by tokens per text, because this model was not timed here"
    else:
        note = "this model was not timed here, and there is no held-out text whose tokens could be counted"
        return GateResult("cost", "cost ratio", "not shown", limit, claim="keep the cost within its limit", note=note)
    cost = round(cost, 4)
    return GateResult("cost", "cost ratio", "holds" if cost <= most else "not met", limit, cost, note=note)
