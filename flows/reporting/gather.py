"""Gathers the results of the stages and writes reports/report.html."""

import csv
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.engine.dag import Stage
from flows.engine.run_record import RUN_RECORD, output_digests, valid_params
from flows.reporting.numbers import listed
from flows.reporting.page import render
from flows.reporting.plots import PlotFolder
from flows.reporting.sections import Found, Gathered
from vocabgraft.config.params import PARAMS_FILE
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import read_json
from vocabgraft.storage.atomic import replace_text

REPORT = Path("reports/report.html")
PLOTS = Path("reports/plots")
REGISTRATION_RECORD = Path("reports/registration.json")
SPEED = Path("reports/speed.json")
DATA_DOCS = Path("reports/data_docs")
REJECTED_ROWS = "rejected.csv"
# The parts of the page, each with the stage and the file that has it.
PARTS = {
    "validation": ("validate_data", "report.json"),
    "rejected": ("validate_data", REJECTED_ROWS),
    "base": ("validate_data", "base.json"),
    "extension": ("extend_tokenizer", "report.json"),
    "resizing": ("resize_base", "report.json"),
    "training": ("train_adapter", "report.json"),
    "checks": ("check_consistency", "checks.json"),
    "token_checks": ("check_consistency", "tokens.json"),
    "metrics": ("evaluate_model", "metrics.json"),
    "comparison": ("evaluate_model", "comparison.json"),
    "retention": ("evaluate_model", "retention.json"),
    "tokens": ("evaluate_model", "tokens.json"),
    "searches": ("evaluate_model", "searches.json"),
}


def write_report(gathered: Gathered, root: Path, out: Path = REPORT) -> Path:
    """Write the page, whole or not at all.

    Raises:
        VocabgraftError: if it cannot be written.
    """
    plots = PlotFolder(root / PLOTS)
    path = root / out
    try:
        replace_text(path, render(gathered, plots))
    except OSError as error:
        raise VocabgraftError(f"{path} cannot be written: {error}") from error
    plots.forget_others()
    return path


def gather(stages: Sequence[Stage], root: Path) -> Gathered:
    """Read the outputs of the stages. Outputs that this run did not make are not shown, even if they exist."""
    run = read_json(root / RUN_RECORD) if (root / RUN_RECORD).is_file() else None
    left, now = (run or {}).get("outputs", {}), output_digests(stages, root)
    changed = [name for name in now if now[name] != left.get(name)] if run else []
    folders = {stage.name: root / stage.outs[0] for stage in stages if stage.outs}
    blame = {stage: _failures_behind(stage, stages, run) for stage, _ in PARTS.values()} if run else {}
    parts = {
        name: _found(folders.get(stage), stage, file, None if stage in changed else run, blame.get(stage, []))
        for name, (stage, file) in PARTS.items()
    }
    if parts["rejected"].content is None and (rows := _of_a_failed_validation(root, run)):
        parts["rejected"] = rows
    parts["speed"] = _speed(root, now.get("merge_adapter")) if parts["metrics"].content else Found()
    params = run["params"] if run else valid_params(root / PARAMS_FILE)
    return Gathered(run, params, parts, _registration(run, folders, root), changed, _docs(root, run))


def _speed(root: Path, merged: str | None) -> Found:
    """The encoding speed of the current model, from a file outside the stages' outputs."""
    speed = read_json(root / SPEED) if (root / SPEED).is_file() else None
    return Found(speed if speed and speed.get("merged_digest") == merged else None)


def _failures_behind(stage: str, stages: Sequence[Stage], run: Mapping[str, Any]) -> list[str]:
    """The failed stages that a stage needs, in the order of the DAG."""
    upstream = {entry.name: entry.upstream for entry in stages}
    wanted = {stage}
    for entry in reversed(stages):
        if entry.name in wanted:
            wanted.update(upstream[entry.name])
    return [entry.name for entry in stages if entry.name in wanted and _outcome(run, entry.name) == "Failed"]


def _found(folder: Path | None, stage: str, file: str, run: Mapping[str, Any] | None, blame: Sequence[str]) -> Found:
    path = (folder or Path()) / file
    if reason := _not_of_this_run(stage, path, run, blame):
        return Found(absence=reason)
    if folder is None:
        return Found(absence=f"dvc.yaml has no stage {stage}, which makes {file}.")
    if not path.is_file():
        return Found(absence=f"{stage} has written no {file}.")
    try:
        return Found(READERS[path.suffix](path))
    except VocabgraftError as error:
        return Found(absence=str(error))


def _not_of_this_run(stage: str, path: Path, run: Mapping[str, Any] | None, blame: Sequence[str]) -> str:
    """Why this run did not make a stage's file; empty if it did, or if no run was recorded."""
    if run is None:
        return ""
    entry = next((entry for entry in run["stages"] if entry["name"] == stage), None)
    if entry is None:
        why = "was not part of this run" if run["stages"] else "did not run: the run ended before its stages started"
        return f"{stage} {why}."
    if entry["outcome"] == "NotReady":
        return f"{stage} did not run, because {listed(blame)} failed."
    if entry["outcome"] == "Failed" and not _written_since(path, run):
        return f"{stage} failed before it wrote {path.name}."
    return ""


def _written_since(path: Path, run: Mapping[str, Any]) -> bool:
    # The start is stored in whole seconds, rounded down.
    return path.is_file() and path.stat().st_mtime >= datetime.fromisoformat(run["started"]).timestamp()


def _of_a_failed_validation(root: Path, run: Mapping[str, Any] | None) -> Found | None:
    """The rows that made validate_data fail; it then has no output, and writes them beside its Data Docs."""
    path = root / DATA_DOCS / REJECTED_ROWS
    if run is None or _outcome(run, "validate_data") != "Failed" or not _written_since(path, run):
        return None
    return Found(_read_csv(path))


def _outcome(run: Mapping[str, Any], stage: str) -> str | None:
    return next((entry["outcome"] for entry in run["stages"] if entry["name"] == stage), None)


def _docs(root: Path, run: Mapping[str, Any] | None) -> str:
    index = root / DATA_DOCS / "index.html"
    if not index.is_file():
        remedy = "dvc repro --force --single-item validate_data writes them"
        return f"There are no Data Docs, because {DATA_DOCS} does not exist; {remedy}."
    if run is not None and _outcome(run, "validate_data") == "Failed" and not _written_since(index, run):
        return "The Data Docs are from an earlier run: this one failed before it validated the data."
    return ""


def _registration(run: Mapping[str, Any] | None, folders: Mapping[str, Path], root: Path) -> Mapping[str, Any] | None:
    """The registration of the run; without a run, the recorded one, if it is of the current model."""
    if run is not None:
        found: Mapping[str, Any] | None = run["registration"]
        return found
    output = folders.get("register_model", root) / "registration.json"
    if not output.is_file() or not (root / REGISTRATION_RECORD).is_file():
        return None
    record: Mapping[str, Any] = read_json(root / REGISTRATION_RECORD)
    return record if record["content_digest"] == read_json(output)["content_digest"] else None


def _read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


READERS: dict[str, Callable[[Path], Any]] = {".json": read_json, ".csv": _read_csv}
