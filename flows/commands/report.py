"""`vocabgraft report`: the report of the last run."""

from pathlib import Path
from typing import Annotated

from typer import Option

from flows.commands.output import Output, Quiet
from flows.engine.dag import read_dag
from flows.reporting.gather import REPORT, gather, write_report


def report(
    out: Annotated[Path, Option(help="The page; its link to the Data Docs is relative.")] = REPORT,
    quiet: Quiet = False,
) -> None:
    """Write the report of the last run: one page that opens offline."""
    path = write_report(gather(read_dag(Path()), Path()), Path(), out)
    Output(quiet=quiet).line(f"written: {path}")
