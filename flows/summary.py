"""The short table at the end of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from flows.dag import Stage
from flows.execution import StageResult
from vocabgraft.artifacts import read_json


def stage_table(results: Sequence[StageResult]) -> Table:
    """What became of each stage."""
    table = Table(title="stages", title_justify="left")
    for heading, side in (("stage", "left"), ("state", "left"), ("seconds", "right"), ("why", "left")):
        table.add_column(heading, justify=side, overflow="fold")  # type: ignore[arg-type]
    for result in results:
        reason = result.reason.splitlines()[0] if result.reason else ""
        table.add_row(result.name, result.outcome.value, f"{result.seconds:.1f}", reason)
    return table


def model_summary(stages: Sequence[Stage], registration: Path) -> Group:
    """What was added, quality before and after, retention, and how to load the model."""
    folder = {stage.name: stage.outs[0] for stage in stages}
    figures = read_json(folder["evaluate_model"] / "metrics.json")
    added = read_json(folder["validate_data"] / "report.json")["new_tokens"]
    record = read_json(registration) if registration.is_file() else None
    table = Table(title="model", title_justify="left")
    table.add_column("figure")
    for heading in ("base", "resized", "trained"):
        table.add_column(heading, justify="right")
    for name, subset, metric in _rows(figures["merged"]):
        cells = [f"{figures[model][name][subset][metric]:.2f}" for model in ("base", "resized", "merged")]
        table.add_row(f"{name}, {subset}: {metric}", *cells)
    cells = [f"{figures[model]['tokens_per_text']:.2f}" for model in ("base", "resized", "merged")]
    table.add_row("tokens per text", *cells)
    tokens = ", ".join(f"{count} {kind}" for kind, count in added.items())
    distilled = read_json(folder["resize_base"] / "report.json").get("distillation")
    return Group(table, f"added tokens: {tokens}", *_fidelity(distilled), *_registered(record))


def markdown(results: Sequence[StageResult]) -> str:
    """The stage table for a Prefect artifact."""
    lines = ["| stage | state | seconds | why |", "|---|---|---|---|"]
    for result in results:
        reason = result.reason.replace("\n", "<br>").replace("|", "\\|")
        lines.append(f"| {result.name} | {result.outcome.value} | {result.seconds:.1f} | {reason} |")
    return "\n".join(lines)


def _rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (name, subset, metric)
        for name, subsets in figures.items()
        if isinstance(subsets, dict)
        for subset, metrics in subsets.items()
        for metric in metrics
        if metric not in ("queries", "pairs")
    ]


def _fidelity(distilled: dict[str, Any] | None) -> list[str]:
    """How near texts with new tokens are to what the base makes of them; nothing where rows were not distilled."""
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
        f"fidelity of the distilled rows, cosine to the base on {kept_out} texts kept out: {', '.join(groups)}; "
        f"tokens under the limit: {under}"
    ]


def _registered(record: dict[str, Any] | None) -> list[str]:
    if record is None:
        return ["nothing was registered"]
    name, version = record["name"], record["version"]
    alias = "champion" if record["champion"] else "challenger"
    unmet = [
        f"{gate['name']} is {gate['figure']}, needed {gate['limit']}" for gate in record["gates"] if not gate["holds"]
    ]
    lines = [f"model: {name} version {version}, alias {alias}"]
    lines += [f"not promoted: {'; '.join(unmet)}"] if unmet else []
    return [*lines, f'load it: mlflow.sentence_transformers.load_model("models:/{name}@{alias}")']
