"""The flow that builds, checks, evaluates and registers a model: dvc.yaml's stages under Prefect.

python -m flows.build_model --help
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.dag import Planned, Stage, changes, plan, read_dag, restore_lock_order
from flows.execution import Outcome, StageResult, reproduce
from flows.publishing import REGISTERING_STAGE, publish
from flows.registry_checks import missing_from_registry, require_registry
from flows.report import REGISTRATION_RECORD, REPORT
from flows.run_record import FlowRun
from flows.settings import edit_params
from flows.summary import markdown, model_summary, stage_table
from tasks._stage import switch_telemetry_off
from vocabgraft.artifacts import read_json
from vocabgraft.base_model import REGISTRY_PREFIX
from vocabgraft.errors import VocabgraftError
from vocabgraft.params import PARAMS_FILE, load_params

DVC_FILE = Path("dvc.yaml")
# All stages are done and the model is where it belongs, but nobody can read about it.
NO_REPORT = 3
IDENTIFYING_STAGE = "validate_data"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        The exit code: 0; 1 when a stage failed or none could start; 3 when all stages are done but their report is not.
    """
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    switch_telemetry_off()
    started = datetime.now(UTC)
    stages: list[Stage] = []
    try:
        if options.set:
            console.print(edit_params(PARAMS_FILE, options.set) or "params.yaml has these values already", markup=False)
        load_params()
        stages = read_dag(Path())
        planned = plan(stages, changes(Path()), options.until, _forced(stages, options))
        if options.plan:
            _print_plan(planned, console)
            return 0
        require_registry({entry.stage.name for entry in planned})
        results, told = _run_under_prefect(planned, stages, started, options)
    except VocabgraftError as error:
        print(f"build_model: {error}", file=sys.stderr)
        if not options.plan and DVC_FILE.is_file():
            publish(FlowRun(started, stages, [], failure=str(error)), Path())
        return 1
    console.print(stage_table(results))
    succeeded = all(result.outcome.succeeded for result in results)
    if succeeded and any(result.name == REGISTERING_STAGE for result in results):
        console.print(model_summary(stages, REGISTRATION_RECORD))
    if told:
        console.print(f"report: {REPORT}", markup=False)
    return NO_REPORT if succeeded and not told else int(not succeeded)


def run_plan(planned: Sequence[Planned], order: Sequence[str], root: Path, keep: list[StageResult]) -> Any:
    """The body of the flow: every stage a task run, started when its upstreams have ended.

    Args:
        planned: the stages in DVC's order.
        order: every stage of the DAG in DVC's order, also those that are not planned.
        root: the project's folder.
        keep: gets the results, in the order of `planned`.

    Returns:
        The flow's final state.
    """
    from prefect import allow_failure
    from prefect.artifacts import create_markdown_artifact
    from prefect.states import Completed, Failed

    outcomes: dict[str, StageResult] = {}
    lock = threading.Lock()
    futures: dict[str, Any] = {}
    task = _stage_task()
    for entry in planned:
        name = entry.stage.name
        waits = [allow_failure(futures[upstream]) for upstream in entry.stage.upstream if upstream in futures]
        named = task.with_options(name=name, task_run_name=name)
        futures[name] = named.submit(entry, str(root), _Shared(outcomes, lock), wait_for=waits)
    for future in futures.values():
        future.wait()
    restore_lock_order(root / "dvc.lock", order)
    keep.extend(outcomes[entry.stage.name] for entry in planned)
    create_markdown_artifact(markdown(keep), key="build-model", description="What became of each stage")
    failed = [result.name for result in keep if not result.outcome.succeeded]
    return Failed(message=f"not finished: {', '.join(failed)}") if failed else Completed(message="all stages are done")


class _Shared:
    """The outcomes of the stages so far, shared by the task runs' threads; Prefect need not copy or hash it."""

    def __init__(self, outcomes: dict[str, StageResult], lock: threading.Lock) -> None:
        self.outcomes = outcomes
        self.lock = lock

    def of(self, names: Sequence[str]) -> list[StageResult]:
        """The outcomes of the named stages that are part of this run."""
        with self.lock:
            return [self.outcomes[name] for name in names if name in self.outcomes]

    def add(self, result: StageResult) -> None:
        """Keep a stage's result."""
        with self.lock:
            self.outcomes[result.name] = result


def _stage_task() -> Any:
    from prefect import get_run_logger, task
    from prefect.cache_policies import NO_CACHE
    from prefect.states import Completed, Failed

    @task(cache_policy=NO_CACHE, persist_result=False)
    def run_stage(entry: Planned, root: str, shared: _Shared) -> Any:
        logger = get_run_logger()
        # Stands if something unforeseen ends this task run, so that nothing behind it runs.
        shared.add(StageResult(entry.stage.name, Outcome.FAILED, 0.0, "ended unexpectedly; the log above says why"))
        try:
            result = _run_stage(entry, Path(root), shared, logger.info)
        except VocabgraftError as error:
            result = StageResult(entry.stage.name, Outcome.FAILED, 0.0, str(error))
        shared.add(result)
        if not result.outcome.succeeded:
            return Failed(name=result.outcome.value, message=result.reason)
        return Completed(name=result.outcome.value, message=result.reason or None)

    return run_stage


