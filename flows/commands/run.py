"""`vocabgraft run`: the stages of dvc.yaml, with or without Prefect."""

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated

from typer import Option

from flows.commands.output import Json, Output, Quiet
from flows.console import Shown, keep_prefect_off_the_console, watching
from flows.engine.dag import Planned
from flows.engine.prefect_run import allow_temporary_server
from flows.engine.registry_state import REGISTERING_STAGE
from flows.engine.scheduler import Watch, default_jobs, last_seconds, run_in_threads
from flows.engine.workspace import MARK
from flows.reporting.gather import REGISTRATION_RECORD, REPORT
from flows.run import NO_REPORT, ROOT, SIGNALLED, Finished, Prepared, RunOptions, execute, make_plan, prepared_run
from flows.summary import failure_summary, model_summary, stage_table
from vocabgraft.printable import print_line, warn

# The table of the model needs the results of these stages.
SUMMARISED = {"validate_data", "resize_base", "evaluate_model"}
MAY_RUN = "may run"
UPPER_BOUND = "(may run: an upper bound; such a stage stays unchanged if its inputs turn out the same)"


def run(
    plan: Annotated[bool, Option("--plan", help="Print what would run and why; writes no file.")] = False,
    until: Annotated[str | None, Option(metavar="STAGE", help="Stop after this stage.")] = None,
    only: Annotated[str | None, Option(metavar="STAGE", help="Run this stage alone, on existing inputs.")] = None,
    settings: Annotated[
        list[str] | None,
        Option("--set", metavar="SECTION.KEY=VALUE", help="Change params.yaml first, e.g. seed=7; repeatable."),
    ] = None,
    force: Annotated[bool, Option("--force", help="Run every stage, changed or not.")] = False,
    keep_going: Annotated[
        bool, Option("--keep-going", help="After a failure, run the stages that do not need it.")
    ] = False,
    jobs: Annotated[int | None, Option(metavar="N", help=f"Stages at a time. Default here: {default_jobs()}.")] = None,
    no_server: Annotated[bool, Option("--no-server", help="Run without Prefect: same plan, same results.")] = False,
    ray: Annotated[
        str | None, Option(metavar="ADDRESS", help="Ray cluster for the stages whose meta names resources.")
    ] = None,
    wait: Annotated[bool, Option("--wait", help="Wait for another run in this workspace.")] = False,
    verbose: Annotated[bool, Option("--verbose", "-v", help="Print every line of every stage.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Run the stages of dvc.yaml whose inputs changed.

    Prefect records the run. Unchanged stages do not run again. Every line of a stage is in reports/logs/STAGE.log.
    """
    output = Output(as_json, quiet)
    options = RunOptions(tuple(settings or ()), until, only, force, keep_going, jobs, wait, ray)
    if plan:
        _show_plan(make_plan(options, output.line)[1], last_seconds(ROOT), output)
        return 0
    meanwhile = _ignore if no_server else _import_prefect
    with (
        output.working(),
        prepared_run(options, print_line, meanwhile) as prepared,
        watching(prepared.planned, ROOT, _shown(verbose, no_server, output)) as watch,
    ):
        finished = _run(prepared, no_server, watch, verbose)
    return _show(finished, output)


def _shown(verbose: bool, no_server: bool, output: Output) -> Shown:
    if verbose:
        # Prefect prints every line itself.
        return "every line" if no_server else "nothing"
    return "table or lines" if output.for_people else "lines"


def _run(prepared: Prepared, no_server: bool, watch: Watch, verbose: bool) -> Finished:
    if no_server:
        return execute(prepared, lambda runs: run_in_threads(runs, prepared.jobs), watch=watch)
    from flows.prefect_flow import run_prepared

    if not verbose:
        keep_prefect_off_the_console()

    # A temporary server outlives a killed flow. With this variable the next run finds it and ends it.
    os.environ[MARK] = str(ROOT.resolve())
    try:
        return run_prepared(prepared, watch)
    finally:
        del os.environ[MARK]


def _import_prefect() -> None:
    allow_temporary_server()
    importlib.import_module("flows.prefect_flow")


def _ignore() -> None:
    """Do nothing."""


def _show(finished: Finished, output: Output) -> int:
    output.show(stage_table(finished.results))
    if failed := failure_summary(finished.results):
        output.show(failed, soft_wrap=True)
    measured = {stage.name for stage in finished.stages} >= SUMMARISED
    if measured and not finished.failed and any(result.name == REGISTERING_STAGE for result in finished.results):
        output.show(model_summary(finished.stages, REGISTRATION_RECORD))
    if finished.told:
        output.line(f"report: {REPORT}")
    if output.quiet:
        for result in finished.results:
            if not result.outcome.succeeded:
                warn(f"{result.name}: {result.explanation()}")
    output.document({"stages": [asdict(result) for result in finished.results], "report": finished.told})
    return _exit_code(finished)


def _exit_code(finished: Finished) -> int:
    if finished.stopped_by is not None:
        return SIGNALLED + finished.stopped_by
    if finished.failed:
        return 1
    return 0 if finished.told else NO_REPORT


def _show_plan(planned: Sequence[Planned], took: Mapping[str, float], output: Output) -> None:
    entries = [
        {
            "stage": entry.stage.name,
            "runs": entry.runs,
            "state": _state(entry),
            "reasons": list(entry.reasons),
            "seconds_last_time": took.get(entry.stage.name),
        }
        for entry in planned
    ]
    for entry, row in zip(planned, entries, strict=True):
        name = entry.stage.name
        last = f", {took[name]:.1f} s last time" if entry.runs and name in took else ""
        output.line(f"{name}: {row['state']}{last}")
        for reason in entry.reasons:
            output.line(f"  {reason}")
    if any(row["state"] == MAY_RUN for row in entries):
        output.line(UPPER_BOUND)
    output.document(entries)


def _state(entry: Planned) -> str:
    return "runs" if entry.own else MAY_RUN if entry.behind else "unchanged"
