"""A run as a Prefect flow: each stage is a task run, with its log, progress, artifacts and assets.

Importing Prefect takes two to three seconds, so `flows.build_model --no-server` does not import this module.
"""

import csv
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import allow_failure, flow, get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.assets import Asset
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import AssetContext
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.console import LOGS, LogFiles
from flows.engine.dag import Planned, Stage
from flows.engine.prefect_run import harmless
from flows.engine.run_record import failures
from flows.engine.scheduler import Body, StageRuns, Watch
from flows.engine.stage_outcome import Outcome, StageResult
from flows.reporting.gather import REPORT
from flows.reporting.publish import metrics_against_champion
from flows.run import ROOT, Finished, Prepared, RunOptions, execute, prepared_run
from flows.summary import markdown
from vocabgraft.config.params import load_params
from vocabgraft.errors import VocabgraftError
from vocabgraft.printable import printable
from vocabgraft.storage.git import commit

# Prefect's limit for the key of an asset.
KEY_LENGTH = 512
RAW = Path("data/raw")
SHOWN_OF_A_COMMIT = 8


def served_name() -> str:
    """The name of a run that Prefect starts; errors in params.yaml are reported by the run itself."""
    try:
        return run_name(RunOptions())
    except VocabgraftError:
        return "build_model"


@flow(
    name="build_model",
    flow_run_name=served_name,
    persist_result=False,
    task_runner=ThreadPoolTaskRunner(max_workers=256),  # type: ignore[arg-type]
)
def build_model(
    until: str | None = None,
    only: str | None = None,
    force: bool = False,
    keep_going: bool = False,
    jobs: int | None = None,
    settings: tuple[str, ...] = (),
    wait: bool = True,
    ray: str | None = None,
) -> Any:
    """A run as a flow that can be served or deployed. It runs in the project's folder.

    Its parameters are those of `vocabgraft run`. If another run holds the workspace, it waits.
    """
    try:
        options = RunOptions(tuple(settings), until, only, force, keep_going, jobs, wait, ray)
        with prepared_run(options, get_run_logger().info) as prepared:
            return _state(_run(prepared, LogFiles(ROOT / LOGS)))
    except VocabgraftError as error:
        return Failed(message=printable(str(error)))


def run_prepared(prepared: Prepared, watch: Watch | None = None) -> Finished:
    """Run a finished plan as a flow.

    Raises:
        VocabgraftError: if the flow ended before its stages did.
    """
    finished: list[Finished] = []
    refused: list[VocabgraftError] = []
    options = prepared.options

    def body(until: str | None, only: str | None, force: bool, keep_going: bool, jobs: int) -> Any:
        try:
            finished.append(_run(prepared, watch))
        except VocabgraftError as error:
            refused.append(error)
            return Failed(message=printable(str(error)))
        return _state(finished[0])

    named = flow(
        name="build_model",
        flow_run_name=run_name(options),
        task_runner=ThreadPoolTaskRunner(max_workers=prepared.jobs),  # type: ignore[arg-type]
        persist_result=False,
        validate_parameters=False,
    )(body)
    named(options.until, options.only, options.force, options.keep_going, prepared.jobs, return_state=True)
    if refused:
        raise refused[0]
    if not finished:
        raise VocabgraftError("the flow ended before its stages did; the log above gives the reason")
    return finished[0]


def run_name(options: RunOptions) -> str:
    """A name for a run: the model's name, number of words, method, commit, and the last stage."""
    params = load_params()
    parts = [params.register_model.name]
    if words := _words(ROOT / RAW / params.validate_data.vocabulary):
        parts.append(f"{words:,} words")
    parts += [params.train_adapter.method, (commit() or "")[:SHOWN_OF_A_COMMIT]]
    parts += [f"until {options.until}"] if options.until else [f"only {options.only}"] if options.only else []
    return ", ".join(part for part in parts if part)


def _words(vocabulary: Path) -> int:
    """The number of rows in the vocabulary file; 0 if it is not a CSV file, as in another project."""
    if vocabulary.suffix != ".csv" or not vocabulary.is_file():
        return 0
    with vocabulary.open(encoding="utf-8", errors="replace", newline="") as stream:
        return max(0, sum(1 for row in csv.reader(stream) if row) - 1)


