"""The console of a run: a live table on a terminal, plain lines elsewhere, every line with --verbose.

`reports/logs/STAGE.log` always gets every line of a stage.
"""

import logging
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.engine.dag import Planned, Stage
from flows.engine.scheduler import Watch
from flows.engine.stage_outcome import Outcome, StageResult
from flows.key_figures import key_figure
from flows.plain_console import PlainConsole
from vocabgraft.printable import print_line

Shown = Literal["table or lines", "lines", "every line", "nothing"]
LOGS = Path("reports/logs")
# A progress bar of tqdm: its description and percentage. Repetitions are bounded, because a stage may print a line of
# any length.
BAR = re.compile(r"^(?P<what>[^%|]{0,200}?):?\s{0,9}(?P<percent>\d{1,3})%\|")
WARNING = re.compile(r"^\s*warning\b", re.IGNORECASE)
TENTH = 10
# Bars that end sooner are not printed.
SECONDS_OF_LONG_WORK = 5.0
BAR_WIDTH = 20
STYLES = {
    "waiting": "dim",
    "runs": "bold",
    Outcome.COMPLETED.value: "green",
    Outcome.RESTORED.value: "green",
    Outcome.UNCHANGED.value: "dim",
    Outcome.FAILED.value: "bold red",
    Outcome.NOT_READY.value: "yellow",
    Outcome.CANCELLED.value: "yellow",
}


class LogFiles:
    """Writes every line of a stage to the stage's own file."""

    def __init__(self, folder: Path) -> None:
        """Write nothing yet."""
        self._folder = folder

    def started(self, name: str) -> None:
        """Start an empty file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{name}.log").write_text("", encoding="utf-8")

    def line(self, name: str, text: str) -> None:
        """Add a line."""
        with (self._folder / f"{name}.log").open("a", encoding="utf-8", errors="replace") as stream:
            stream.write(f"{text}\n")

    def note(self, name: str, text: str) -> None:
        """Add a line of the run."""
        self.line(name, text)

    def ended(self, result: StageResult) -> None:
        """Write nothing more."""


class AllLines:
    """Prints every line with its stage's name."""

    def started(self, name: str) -> None:
        """Print nothing; the stage's first line shows the start."""

    def line(self, name: str, text: str) -> None:
        """Print the line."""
        print_line(f"{name} | {text}")

    def note(self, name: str, text: str) -> None:
        """Print a line of the run."""
        self.line(name, text)

    def ended(self, result: StageResult) -> None:
        """Print nothing; the table at the end has the outcome."""


class PlainLines:
    """Prints a line per stage, a line per tenth of a slow progress bar, and warnings."""

    def __init__(self, stages: Sequence[Stage], root: Path) -> None:
        """Watch a run of these stages."""
        self._stages = {stage.name: stage for stage in stages}
        self._root = root
        self._bars: dict[str, _Tenths] = {}

    def started(self, name: str) -> None:
        """Print nothing; `ended` prints the line of the stage."""
        self._bars[name] = _Tenths()

    def line(self, name: str, text: str) -> None:
        """Print progress or a warning."""
        if bar := BAR.search(text):
            if progress := self._bars[name].reached(bar["what"].strip(), int(bar["percent"])):
                print_line(f"{name}: {progress}")
        elif WARNING.match(text):
            print_line(f"{name}: {text.strip()}")

    def note(self, name: str, text: str) -> None:
        """Print a line of the run."""
        print_line(f"{name}: {text}")

    def ended(self, result: StageResult) -> None:
        """Print the outcome and the stage's key metric."""
        figure = key_figure(self._stages.get(result.name), result, self._root)
        outcome = f"{result.name}: {result.outcome.value.lower()}"
        outcome += f" in {result.seconds:.1f} s" if result.outcome in (Outcome.COMPLETED, Outcome.FAILED) else ""
        print_line(f"{outcome}{f'; {figure}' if figure else ''}")


class _Tenths:
    """The last printed tenth of a progress bar."""

    def __init__(self) -> None:
        self.what, self.printed, self.since = "", 0, time.monotonic()

    def reached(self, what: str, percent: int) -> str:
        """The text to print for a bar; empty before the next tenth, and for bars that end soon."""
        if what != self.what or percent < self.printed:
            self.what, self.printed, self.since = what, 0, time.monotonic()
        tenth = percent // TENTH * TENTH
        if tenth <= self.printed or time.monotonic() - self.since < SECONDS_OF_LONG_WORK:
            return ""
        self.printed = tenth
        return f"{what} {tenth} %".strip()


