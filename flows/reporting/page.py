"""Renders the report as HTML, with the verdict, the gates and the tiles at the top. Reads only the templates."""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from flows.reporting.changes import changes
from flows.reporting.numbers import (
    DASH,
    METRICS,
    capital,
    counted,
    figure,
    listed,
    moment,
    number,
    p_value,
    rank,
    signed,
)
from flows.reporting.searches import searches
from flows.reporting.sections import SECTIONS, Gathered, gate_settings, main_row
from flows.reporting.vocabulary import vocabulary
from tasks.registry.gate_results import NO_EVIDENCE_ASKED, GateResult, told, told_figure, told_interval
from vocabgraft.config.benefits import FIDELITY, TOKENS_PER_TEXT
from vocabgraft.printable import printable

TEMPLATES = Path(__file__).parent / "templates"
TITLES = {
    "benefit": "Benefit",
    "searches": "Search, before and after",
    "changes": "Since the champion",
    "retention": "Retention",
    "consistency": "Consistency",
    "vocabulary": "Vocabulary",
    "training": "Training",
    "data": "Data validation",
    "lineage": "Lineage",
}
VIEWS = {**SECTIONS, "searches": searches, "changes": changes, "vocabulary": vocabulary}
NO_FIGURE = {"value": DASH, "detail": "not measured in this run", "state": "none"}

Plot = Callable[[str, Mapping[str, Any]], str]


@dataclass(frozen=True)
class Verdict:
    """The result of the run, at the top of the page.

    Attributes:
        kind: promoted, registered, unregistered, failed or mixed; the style sheet has a color for each.
        title: a few words.
        reasons: one sentence each.
        failures: (stage, reason, last lines of output) of each failure; the stage is empty if none started.
    """

    kind: str
    title: str
    reasons: Sequence[str]
    failures: Sequence[tuple[str, str, str]] = ()