def _run(prepared: Prepared, watch: Watch | None = None) -> Finished:
    finished = execute(prepared, _run_as_tasks, str(flow_run.id), watch)
    with harmless("the artifacts of the run are not in Prefect"):
        _create_artifacts(finished)
    return finished


def _create_artifacts(finished: Finished) -> None:
    table = printable(markdown(finished.results))
    create_markdown_artifact(table, key="build-model", description="The outcome of each stage")
    if finished.told:
        create_link_artifact((ROOT / REPORT).resolve().as_uri(), key="report-page", link_text="the report")
        if compared := metrics_against_champion(finished.stages, finished.results, ROOT):
            create_markdown_artifact(
                printable(compared), key="metrics", description="This model compared with the champion"
            )


def _state(finished: Finished) -> Any:
    if finished.stopped_by is not None:
        return Cancelled(message="stopped by a signal; its processes have ended")
    if finished.failed:
        return Failed(message=f"not finished: {', '.join(finished.failed)}\n{failures(finished.results)}")
    return Completed(message="all stages are done")


def _run_as_tasks(runs: StageRuns) -> list[StageResult]:
    futures: dict[str, Any] = {}

    def submit(entry: Planned, body: Body, done: Callable[[], None]) -> None:
        name = entry.stage.name
        # These have ended; waiting for them draws the edges of the graph. A cancelled one would keep Prefect from
        # starting this stage at all.
        upstream = [futures[n] for n in entry.stage.upstream if n in futures and not _is_cancelled(futures[n])]
        named = run_stage.with_options(name=name, task_run_name=name)
        future: Any = named.submit(
            entry.stage, _Unresolved(body), wait_for=[allow_failure(other) for other in upstream], return_state=False
        )
        futures[name] = future
        future.wrapped_future.add_done_callback(lambda _: done())

    results = runs.run(submit)
    for future in futures.values():
        future.wait()
    return results


def _is_cancelled(future: Any) -> bool:
    if future.wrapped_future.exception() is not None:
        return False
    state = future.wrapped_future.result()
    return isinstance(state, State) and state.is_cancelled()


class _Unresolved:
    """Wraps a stage's body, so that Prefect does not search it for futures, copy or hash it."""

    def __init__(self, body: Body) -> None:
        self.body = body


@task(cache_policy=NO_CACHE, persist_result=False)
def run_stage(stage: Stage, wrapped: _Unresolved) -> Any:
    """One stage as a task run; the final state is named after the outcome."""
    result = wrapped.body(_TaskRunLog(stage.name, get_run_logger()))
    name, message = result.outcome.value, result.explanation() or None
    if result.outcome is Outcome.CANCELLED:
        return Cancelled(message=message)
    if not result.outcome.succeeded:
        return Failed(name=name, message=message)
    state: Any = Completed(name=name, message=message)
    if result.outcome is not Outcome.UNCHANGED:
        with harmless(f"the assets of {stage.name} are not in Prefect"):
            _emit_assets(stage, result, state)
    return state


class _TaskRunLog:
    """Sends a stage's lines to the task run's log, and its progress bar to an artifact."""

    def __init__(self, name: str, logger: "logging.Logger | logging.LoggerAdapter[Any]") -> None:
        self._name = name
        self._logger = logger
        self._artifact: Any = None

    def line(self, text: str) -> None:
        """Log a line."""
        self._logger.info(text)

    def progress(self, percent: float) -> None:
        """Show the progress."""
        if self._artifact is None:
            self._artifact = create_progress_artifact(percent, description=f"progress of {self._name}")
        else:
            update_progress_artifact(self._artifact, percent)


def asset_key(project: str, out: str) -> str:
    """The asset key of a stage's output; Prefect refuses spaces and % in it."""
    path = re.sub(r"[^\w.\-/]", "_", f"{project}/{out}")
    return f"dvc://{path}"[:KEY_LENGTH]


def _emit_assets(stage: Stage, result: StageResult, state: Any) -> None:
    """Report the outputs that a stage made to Prefect; unchanged stages make none."""
    assets = {Asset(key=asset_key(ROOT.resolve().name, out.as_posix())) for out in stage.outs}
    metadata = {"seconds": round(result.seconds, 1), "outcome": result.outcome.value, "why": result.reason}
    AssetContext(
        downstream_assets=assets,
        materialized_by="dvc",
        materialization_metadata={asset.key: metadata for asset in assets},
    ).emit_events(state)
