"""The flow that builds, checks, evaluates and registers a model: dvc.yaml's stages under Prefect.

python -m flows.build_model --help
"""

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Mapping, Sequence

from rich.console import Console

from flows.engine.dag import Planned
from flows.engine.prefect_run import allow_temporary_server
from flows.engine.registry_state import REGISTERING_STAGE
from flows.engine.scheduler import default_jobs, run_in_threads
from flows.engine.timings import last_seconds
from flows.engine.workspace import MARK
from flows.reporting.gather import REGISTRATION_RECORD, REPORT
from flows.run import ROOT, Finished, Prepared, RunOptions, execute, make_plan, prepared_run
from flows.summary import model_summary, stage_table
from tasks.support.stage import switch_telemetry_off
from vocabgraft.errors import VocabgraftError

# All stages are done and the model is where it belongs, but nobody can read about it.
NO_REPORT = 3
# The stages whose results the last table shows; a DAG of other stages has none.
SUMMARISED = {"validate_data", "resize_base", "evaluate_model"}
# As a shell has it: 128 and the signal's number.
SIGNALLED = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        The exit code: 0; 1 when a stage failed or none could start; 3 when all stages are done but their report is not;
        130 or 143 when a signal stopped it.
    """
    given = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    switch_telemetry_off()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    try:
        options = _options(given)
        if given.plan:
            _print_plan(make_plan(options, say)[1], last_seconds(ROOT), console)
            return 0
        with prepared_run(options, say, _ignore if given.no_server else _import_prefect) as prepared:
            finished = _run(prepared, given.no_server)
    except VocabgraftError as error:
        print(f"build_model: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("build_model: stopped before the first stage", file=sys.stderr)
        return SIGNALLED + 2
    return _tell(finished, console)


def _run(prepared: Prepared, no_server: bool) -> Finished:
    if no_server:
        return execute(prepared, lambda runs: run_in_threads(runs, prepared.jobs))
    from flows.prefect_flow import run_prepared

    # A temporary server outlives a killed flow; with this in its environment the next run ends it.
    os.environ[MARK] = str(ROOT.resolve())
    try:
        return run_prepared(prepared)
    finally:
        del os.environ[MARK]


def _import_prefect() -> None:
    allow_temporary_server()
    importlib.import_module("flows.prefect_flow")


def _ignore() -> None:
    """Have nothing to do meanwhile."""


def _tell(finished: Finished, console: Console) -> int:
    console.print(stage_table(finished.results))
    measured = {stage.name for stage in finished.stages} >= SUMMARISED
    if measured and not finished.failed and any(result.name == REGISTERING_STAGE for result in finished.results):
        console.print(model_summary(finished.stages, REGISTRATION_RECORD))
    if finished.told:
        console.print(f"report: {REPORT}", markup=False)
    if finished.stopped_by is not None:
        return SIGNALLED + finished.stopped_by
    if finished.failed:
        return 1
    return 0 if finished.told else NO_REPORT


def _print_plan(planned: Sequence[Planned], took: Mapping[str, float], console: Console) -> None:
    for entry in planned:
        name = entry.stage.name
        last = f", {took[name]:.1f} s last time" if entry.runs and name in took else ""
        console.print(f"{name}: {'runs' if entry.runs else 'unchanged'}{last}", markup=False, highlight=False)
        for reason in entry.reasons:
            console.print(f"  {reason}", markup=False, highlight=False, soft_wrap=True)


def _options(given: argparse.Namespace) -> RunOptions:
    return RunOptions(
        tuple(given.set), given.until, given.only, given.force, given.keep_going, given.jobs, given.wait, given.ray
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.build_model",
        description="Run the stages of dvc.yaml under Prefect; what did not change is not run again.",
    )
    parser.add_argument("--plan", action="store_true", help="print what would run, why, and how long it took last time")
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage (its upstream stages run too)")
    parser.add_argument("--only", metavar="STAGE", help="run this stage alone, on what the others left")
    parser.add_argument("--force", action="store_true", help="run every stage of the plan, changed or not")
    parser.add_argument("--keep-going", action="store_true", help="after a failure, run all that does not need it")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help=f"stages that run at the same time (here {default_jobs()})"
    )
    parser.add_argument("--no-server", action="store_true", help="run without Prefect: same plan, states and table")
    parser.add_argument("--ray", metavar="ADDRESS", help="run stages whose meta names resources on this Ray cluster")
    parser.add_argument("--wait", action="store_true", help="wait for another run in this workspace")
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help="edit params.yaml first and print the difference, e.g. train_adapter.epochs=2; may be repeated",
    )
    return parser


if __name__ == "__main__":
    code = main()
    # All of it ends with the process; looking through Prefect's objects for garbage first takes half a second.
    gc.freeze()
    raise SystemExit(code)