def render(gathered: Gathered, plot: Plot) -> str:
    """The whole page.

    Args:
        gathered: contents of the page; every text is escaped.
        plot: function that returns a plot's SVG from its name and data; the SVG is not escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=without_controls
    )
    environment.trim_blocks = environment.lstrip_blocks = True
    filters = (figure, signed, number, rank, p_value, moment, counted)
    environment.filters |= {function.__name__: function for function in filters}
    views = {name: section(gathered) for name, section in VIEWS.items()}
    script = (TEMPLATES / "sort.js").read_text(encoding="utf-8")
    drawn = dict(view["plot"] for view in views.values() if "plot" in view)
    return environment.get_template("report.html.jinja").render(
        run=gathered.run,
        verdict=verdict(gathered),
        gates=_gates(gathered, views),
        tiles=_tiles(gathered, views),
        titles=TITLES,
        plots={name: Markup(plot(name, data)) for name, data in drawn.items()},
        sort_script=Markup(script),
        sort_digest=f"sha256-{b64encode(sha256(script.encode()).digest()).decode()}",
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        **views,
    )


def without_controls(value: Any) -> Any:
    """Make a text `printable` for a template; leave markup and other values unchanged."""
    from markupsafe import Markup

    # Markup comes from the template and from plots, which make their own texts printable.
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def as_markdown(gathered: Gathered, address: str) -> str:
    """The verdict and the deciding metrics in Markdown, with the `address` of the page."""
    found = verdict(gathered)
    views = {name: section(gathered) for name, section in SECTIONS.items()}
    lines = [f"## {found.title}", *found.reasons]
    lines += [part for failure in found.failures for part in _failure_as_markdown(*failure)]
    lines += [
        f"- {tile['name']}: **{tile['value']} {tile['unit']}** {tile['detail']} {tile['note']}".rstrip()
        for tile in _tiles(gathered, views)
    ]
    return "\n\n".join([*lines, f"The report: {address}"])


def _failure_as_markdown(stage: str, reason: str, log: str) -> list[str]:
    lines = [f"**{stage or 'The run'} failed**\n\n~~~\n{reason}\n~~~"]
    return [*lines, f"The last lines of its output:\n\n~~~\n{log}\n~~~"] if log else lines


def verdict(gathered: Gathered) -> Verdict:
    """Whether the model was promoted or registered, or the run failed, with the reasons."""
    run, registration = gathered.run, gathered.registration
    if run is None:
        why = "No run of the flow was recorded here; this page shows the latest outputs of the stages."
        return _of_registration(registration, [why]) if registration else Verdict("mixed", "No recorded run", [why])
    if gathered.changed:
        why = f"Outputs that changed since the last run of the flow: {listed(gathered.changed)}. "
        why += "This page shows the current outputs; vocabgraft run gives them a verdict."
        return Verdict("mixed", "Changed since the last run", [why])
    if run["failed"]:
        return _failed(run)
    if registration:
        return _of_registration(registration, [])
    return Verdict("unregistered", "Nothing was registered", [_why_unregistered(run)])


def _why_unregistered(run: Mapping[str, Any]) -> str:
    if run["experiment"]:
        return f"No model is registered inside a DVC experiment, such as this run of {run['experiment']}."
    if any(stage["name"] == "register_model" for stage in run["stages"]):
        return "The registry has no version of this model, though register_model succeeded; run again."
    return f"The run ended with {run['stages'][-1]['name']}, as requested."


def _failed(run: Mapping[str, Any]) -> Verdict:
    failed = [stage for stage in run["stages"] if stage["outcome"] == "Failed"]
    failures = [(stage["name"], stage["reason"], stage.get("log", "")) for stage in failed]
    if not failures:
        why = "Nothing was made or registered."
        return Verdict("failed", "The run ended before its stages started", [why], [("", run["failed"], "")])
    waiting = [stage["name"] for stage in run["stages"] if stage["outcome"] == "NotReady"]
    reasons = [f"Not run, because they need a failed stage: {listed(waiting)}."] if waiting else []
    if "register_model" in waiting:
        reasons.append("No model was registered.")
    return Verdict("failed", f"Failed: {listed([name for name, _, _ in failures])}", reasons, failures)


def _of_registration(registration: Mapping[str, Any], reasons: Sequence[str]) -> Verdict:
    named = f"{registration['name']} version {registration['version']}"
    gates = _results(registration)
    if registration["champion"]:
        evidence = registration.get("evidence", "")
        why = [f"{capital(evidence)}."] if evidence.startswith(NO_EVIDENCE_ASKED) else []
        return Verdict("promoted", "Promoted", [f"{named} is the champion.", *why, *reasons])
    unmet = [gate for gate in gates if gate.verdict != "holds"]
    why = [f"{capital(told(gate))}." for gate in unmet]
    why = why or ["No recorded gate blocks it; the alias champion now belongs to another version."]
    shown = {gate.verdict for gate in unmet} != {"not shown"} or not any(gate.kind == "benefit" for gate in unmet)
    title = "Registered, not promoted" if shown else "Registered, not shown to be better"
    return Verdict("registered", title, [f"{named} is a challenger.", *why, *reasons])


def _results(registration: Mapping[str, Any]) -> list[GateResult]:
    return [GateResult.from_json(entry) for entry in registration["gates"]]


def _gates(gathered: Gathered, views: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The results of the gates, if they belong to the model that the page shows."""
    gates = _results(gathered.registration) if gathered.registration and not gathered.changed else []
    checked = _consistency_tile(views["consistency"])["value"]
    return [
        {
            "name": capital(gate.name),
            "figure": checked if gate.kind == "consistency" else told_figure(gate) or DASH,
            "detail": _detail(gate),
            "verdict": gate.verdict,
            "state": {"holds": "passed", "not met": "failed", "not shown": "open"}[gate.verdict],
        }
        for gate in gates
    ]


