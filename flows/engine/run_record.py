"""reports/run.json: the record of a run, also of a failed one."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flows.engine.dag import Stage, recorded_inputs
from flows.engine.stage_outcome import Outcome, StageResult
from vocabgraft.checks.result import Verdict, count_verdicts
from vocabgraft.config.params import PARAMS_FILE, load_params
from vocabgraft.errors import VocabgraftError
from vocabgraft.printable import printable
from vocabgraft.storage import git
from vocabgraft.storage.artifacts import MANIFEST, digest_of, read_json, read_manifest

RUN_RECORD = Path("reports/run.json")
CHECKED_BY, CHECKS = "check_consistency", "checks.json"
PACKAGES = (
    "torch sentence-transformers transformers tokenizers peft datasets great-expectations mlflow dvc prefect"
).split()


@dataclass(frozen=True)
class FlowRun:
    """A run of the pipeline.

    Attributes:
        started: start time in UTC.
        stages: every stage of the DAG.
        results: results of the stages in the run; empty if it ended before the first stage.
        failure: why the run ended before its stages did; None if it did not.
        registration: the version that the run registered; None if it registered none.
        prefect_run: id of the Prefect run; None without Prefect.
    """

    started: datetime
    stages: Sequence[Stage]
    results: Sequence[StageResult]
    failure: str | None = None
    registration: Mapping[str, Any] | None = None
    prefect_run: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "failure", self.failure and printable(self.failure))


def run_record(run: FlowRun, root: Path) -> dict[str, Any]:
    """The content of `reports/run.json`."""
    done = [result.name for result in run.results if result.outcome.succeeded]
    inputs = recorded_inputs(root / "dvc.lock", run.stages, done)
    return {
        "started": run.started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "stages": [
            {"name": result.name, "outcome": result.outcome.value, "seconds": round(result.seconds, 2)}
            | {"reason": result.reason, "log": result.log}
            for result in run.results
        ],
        "failed": run.failure or failures(run.results) or None,
        "git_commit": git.commit() or "none",
        "git_dirty": git.has_changes(),
        "versions": versions(),
        "registration": run.registration,
        "checks": counted_checks(run, root),
        "experiment": os.environ.get("DVC_EXP_NAME"),
        "prefect_run": run.prefect_run,
        "inputs": {"digest": digest_of(inputs), "stages": done, "files": inputs["files"]},
        "outputs": output_digests(run.stages, root),
        "params": valid_params(root / PARAMS_FILE),
    }


def counted_checks(run: FlowRun, root: Path) -> dict[Verdict, int] | None:
    """The number of checks of this run by verdict; None if it ran no checks."""
    result = next((entry for entry in run.results if entry.name == CHECKED_BY), None)
    folder = next((root / stage.outs[0] for stage in run.stages if stage.name == CHECKED_BY), None)
    path = folder / CHECKS if folder else None
    if result is None or path is None or not path.is_file():
        return None
    # A stage may fail before it writes; the file is then from an earlier run.
    is_new = path.stat().st_mtime >= run.started.replace(microsecond=0).timestamp()
    if not (result.outcome.succeeded or (result.outcome is Outcome.FAILED and is_new)):
        return None
    return count_verdicts(check["verdict"] for check in read_json(path)["checks"])


def failures(results: Sequence[StageResult]) -> str:
    """Why each failed stage failed; if none failed, why the others did not run. "" after a good run."""
    undone = [result for result in results if not result.outcome.succeeded]
    failed = [result for result in undone if result.outcome is Outcome.FAILED]
    return "\n".join(f"{result.name}: {result.reason}" for result in failed or undone)


def output_digests(stages: Sequence[Stage], root: Path) -> dict[str, str]:
    """The content digest of each stage's output that exists and is complete."""
    folders = {stage.name: root / stage.outs[0] for stage in stages if stage.outs}
    return {name: read_manifest(folder)[0] for name, folder in folders.items() if (folder / MANIFEST).is_file()}


def versions() -> dict[str, str]:
    """The installed versions of the packages that influence results; missing packages are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def valid_params(path: Path) -> dict[str, Any] | None:
    """The parameters with defaults filled in; None if the file is not valid, which the run's failure reports."""
    try:
        return load_params(path).model_dump(mode="json")
    except VocabgraftError:
        return None
