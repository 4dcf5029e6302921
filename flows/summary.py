"""The tables and lines that a run prints at its end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from flows.engine.dag import Stage
from flows.engine.stage_outcome import Outcome, StageResult
from flows.reporting.numbers import markdown_table
from tasks.registry.gate_results import GateResult, Verdict, told
from vocabgraft.storage.artifacts import read_json

HEADINGS_OF_STAGES = ("stage", "state", "seconds", "saved", "why")
STYLES: dict[Verdict, str] = {"holds": "", "not met": "red", "not shown": "yellow"}
# Headings of the models that may have been scored.
HEADINGS = {"base": "base", "resized": "resized", "merged": "trained", "control": "control"}


def stage_table(results: Sequence[StageResult]) -> Table:
    """The outcome of each stage."""
    table = Table(title="stages", title_justify="left")
    for heading in HEADINGS_OF_STAGES:
        table.add_column(heading, justify="right" if heading in ("seconds", "saved") else "left", overflow="fold")
    for result in results:
        reason = result.reason.splitlines()[0] if result.reason else ""
        # Not markup: a reason may hold square brackets.
        table.add_row(result.name, result.outcome.value, f"{result.seconds:.1f}", _saved(result), Text(reason))
    return table


def failure_summary(results: Sequence[StageResult]) -> Text:
    """Why each failed stage failed, in full."""
    failed = [result for result in results if result.outcome is Outcome.FAILED]
    # Not markup: a reason may hold square brackets.
    return Text("\n\n".join(f"{result.name} failed: {result.explanation()}" for result in failed))


def model_summary(stages: Sequence[Stage], registration: Path) -> Group:
    """The added tokens, metrics before and after, retention, and how to load the model."""
    folder = {stage.name: stage.outs[0] for stage in stages}
    figures, comparison, retention = (
        read_json(folder["evaluate_model"] / f"{name}.json") for name in ("metrics", "comparison", "retention")
    )
    added = read_json(folder["validate_data"] / "report.json")["new_tokens"]
    record = read_json(registration) if registration.is_file() else None
    verdicts = {(item["dataset"], item["subset"], item["metric"]): item for item in comparison["items"]}
    models = [name for name in HEADINGS if name in figures]
    table = Table(title="model", title_justify="left")
    table.add_column("metric")
    for name in models:
        table.add_column(HEADINGS[name], justify="right")
    table.add_column("gain, 95 %")
    for row in _rows(figures["merged"]):
        name, subset, metric = row
        cells = [_number(figures[model].get(name, {}).get(subset, {}).get(metric)) for model in models]
        table.add_row(f"{name}, {subset}: {metric}", *cells, _gain(verdicts.get(row)))
    table.add_row("tokens per text", *(_number(figures[model]["tokens_per_text"]) for model in models), "")
    tokens = ", ".join(f"{count} {kind}" for kind, count in added.items())
    distilled = read_json(folder["resize_base"] / "report.json").get("distillation")
    lines = [
        f"added tokens: {tokens}",
        *_fidelity(distilled),
        *_without_labels(comparison),
        *_kept(retention),
        *comparison["control"].get("says", ()),
    ]
    problems = [f"not measured: {problem}" for problem in (*comparison["problems"], *retention["problems"])]
    return Group(table, *lines, *problems, *_registered(record))


def markdown(results: Sequence[StageResult]) -> str:
    """The stage table for a Prefect artifact."""
    rows = [(r.name, r.outcome.value, f"{r.seconds:.1f}", _saved(r), r.reason) for r in results]
    return markdown_table(HEADINGS_OF_STAGES, rows)


def _saved(result: StageResult) -> str:
    """The seconds saved because a stage was unchanged or restored."""
    return "" if result.saved is None else f"{result.saved:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _gain(item: dict[str, Any] | None) -> str:
    if item is None:
        return ""
    return f"{item['gain']:+.2f} ({item['low']:+.2f} to {item['high']:+.2f}): {item['verdict']}"


def _kept(retention: dict[str, Any]) -> list[str]:
    """The share of reference vectors that stay valid, and how far the others moved."""
    if retention["valid_share"] is None:
        return []
    neighbours = retention["neighbours_kept"]
    kept = "" if neighbours is None else f", {neighbours:.1f} % of the ten nearest neighbors stay the same"
    return [
        f"the vectors of {retention['valid_share']:.1f} % of {retention['corpus']} texts stay valid{kept} "
        f"(drift, 1 - cosine: {_drifted(retention['drift'])})"
    ]


def _drifted(drift: dict[str, Any]) -> str:
    named = {"no_new_word": "without a new word", "new_word": "with one"}
    return ", ".join(f"{text} {_share(drift[name]['mean'])}" for name, text in named.items())


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (name, subset, metric)
        for name, subsets in figures.items()
        if isinstance(subsets, dict)
        for subset, metrics in subsets.items()
        for metric in metrics
        # metrics.json has the hits, which follow link_mrr.
        if metric not in ("queries", "pairs") and not metric.startswith("link_hits")
    ]


def _fidelity(distilled: dict[str, Any] | None) -> list[str]:
    """Fidelity after distillation; nothing if rows were not distilled."""
    if not distilled or not distilled["after"]:
        return []
    groups = [
        f"{name.replace('_', ' ')} {figures['mean']:.3f} (10th percentile {figures['p10']:.3f})"
        for name, figures in distilled["after"].items()
        if name != "all"
    ]
    under = len(distilled["under_limit"])
    kept_out = distilled["contexts"]["held_out"]
    return [
        f"fidelity of the distilled rows (cosine to the base on {kept_out} held-out texts): {', '.join(groups)}; "
        f"tokens below {distilled.get('least_fidelity', 'the limit')}: {under}"
    ]


def _without_labels(comparison: dict[str, Any]) -> list[str]:
    """Fidelity of the trained model."""
    found = comparison.get("without_labels", {}).get("fidelity")
    if not found:
        return []
    return [
        f"fidelity of the trained model (cosine to the base on {found['queries']} held-out texts with a new word): "
        f"{found['gain']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
    ]


def _registered(record: dict[str, Any] | None) -> list[Text]:
    """The version, its alias, and each gate that does not hold: yellow if not shown, red if not met."""
    if record is None:
        return [Text("nothing was registered")]
    name, version = record["name"], record["version"]
    alias = "champion" if record["champion"] else "challenger"
    gates = [GateResult.from_json(entry) for entry in record["gates"]]
    lines = [Text(f"model: {name} version {version}, alias {alias}")]
    lines += [Text(told(gate), style=STYLES[gate.verdict]) for gate in gates if gate.verdict != "holds"]
    lines += [Text(record["evidence"])] if record["champion"] and record.get("evidence") else []
    return [*lines, Text(f'load it: mlflow.sentence_transformers.load_model("models:/{name}@{alias}")')]
