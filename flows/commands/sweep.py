"""`vocabgraft sweep`: a grid of parameters."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from flows.commands.output import Json, Output, Quiet
from flows.engine.prefect_run import recorded
from flows.sweep.grid import read_sweep
from flows.sweep.sweep import run_sweep, table


def sweep(
    file: Annotated[Path, Argument(metavar="SWEEP.YAML", help="The parameters to try, and the metric that decides.")],
    jobs: Annotated[int, Option(metavar="N", min=1, help="Points at a time on this machine.")] = 2,
    ray: Annotated[
        str | None, Option(metavar="ADDRESS", help="Run the points on this Ray cluster (extra: cluster).")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Run a grid of parameters, each point in a copy of the project.

    Nothing is registered. The table goes to reports/, and the best point on the validation split is marked.
    """
    output = Output(as_json, quiet)
    asked = read_sweep(file)
    with output.working():
        done = recorded("sweep", lambda: run_sweep(asked, file, jobs, ray))
    output.show(table(done.results, asked, done.best))
    if done.best is not None:
        output.line(f"best: vocabgraft run {done.best.point.as_options()}")
    output.document(done.rows)
    return done.exit_code
