"""Writes the record and the report at the end of a run, and passes them to MLflow and Prefect."""

import json
import os
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.engine.dag import Stage
from flows.engine.prefect_run import harmless
from flows.engine.registry_state import REGISTERING_STAGE, find_registered, registered_content
from flows.engine.run_record import RUN_RECORD, FlowRun, run_record
from flows.engine.stage_outcome import Outcome, StageResult
from flows.reporting.gather import DATA_DOCS, PLOTS, REGISTRATION_RECORD, REPORT, gather, write_report
from flows.reporting.numbers import markdown_table
from flows.reporting.page import as_markdown
from flows.reporting.plots import standalone_plots
from flows.reporting.sections import Gathered
from vocabgraft.errors import VocabgraftError
from vocabgraft.printable import printable, warn
from vocabgraft.storage.artifacts import read_json, write_json


def publish(run: FlowRun, root: Path) -> bool:
    """Write `reports/run.json` and the report, and add the report to the run's model in MLflow and to Prefect.

    An error here does not undo a run, so it is printed and not raised. Without a new report, the older one is deleted,
    because readers would take it for this run's.

    Returns:
        Whether everything was done.
    """
    try:
        run = replace(run, registration=_registration(run, root))
        record = run_record(run, root)
        if _is_published(run, record, root):
            return True
        write_json(root / RUN_RECORD, record)
        gathered = gather(run.stages, root)
        path = write_report(gathered, root)
    except Exception as error:  # noqa: BLE001  a file that the page cannot show must not undo a good run
        with suppress(OSError):
            (root / REPORT).unlink(missing_ok=True)
        if not isinstance(error, VocabgraftError | OSError):
            warn(traceback.format_exc())
        warn(f"the report was not written: {error or type(error).__name__}")
        return False
    if run.prefect_run:
        with harmless(f"the report is in {path}, but not in Prefect"):
            _give_to_prefect(printable(as_markdown(gathered, path.resolve().as_uri())))
    try:
        _give_to_mlflow(run, path, gathered, root)
    except VocabgraftError as error:
        warn(f"the report is in {path}, but not in MLflow: {error}")
        return False
    return True


# Keys that differ even between two runs with identical results.
OWN_TO_A_RUN = ("started", "finished", "stages", "prefect_run")


def _is_published(run: FlowRun, record: dict[str, Any], root: Path) -> bool:
    """Whether nothing changed since the last report, which then stays with the outcomes of its stages."""
    path = root / RUN_RECORD
    if run.failure or any(result.outcome is not Outcome.UNCHANGED for result in run.results):
        return False
    if not (path.is_file() and (root / REPORT).is_file()):
        return False
    before = read_json(path)
    # Through JSON, because the file has lists instead of tuples.
    now = json.loads(json.dumps(record))
    same_stages = [stage["name"] for stage in before["stages"]] == [stage["name"] for stage in now["stages"]]
    return same_stages and all(before.get(key) == value for key, value in now.items() if key not in OWN_TO_A_RUN)


def _registration(run: FlowRun, root: Path) -> dict[str, Any] | None:
    """The current version of this run's model in the registry: its aliases may have moved since registration."""
    stage = _registering_stage(run.stages, run.results)
    if stage is None or os.environ.get("DVC_EXP_NAME"):
        return None
    made = registered_content(stage, root)
    found = find_registered(made["name"], made["content_digest"], root)
    if found is None:
        return None
    recorded = read_json(root / REGISTRATION_RECORD) if (root / REGISTRATION_RECORD).is_file() else {}
    same = (recorded.get("content_digest"), recorded.get("version")) == (made["content_digest"], found.version)
    now = {"version": found.version, "champion": "champion" in found.aliases, "aliases": list(found.aliases)}
    return {"gates": [], **made, **(recorded if same else {}), **now}


def _registering_stage(stages: Sequence[Stage], results: Sequence[StageResult]) -> Stage | None:
    done = any(result.name == REGISTERING_STAGE and result.outcome.succeeded for result in results)
    return next((stage for stage in stages if done and stage.name == REGISTERING_STAGE), None)


def metrics_against_champion(stages: Sequence[Stage], results: Sequence[StageResult], root: Path) -> str | None:
    """The registered model's metrics beside the champion's, as a Markdown table.

    Returns:
        None if nothing was registered or changed, or if the registry cannot be read.
    """
    stage = _registering_stage(stages, results)
    unchanged = all(result.outcome is Outcome.UNCHANGED for result in results)
    if stage is None or unchanged or os.environ.get("DVC_EXP_NAME"):
        return None
    from tasks.registry.lookup import CHAMPION, connect, figures_of, find_by_alias, find_by_digest

    made = registered_content(stage, root)
    try:
        client = connect()
        champion = find_by_alias(client, made["name"], CHAMPION)
        version = find_by_digest(client, made["name"], made["content_digest"])
        if champion is None or version is None:
            return None
        if champion.version == version.version:
            return f"version {version.version} of {version.name} is the champion"
        own, best = (figures_of(client, entry) for entry in (version, champion))
    except VocabgraftError as error:
        warn(f"no comparison with the champion: {error}")
        return None
    rows = [
        (key.removeprefix("merged."), f"{own[key]:.2f}", f"{best[key]:.2f}", f"{own[key] - best[key]:+.2f}")
        for key in sorted(own.keys() & best.keys())
        if key.startswith("merged.")
    ]
    headings = ("metric", f"version {version.version}", f"champion, version {champion.version}", "difference")
    return markdown_table(headings, rows)


def _give_to_mlflow(run: FlowRun, path: Path, gathered: Gathered, root: Path) -> None:
    if run.registration is None:
        return
    from tasks.registry.lookup import connect
    from tasks.registry.register import log_report

    docs = root / DATA_DOCS
    kept = docs if docs.is_dir() and not gathered.docs else None
    plots = standalone_plots(root / PLOTS)
    log_report(connect(), run.registration["name"], run.registration["version"], path, kept, plots)


def _give_to_prefect(markdown: str) -> None:
    from prefect.artifacts import create_markdown_artifact

    create_markdown_artifact(markdown, key="report", description="Whether the model was promoted, and why")
