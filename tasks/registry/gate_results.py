"""The result of each gate of promotion, and the one text in which console, report, model card and tags tell it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Kind = Literal["consistency", "benefit", "retention", "cost", "champion", "own modules"]
Verdict = Literal["holds", "not met", "not shown"]
Unit = Literal["points", "rho", "cosine", "tokens", "number"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
# How a figure is written, and what follows it.
FORMATS: Mapping[Unit, tuple[str, str]] = {
    "points": ("+.2f", " points"),
    "rho": (".4f", " in Spearman's rho"),
    "cosine": (".3f", ""),
    "tokens": ("+.2f", " tokens per text"),
    "number": (".4g", ""),
}
NO_EVIDENCE_ASKED = "no evidence was asked for (register_model.gates.first_champion is any)"
# The names of gates in the tags of versions that were registered before gates had a kind.
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
        name: of the figure.
        verdict: `not shown` where the held-out items are too few to tell, or nothing was measured.
        limit: what the figure must be.
        figure: None where nothing was measured, or the gate has none.
        low, high: its 95 % interval, where there is one.
        items: how many held-out items it was measured on; None where a gate has none.
        needed: how many items would make a figure of this size significant; None if more items cannot help.
        unit: of the figure and its interval.
        claim: what is not shown, after "not shown to".
        note: how the figure was measured, or why it was not.
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
        """The inverse of `as_json`; it also reads the tags of versions registered before there were verdicts."""
        if "verdict" in entry:
            return cls(**entry)
        kinds = [kind for start, kind in OLD_NAMES.items() if entry["name"].startswith(start)]
        kind: Kind = kinds[0] if kinds else "benefit"
        verdict: Verdict = "holds" if entry["holds"] else "not met"
        return cls(kind, entry["name"], verdict, entry["limit"], entry["figure"])


def blocking(results: Sequence[GateResult], evidence_asked: bool = True) -> list[GateResult]:
    """The results that stand in the way of promotion.

    Every gate has to hold, with two exceptions. A measured drop of retention that is within its limit does not fail for
    an interval that reaches beyond it. And where no evidence is asked for, a benefit that is not shown does not block;
    one that is shown to be missing does.
    """

    def blocks(result: GateResult) -> bool:
        if result.verdict != "not shown":
            return result.verdict == "not met"
        if result.kind == "retention":
            return result.figure is None
        return evidence_asked or result.kind != "benefit"

    return [result for result in results if blocks(result)]


def told(result: GateResult) -> str:
    """A result in one sentence without a full stop."""
    if result.verdict == "not shown":
        return f"not shown to {result.claim or result.name}: {'; '.join(_lacking(result))}"
    if result.figure is None:
        return f"{result.name}: {_asked(result)}"
    interval = told_interval(result)
    figure = f"{told_figure(result)} ({interval})" if interval else told_figure(result)
    return f"{result.name}: {figure}; needed: {_asked(result)}"


def told_with_verdict(result: GateResult) -> str:
    """The same sentence after the verdict, where it does not begin with it."""
    return told(result) if result.verdict == "not shown" else f"{result.verdict}: {told(result)}"


def told_figure(result: GateResult) -> str:
    """The figure with its unit; empty where there is none."""
    number, unit = FORMATS[result.unit]
    return "" if result.figure is None else f"{result.figure:{number}}{unit}"


def told_interval(result: GateResult) -> str:
    """The interval and the number of items, as far as there are any."""
    items = [] if result.items is None else [f"{result.items:,} items"]
    return ", ".join([*([] if result.low is None else [f"95 % interval {_interval(result)}"]), *items])


def decision_of(results: Sequence[GateResult], evidence_asked: bool) -> str:
    """Whether a version is promoted by its gates, and why not."""
    if unmet := blocking(results, evidence_asked):
        return f"not promoted: {'; '.join(told(result) for result in unmet)}"
    if blocking(results):
        return f"promoted; {NO_EVIDENCE_ASKED}"
    return "promoted; no gate stands in the way"


def evidence_of(results: Sequence[GateResult], evidence_asked: bool) -> str:
    """What is known of the benefit of a version, and whether its promotion asked for it."""
    benefit = [result for result in results if result.kind == "benefit"]
    waived = len(blocking(benefit)) > len(blocking(benefit, evidence_asked))
    return "; ".join([*([NO_EVIDENCE_ASKED] if waived else []), *map(told, benefit)])


def _lacking(result: GateResult) -> list[str]:
    """How many items there are, what they say, and how many would be needed."""
    if result.figure is None or result.low is None:
        counted = [] if result.items is None else [f"{result.items:,} items"]
        return [*counted, result.note]
    seen = f"{result.items:,} items, interval {_interval(result)}, {result.name} {told_figure(result)}"
    if result.kind != "benefit":
        return [seen, f"needed: {result.limit}"]
    if result.needed is None:
        return [seen, f"needed: {result.limit}; more items cannot show it, since the figure is not past the limit"]
    return [seen, f"about {result.needed:,} items would be needed to show a figure of this size"]


def _interval(result: GateResult) -> str:
    number, _ = FORMATS[result.unit]
    return f"{result.low:{number}} to {result.high:{number}}"


def _asked(result: GateResult) -> str:
    return f"{result.limit} ({result.note})" if result.note else result.limit
