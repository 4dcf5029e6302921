"""How a stage ended: its outcome, and the reason, found in what DVC and the stage wrote."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile

from vocabgraft.printable import printable

SKIPPED = re.compile(r"^Stage '.+' didn't change, skipping")


RESTORED = re.compile(r"^Stage '.+' is cached - skipping run")


# What DVC says on the way, which its exit code and the table say better, and rewritten progress bars.
NOISE = re.compile(
    r"^(To track the changes|\s+git add|To enable auto staging|\s+dvc config|Use `dvc push`|(Updating|Generating) lock"
    r"|Data and pipelines are up to date|Running stage|> |ERROR: failed to reproduce)|^\s*$"
)


BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock")


BLOCKER = re.compile(r"^\s*\(PID (\d+)\): (.*)")


STAGE_FAILED = re.compile(r"failed to run: .*, exited with (-?\d+)", re.DOTALL)


LOG_LINES = 15


# sysexits.h: "the user is invited to retry", by which a stage can say that its fault may pass.
TEMPORARY_FAILURE = 75


class Outcome(StrEnum):
    """The outcome of a stage; the names are those of the Prefect states."""

    COMPLETED = "Completed"
    UNCHANGED = "Unchanged"
    RESTORED = "Restored"
    FAILED = "Failed"
    NOT_READY = "NotReady"
    CANCELLED = "Cancelled"

    @property
    def succeeded(self) -> bool:
        """Whether stages that read this one's outputs may run."""
        return self in (Outcome.COMPLETED, Outcome.UNCHANGED, Outcome.RESTORED)


@dataclass(frozen=True)
class StageResult:
    """A stage's outcome, how long it took, and why it ran or did not.

    Attributes:
        reason: why it ran, was restored or did not run; of a failed stage the error itself.
        log: the last lines of a failed stage's output, without the error; "" for any other stage.
        saved: seconds that it would have taken, by its last run, had it not been unchanged or restored; None where
            that is not known, or nothing was saved.
    """

    name: str
    outcome: Outcome
    seconds: float
    reason: str
    saved: float | None = None
    log: str = ""

    def __post_init__(self) -> None:
        # What a stage says reaches consoles, pages, chat messages and stores from here.
        object.__setattr__(self, "reason", printable(self.reason))
        object.__setattr__(self, "log", printable(self.log))

    def explanation(self) -> str:
        """The reason, then the last lines of output: what every place that names a failure shows."""
        return f"{self.reason}\n\nlast lines of its output:\n{self.log}" if self.log else self.reason


class Ending(StrEnum):
    """How one `dvc repro` of a stage ended."""

    RAN = "ran"
    SKIPPED = "skipped"
    RESTORED = "restored"
    FAILED = "failed"
    # Worth another try: another DVC is at work on these files, or something outside of the stage ended it.
    BUSY = "busy"
    FAULT = "fault"
    TIMED_OUT = "timed out"


@dataclass(frozen=True)
class Attempt:
    """One `dvc repro` of a stage: the outcome and, on failure, the reason and the last lines of output."""

    ending: Ending
    reason: str = ""
    log: str = ""


def judge(lines: Sequence[str], code: int | None, name: str, failure: str | None) -> Attempt:
    """How a `dvc repro` of one stage ended, and why: the one place where a stage's end becomes its reason.

    Args:
        lines: what DVC and the stage wrote.
        code: DVC's exit code; negative for a signal, None when the process that watched it was killed.
        name: of the stage.
        failure: what the stage itself left as its reason (`tasks.support.stage.read_failure`).
    """
    if code == 0:
        if any(RESTORED.match(line) for line in lines):
            return Attempt(Ending.RESTORED)
        return Attempt(Ending.SKIPPED if any(SKIPPED.match(line) for line in lines) else Ending.RAN)
    if code is None or code < 0:
        who = "the process that watched it was killed" if code is None else f"DVC was ended by {_signal_name(-code)}"
        return Attempt(Ending.FAULT, who, last_lines(lines))
    whole = "\n".join(lines)
    if BUSY.search(whole):
        blockers = [f"process {match[1]}, {match[2]}" for line in lines if (match := BLOCKER.match(line))]
        return Attempt(Ending.BUSY, "; ".join(dict.fromkeys(blockers)) or "another DVC process holds its lock")
    statuses = STAGE_FAILED.findall(whole)
    return _failed(lines, name, failure, int(statuses[-1])) if statuses else _not_started(lines)


def _failed(lines: Sequence[str], name: str, failure: str | None, status: int) -> Attempt:
    """The end of a stage whose command failed: its own words, else the signal or the exit code."""
    signalled = status < 0 or status > 128
    if signalled:
        ended_by = _signal_name(-status if status < 0 else status - 128)
        memory = "; if nobody did that, the machine may have run out of memory" if ended_by == "SIGKILL" else ""
        reason = f"the stage was ended by {ended_by}{memory}"
    else:
        reason = f"its command ended with exit code {status}"
    ending = Ending.FAULT if signalled or status == TEMPORARY_FAILURE else Ending.FAILED
    # What DVC says at last repeats the command; the stage printed its error, too.
    said = list(takewhile(lambda line: not line.startswith("ERROR: failed to reproduce"), lines))
    return Attempt(ending, failure or reason, last_lines(said, f"{name}: {failure}" if failure else ""))


def _not_started(lines: Sequence[str]) -> Attempt:
    """The end of a stage that DVC refused to start; DVC says why in lines of its own alone."""
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    rest = [line for line in lines if not line.startswith("ERROR")]
    return Attempt(Ending.FAILED, "\n".join(errors) or "DVC did not run it and gave no reason", last_lines(rest))


def last_lines(lines: Sequence[str], error: str = "") -> str:
    """The last lines of output, without DVC's usual ones and those of an error that is shown beside them."""
    repeated = set(error.splitlines())
    return "\n".join([line for line in lines if not NOISE.match(line) and line not in repeated][-LOG_LINES:])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