@dataclass
class _Row:
    """A stage in the live table."""

    state: str = "waiting"
    started: float = 0.0
    seconds: float | None = None
    what: str = ""
    percent: float | None = None
    figure: str = ""


class LiveTable:
    """A table of all stages, redrawn as they progress."""

    def __init__(self, planned: Sequence[Planned], root: Path) -> None:
        """Watch a run of this plan."""
        self._stages = {entry.stage.name: entry.stage for entry in planned}
        self._rows = {name: _Row() for name in self._stages}
        self._root = root
        self._guard = threading.Lock()
        self._warnings: list[tuple[str, str]] = []

    def started(self, name: str) -> None:
        """Show the stage as running."""
        with self._guard:
            self._rows[name] = _Row("runs", time.monotonic())

    def line(self, name: str, text: str) -> None:
        """Update the stage's bar, or keep a warning."""
        with self._guard:
            if bar := BAR.search(text):
                self._rows[name].what, self._rows[name].percent = bar["what"].strip(), float(bar["percent"])
            elif WARNING.match(text):
                self._warnings.append((name, text.strip()))

    def note(self, name: str, text: str) -> None:
        """Show a line of the run beside the bar."""
        with self._guard:
            self._rows[name].what, self._rows[name].percent = text, None

    def ended(self, result: StageResult) -> None:
        """Show the outcome and the stage's key metric."""
        figure = key_figure(self._stages.get(result.name), result, self._root)
        with self._guard:
            self._rows[result.name] = _Row(result.outcome.value, seconds=result.seconds, figure=figure)

    @property
    def warnings(self) -> list[str]:
        """The warnings of the stages."""
        return [f"{name}: {text}" for name, text in self._warnings]

    def __rich__(self) -> RenderableType:
        """The current table."""
        table = Table(box=None, pad_edge=False)
        for heading, side in (("stage", "left"), ("state", "left"), ("", "left"), ("seconds", "right"), ("", "left")):
            table.add_column(heading, justify=side, no_wrap=True)  # type: ignore[arg-type]
        with self._guard:
            for name, row in self._rows.items():
                table.add_row(Text(name), Text(row.state, STYLES.get(row.state, "")), *self._cells(row))
        return table

    def _cells(self, row: _Row) -> tuple[RenderableType, RenderableType, RenderableType]:
        runs = row.state == "runs"
        seconds = time.monotonic() - row.started if runs else row.seconds
        # A bar without a total is animated, which shows that the stage runs.
        bar = ProgressBar(total=100 if row.percent is not None else None, completed=row.percent or 0, width=BAR_WIDTH)
        return bar if runs else "", "" if seconds is None else f"{seconds:.1f}", Text(row.figure or row.what)


class Both:
    """Calls two watches, one after the other."""

    def __init__(self, first: Watch, second: Watch) -> None:
        """Keep both in the order of the calls."""
        self._watches = (first, second)

    def started(self, name: str) -> None:
        """Call both."""
        for watch in self._watches:
            watch.started(name)

    def line(self, name: str, text: str) -> None:
        """Call both."""
        for watch in self._watches:
            watch.line(name, text)

    def note(self, name: str, text: str) -> None:
        """Call both."""
        for watch in self._watches:
            watch.note(name, text)

    def ended(self, result: StageResult) -> None:
        """Call both."""
        for watch in self._watches:
            watch.ended(result)


@contextmanager
def watching(planned: Sequence[Planned], root: Path, shown: Shown) -> Iterator[Watch]:
    """The watch of a run on this console.

    Args:
        planned: the stages.
        root: the project's folder.
        shown: what is printed; `table or lines` is a table if standard output is a terminal.
    """
    files = LogFiles(root / LOGS)
    if shown == "nothing":
        yield files
    elif shown == "every line":
        yield Both(files, AllLines())
    elif shown == "table or lines" and sys.stdout.isatty():
        table = LiveTable(planned, root)
        with Live(table, console=PlainConsole(), refresh_per_second=4, transient=True):
            yield Both(files, table)
        for warning in table.warnings:
            print_line(warning)
    else:
        yield Both(files, PlainLines([entry.stage for entry in planned], root))


def keep_prefect_off_the_console() -> None:
    """Let Prefect print only warnings; its server still gets every line."""
    from prefect.logging.handlers import PrefectConsoleHandler

    loggers = [logging.getLogger(), *map(logging.getLogger, list(logging.Logger.manager.loggerDict))]
    for handler in (handler for logger in loggers for handler in logger.handlers):
        if isinstance(handler, PrefectConsoleHandler):
            handler.setLevel(logging.WARNING)