def _run_stage(entry: Planned, root: Path, shared: _Shared, log: Any) -> StageResult:
    name = entry.stage.name
    upstream = shared.of(entry.stage.upstream)
    if broken := [result.name for result in upstream if not result.outcome.succeeded]:
        return StageResult(name, Outcome.NOT_READY, 0.0, f"{', '.join(broken)} did not succeed")
    started = time.perf_counter()
    moved = any(result.outcome is not Outcome.UNCHANGED for result in upstream)
    if not entry.runs or not (moved or _own_reasons(entry)):
        outcome, detail = Outcome.UNCHANGED, ""
    else:
        outcome, _, detail = reproduce(name, root, "forced" in entry.reasons, log)
    if outcome.succeeded and name == REGISTERING_STAGE and not os.environ.get("DVC_EXP_NAME"):
        outcome, detail = _verify_registration(entry.stage, root, outcome, detail, log)
    why = detail or ("" if outcome is Outcome.UNCHANGED else "; ".join(entry.reasons))
    return StageResult(name, outcome, time.perf_counter() - started, why)


def _own_reasons(entry: Planned) -> list[str]:
    return [reason for reason in entry.reasons if not reason.endswith(" runs before it")]


def _verify_registration(stage: Stage, root: Path, outcome: Outcome, detail: str, log: Any) -> tuple[Outcome, str]:
    """DVC knows the file that registration leaves, not the registry: look there, and register again if it is lost."""
    if not (missing := missing_from_registry(root / stage.outs[0])):
        return outcome, detail
    log(f"{missing}; registering it again")
    outcome, _, detail = reproduce(stage.name, root, force=True, log=log)
    return outcome, detail or "the registry had lost it"


def _run_under_prefect(
    planned: Sequence[Planned], stages: Sequence[Stage], started: datetime, options: argparse.Namespace
) -> tuple[list[StageResult], bool]:
    """Run the stages, then publish what became of them; whether that was done comes with the results."""
    # A process without a server starts a temporary one, which takes 6 to 10 s here and more on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    from prefect import flow
    from prefect.runtime import flow_run
    from prefect.task_runners import ThreadPoolTaskRunner

    results: list[StageResult] = []
    told: list[bool] = []

    @flow(
        name="build_model",
        flow_run_name=f"until {options.until}" if options.until else None,
        task_runner=ThreadPoolTaskRunner(max_workers=os.cpu_count()),  # type: ignore[arg-type]
        persist_result=False,
        validate_parameters=False,
    )
    def build_model() -> Any:
        state = run_plan(planned, [stage.name for stage in stages], Path(), results)
        told.append(publish(FlowRun(started, stages, results, prefect_run=flow_run.id), Path()))
        return state

    build_model(return_state=True)
    if not results:
        raise VocabgraftError("the flow ended before its stages did; its log above says why")
    # Prefect can fail after the last stage; the report is made all the same.
    return results, told[0] if told else publish(FlowRun(started, stages, results), Path())


def _forced(stages: Sequence[Stage], options: argparse.Namespace) -> frozenset[str]:
    if options.force:
        return frozenset(stage.name for stage in stages)
    return frozenset({IDENTIFYING_STAGE}) if base_moved(stages) else frozenset()


def base_moved(stages: Sequence[Stage]) -> bool:
    """Whether a base that may change under the same name (an alias, a folder) is another than the last run's."""
    base = load_params().base
    floating = base.model.startswith(REGISTRY_PREFIX) or Path(base.model).is_dir()
    identity = _output(stages, IDENTIFYING_STAGE, "base.json")
    if not floating or identity is None or _is_own_result(stages, base.model):
        return False
    from tasks._base import resolve_base

    return bool(resolve_base(base)[1].as_json() != read_json(identity))


def _is_own_result(stages: Sequence[Stage], model: str) -> bool:
    """Whether a registered model is what this chain made: growing on it again would find nothing to add."""
    registration = _output(stages, REGISTERING_STAGE, "registration.json")
    if registration is None or not model.startswith(REGISTRY_PREFIX):
        return False
    from tasks._registry import digest_of_registered

    return bool(digest_of_registered(model) == read_json(registration)["content_digest"])


def _output(stages: Sequence[Stage], name: str, file: str) -> Path | None:
    """A file of a stage's output, where the graph has the stage and the file is there."""
    found = next((stage.outs[0] / file for stage in stages if stage.name == name), None)
    return found if found is not None and found.is_file() else None


def _print_plan(planned: Sequence[Planned], console: Console) -> None:
    for entry in planned:
        console.print(f"{entry.stage.name}: {'runs' if entry.runs else 'unchanged'}", markup=False)
        for reason in entry.reasons:
            console.print(f"  {reason}", markup=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.build_model",
        description="Run the stages of dvc.yaml under Prefect; what did not change is not run again.",
    )
    parser.add_argument("--plan", action="store_true", help="print what would run and why, and run nothing")
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage (its upstream stages run too)")
    parser.add_argument("--force", action="store_true", help="run every stage, changed or not")
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help="edit params.yaml first and print the difference, e.g. train_adapter.epochs=2; may be repeated",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
