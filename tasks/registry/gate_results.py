"""The result of each gate, which results block promotion, and the text for console, report, card and tags."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Kind = Literal["consistency", "benefit", "retention", "cost", "champion", "own modules"]
Verdict = Literal["holds", "not met", "not shown"]
Unit = Literal["points", "rho", "cosine", "tokens", "number"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
# Format and unit of a metric.
FORMATS: Mapping[Unit, tuple[str, str]] = {
    "points": ("+.2f", " points"),
    "rho": (".4f", " in Spearman's rho"),
    "cosine": (".3f", ""),
    "tokens": ("+.2f", " tokens per text"),
    "number": (".4g", ""),
}
NO_EVIDENCE_ASKED = "no evidence was asked for (register_model.gates.first_champion is any)"
# Names of gates in the tags of old versions, from before gates had a kind.
OLD_NAMES: Mapping[str, Kind] = {
    "consistency": "consistency",
    "gain over the base": "benefit",
    "retention": "retention",
    "cost": "cost",
    "gain over the champion": "champion",
    "own modules": "own modules",
}


@dataclass(frozen=True)
class GateResult:
    """One gate and its verdict.

    Attributes:
        kind: which gate it is.
        name: name of the value that is judged.
        verdict: `not shown` if there are too few held-out items to decide, or nothing was measured.
        limit: the requirement.
        figure: the value; None if nothing was measured, or the gate has none.
        low: lower end of its 95 % interval; None without an interval.
        high: upper end.
        items: number of held-out items; None if the gate has none.
        needed: number of items at which a value of this size would be significant; None if more items cannot help.
        unit: unit of the value and its interval.
        claim: what is not shown, to follow "not shown to".
        note: how the value was measured, or why it was not.
    """

    kind: Kind
    name: str
    verdict: Verdict
    limit: str
    figure: float | None = None
    low: float | None = None
    high: float | None = None
    items: int | None = None
    needed: int | None = None
    unit: Unit = "number"
    claim: str = ""
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """The result as a mapping, for tags and records."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "GateResult":
        """The inverse of `as_json`; also reads tags of old versions, from before there were verdicts."""
        if "verdict" in entry:
            return cls(**entry)
        kinds = [kind for start, kind in OLD_NAMES.items() if entry["name"].startswith(start)]
        kind: Kind = kinds[0] if kinds else "benefit"
        verdict: Verdict = "holds" if entry["holds"] else "not met"
        return cls(kind, entry["name"], verdict, entry["limit"], entry["figure"])


def blocking(results: Sequence[GateResult], evidence_asked: bool = True) -> list[GateResult]:
    """The results that block promotion.

    Every gate must hold, with two exceptions. A measured drop of retention within the limit does not block, even if its
    interval is not within the limit. And if no evidence is required, a benefit that is not shown does not block; one
    that is not met does.
    """

    def blocks(result: GateResult) -> bool:
        if result.verdict != "not shown":
            return result.verdict == "not met"
        if result.kind == "retention":
            return result.figure is None
        return evidence_asked or result.kind != "benefit"

    return [result for result in results if blocks(result)]


def told(result: GateResult) -> str:
    """A result as a sentence without a full stop."""
    if result.verdict == "not shown":
        return f"not shown to {result.claim or result.name}: {'; '.join(_lacking(result))}"
    if result.figure is None:
        return f"{result.name}: {_asked(result)}"
    interval = told_interval(result)
    figure = f"{told_figure(result)} ({interval})" if interval else told_figure(result)
    return f"{result.name}: {figure}; needed: {_asked(result)}"


def told_with_verdict(result: GateResult) -> str:
    """The same sentence with the verdict first."""
    return told(result) if result.verdict == "not shown" else f"{result.verdict}: {told(result)}"


def told_figure(result: GateResult) -> str:
    """The metric with its unit; empty if there is none."""
    number, unit = FORMATS[result.unit]
    return "" if result.figure is None else f"{result.figure:{number}}{unit}"


def told_interval(result: GateResult) -> str:
    """The interval and the number of items, if there are any."""
    items = [] if result.items is None else [f"{result.items:,} items"]
    return ", ".join([*([] if result.low is None else [f"95 % interval {_interval(result)}"]), *items])


def decision_of(results: Sequence[GateResult], evidence_asked: bool) -> str:
    """Whether a version is promoted by its gates, and why not."""
    if unmet := blocking(results, evidence_asked):
        return f"not promoted: {'; '.join(told(result) for result in unmet)}"
    if blocking(results):
        return f"promoted; {NO_EVIDENCE_ASKED}"
    return "promoted; no gate blocks it"


def evidence_of(results: Sequence[GateResult], evidence_asked: bool) -> str:
    """The evidence for a version's benefit, and whether its promotion required it."""
    benefit = [result for result in results if result.kind == "benefit"]
    waived = len(blocking(benefit)) > len(blocking(benefit, evidence_asked))
    return "; ".join([*([NO_EVIDENCE_ASKED] if waived else []), *map(told, benefit)])


def _lacking(result: GateResult) -> list[str]:
    """The number of items, their interval, and how many items would be needed."""
    if result.figure is None or result.low is None:
        counted = [] if result.items is None else [f"{result.items:,} items"]
        return [*counted, result.note]
    seen = f"{result.items:,} items, interval {_interval(result)}, {result.name} {told_figure(result)}"
    if result.kind != "benefit":
        return [seen, f"needed: {result.limit}"]
    if result.needed is None:
        return [
            seen,
            f"needed: {result.limit}; more items cannot show it, because the value itself is not above the limit",
        ]
    return [seen, f"about {result.needed:,} items would be needed to show a value of this size"]


def _interval(result: GateResult) -> str:
    number, _ = FORMATS[result.unit]
    return f"{result.low:{number}} to {result.high:{number}}"


def _asked(result: GateResult) -> str:
    return f"{result.limit} ({result.note})" if result.note else result.limit
