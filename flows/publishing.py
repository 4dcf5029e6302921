"""What a run tells when it ends: its record and its report, which MLflow and Prefect get too."""

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.dag import Stage
from flows.execution import StageResult
from flows.report import DATA_DOCS, REGISTRATION_RECORD, REPORT, gather, write_report
from flows.report_page import as_markdown
from flows.report_sections import Gathered
from flows.run_record import FlowRun, write_run_record
from vocabgraft.artifacts import read_json
from vocabgraft.errors import VocabgraftError

REGISTERING_STAGE = "register_model"


def publish(run: FlowRun, root: Path) -> bool:
    """Write `reports/run.json` and the report, and give the report to the run's model in MLflow and to Prefect.

    What a run did stands whatever happens here. So nothing is raised: the reason is printed, and an older report, which
    would be taken for this run's, is deleted when there is no new one.

    Returns:
        Whether all of it was done.
    """
    try:
        run = replace(run, registration=_registration(run, root))
        write_run_record(run, root)
        gathered = gather(run.stages, root)
        path = write_report(gathered, root)
    except Exception as error:  # noqa: BLE001  a page that meets a file it cannot show must not undo a good run
        (root / REPORT).unlink(missing_ok=True)
        if not isinstance(error, VocabgraftError):
            traceback.print_exc()
        print(f"the report was not made: {error or type(error).__name__}", file=sys.stderr)
        return False
    if run.prefect_run:
        _give_to_prefect(as_markdown(gathered, path.resolve().as_uri()))
    try:
        _give_to_mlflow(run, path, gathered, root)
    except VocabgraftError as error:
        print(f"the report is in {path}, but not in MLflow: {error}", file=sys.stderr)
        return False
    return True


def _registration(run: FlowRun, root: Path) -> dict[str, Any] | None:
    """The version of this run's model as the registry has it now: an alias may have moved since it was registered."""
    output = _registered_output(run.stages, run.results)
    if output is None or os.environ.get("DVC_EXP_NAME"):
        return None
    from tasks._registry import CHAMPION, connect, find_by_digest

    made = read_json(root / output / "registration.json")
    found = find_by_digest(connect(), made["name"], made["content_digest"])
    if found is None:
        return None
    recorded = read_json(root / REGISTRATION_RECORD) if (root / REGISTRATION_RECORD).is_file() else {}
    same = (recorded.get("content_digest"), recorded.get("version")) == (made["content_digest"], found.version)
    now = {"version": found.version, "champion": CHAMPION in found.aliases, "aliases": list(found.aliases)}
    return {"gates": [], **made, **(recorded if same else {}), **now}


def _registered_output(stages: Sequence[Stage], results: Sequence[StageResult]) -> Path | None:
    done = any(result.name == REGISTERING_STAGE and result.outcome.succeeded for result in results)
    return next((stage.outs[0] for stage in stages if done and stage.name == REGISTERING_STAGE), None)


def _give_to_mlflow(run: FlowRun, path: Path, gathered: Gathered, root: Path) -> None:
    if run.registration is None:
        return
    from tasks._registration import log_report
    from tasks._registry import connect

    docs = root / DATA_DOCS
    kept = docs if docs.is_dir() and not gathered.docs else None
    log_report(connect(), run.registration["name"], run.registration["version"], path, kept)


def _give_to_prefect(markdown: str) -> None:
    from prefect.artifacts import create_markdown_artifact

    create_markdown_artifact(markdown, key="report", description="Whether the model was promoted, and why")
