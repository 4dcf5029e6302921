"""Running one stage through DVC, and saying what became of it."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

SKIPPED = re.compile(r"^Stage '.+' didn't change, skipping")
RESTORED = re.compile(r"^Stage '.+' is cached - skipping run")
# What DVC says on the way, which its exit code and the table say better, and rewritten progress bars.
NOISE = re.compile(
    r"^(To track the changes|\s+git add|To enable auto staging|\s+dvc config|Use `dvc push`|Updating lock file"
    r"|Data and pipelines are up to date|Running stage|> |ERROR: failed to reproduce)|^\s*$"
)
PROGRESS = re.compile(r"\d+%\|")
SECONDS_BETWEEN_PROGRESS = 5.0
SECONDS_TO_END = 10.0


class Outcome(StrEnum):
    """What became of a stage; the names are those of the Prefect states."""

    COMPLETED = "Completed"
    UNCHANGED = "Unchanged"
    RESTORED = "Restored"
    FAILED = "Failed"
    NOT_READY = "NotReady"

    @property
    def succeeded(self) -> bool:
        """Whether stages that read this one's outputs may run."""
        return self not in (Outcome.FAILED, Outcome.NOT_READY)


@dataclass(frozen=True)
class StageResult:
    """A stage's outcome, how long it took, and why it ran or did not."""

    name: str
    outcome: Outcome
    seconds: float
    reason: str


def reproduce(name: str, root: Path, force: bool, log: Callable[[str], None]) -> tuple[Outcome, float, str]:
    """Run `dvc repro --single-item` in a process group of its own; hand every line of it to `log`.

    Returns:
        The outcome, its seconds, and the last lines of a failure.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *(["--force"] * force), name]
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        lines = _follow(process, log)
        code = process.wait()
    except BaseException:
        end_group(process)
        raise
    seconds = time.perf_counter() - started
    if code != 0:
        return Outcome.FAILED, seconds, "\n".join(line for line in lines[-15:])
    if any(RESTORED.match(line) for line in lines):
        return Outcome.RESTORED, seconds, ""
    if any(SKIPPED.match(line) for line in lines):
        return Outcome.UNCHANGED, seconds, ""
    return Outcome.COMPLETED, seconds, ""


def environment() -> dict[str, str]:
    """The environment of a stage: this interpreter's programs first on the path, as the `cmd` lines expect."""
    programs = str(Path(sys.executable).parent)
    # Stages that run side by side share the cores, and threads that wait by spinning take time from each other: beside
    # another busy process on 2 cores an encoder did 104 and 121 texts a second sleeping, 95 and 97 spinning.
    waiting = {"OMP_WAIT_POLICY": "PASSIVE"}
    return {
        **waiting,
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }


def end_group(process: "subprocess.Popen[str]") -> None:
    """End a process and its children: asked first, then killed; DVC alone would leave the stage writing."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            continue


def _follow(process: "subprocess.Popen[str]", log: Callable[[str], None]) -> list[str]:
    lines: list[str] = []
    last_progress = time.monotonic()
    stream = process.stdout
    assert stream is not None, "Popen was given a pipe"
    # Universal newlines end a line at each carriage return too, which is how a progress bar rewrites itself.
    for raw in stream:
        line = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", raw).rstrip()
        if PROGRESS.search(line):
            if time.monotonic() - last_progress < SECONDS_BETWEEN_PROGRESS:
                continue
            last_progress = time.monotonic()
        elif SKIPPED.match(line) or RESTORED.match(line) or not NOISE.match(line):
            lines.append(line)
        else:
            continue
        log(line.lstrip())
    return lines