def _detail(gate: GateResult) -> str:
    """The requirement of a gate; the whole sentence if the verdict is `not shown`."""
    if gate.verdict == "not shown":
        return told(gate)
    asked = gate.limit if gate.figure is None else f"needed: {gate.limit}"
    return "; ".join(part for part in (told_interval(gate), asked, gate.note) if part)


def _tiles(gathered: Gathered, views: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The four deciding metrics."""
    tiles = {
        "Benefit": _benefit_tile(gathered, views["benefit"]),
        "Retention": _retention_tile(gathered, views["retention"]),
        "Consistency": _consistency_tile(views["consistency"]),
        "Length of texts": _length_tile(gathered),
    }
    return [{"name": name, "unit": "", "note": "", **tile} for name, tile in tiles.items()]


def _benefit_tile(gathered: Gathered, view: Mapping[str, Any]) -> dict[str, Any]:
    if (found := _without_labels(gathered)) is not None:
        return found
    row = main_row(gathered, view.get("rows", ()))
    if row is None or row["gain"] is None:
        return NO_FIGURE
    detail = f"{row['metric']} of {row['dataset']} {row['subset']}: {figure(row['base'])} to {figure(row['merged'])} %"
    by_sign = "good" if row["gain"] > 0 else "bad" if row["gain"] < 0 else "open"
    state = {"better": "good", "worse": "bad", None: by_sign}.get(row["verdict"], "open")
    tile = {"value": signed(row["gain"]), "unit": "points", "detail": detail, "state": state}
    return tile | ({"note": row["verdict"]} if row["verdict"] else {})


def _without_labels(gathered: Gathered) -> dict[str, Any] | None:
    """The benefit without labeled data, if one of its metrics decides on promotion."""
    benefit = gate_settings(gathered).get("benefit")
    found = (gathered.content("comparison") or {}).get("without_labels", {}).get(benefit)
    if benefit not in (FIDELITY.dataset, TOKENS_PER_TEXT.dataset) or found is None:
        return None
    detail = f"95 % interval {found['low']:.3f} to {found['high']:.3f}, {found['queries']:,} texts"
    named = "cosine to the base" if benefit == FIDELITY.dataset else "tokens saved per text"
    return {"value": number(found["gain"]), "detail": f"{named}; {detail}", "state": "open"}


def _retention_tile(gathered: Gathered, view: Mapping[str, Any]) -> dict[str, Any]:
    row = next((row for row in view.get("rows", ()) if row["key"] == "no_new_word"), None)
    if row is None or row["change"] is None:
        return NO_FIGURE
    detail = f"{METRICS['spearman']} of pairs without a new word: {figure(row['base'])} to {figure(row['merged'])} %"
    allowed = 100 * gate_settings(gathered).get("max_retention_drop", 0)
    state = "good" if row["change"] >= -allowed else "bad"
    return {"value": signed(row["change"]), "unit": "points", "detail": detail, "state": state}


def _consistency_tile(view: Mapping[str, Any]) -> dict[str, Any]:
    if not view.get("groups"):
        return NO_FIGURE
    passed, total = view["counts"]["passed"], sum(view["counts"].values())
    detail = view["counted"].removeprefix(f"{passed} of {total} ")
    return {"value": f"{passed}/{total}", "detail": detail, "state": "bad" if view["counts"]["failed"] else "good"}


def _length_tile(gathered: Gathered) -> dict[str, Any]:
    metrics = gathered.content("metrics")
    if metrics is None:
        return NO_FIGURE
    before, after = (metrics[model]["tokens_per_text"] for model in ("base", "merged"))
    if not before or after is None:
        return NO_FIGURE
    detail = f"tokens per text: {figure(before)} to {figure(after)}"
    if (speed := gathered.content("speed")) is not None:
        detail += f"; {number(speed['ratio'])} times the base's texts per second"
    return {"value": signed(100 * (after / before - 1), 1), "unit": "%", "detail": detail, "state": "open"}
