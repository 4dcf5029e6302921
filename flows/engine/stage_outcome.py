"""How a stage ended: its outcome and the reason, from the output of DVC and the stage."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile

from vocabgraft.printable import printable

SKIPPED = re.compile(r"^Stage '.+' didn't change, skipping")


RESTORED = re.compile(r"^Stage '.+' is cached - skipping run")


# Lines of DVC that repeat its exit code or the table, and rewritten progress bars.
NOISE = re.compile(
    r"^(To track the changes|\s+git add|To enable auto staging|\s+dvc config|Use `dvc push`|(Updating|Generating) lock"
    r"|Data and pipelines are up to date|Running stage|> |ERROR: failed to reproduce)|^\s*$"
)


BUSY = re.compile(r"is busy, it is being blocked by|Unable to acquire lock")


BLOCKER = re.compile(r"^\s*\(PID (\d+)\): (.*)")


STAGE_FAILED = re.compile(r"failed to run: .*, exited with (-?\d+)", re.DOTALL)


LOG_LINES = 15


# EX_TEMPFAIL of sysexits.h ("the user is invited to retry"): a stage uses it for temporary failures.
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
        reason: why it ran, was restored or did not run; for a failed stage the error itself.
        log: the last lines of a failed stage's output, without the error; "" for any other stage.
        saved: seconds saved because it was unchanged or restored, from its last run; None if unknown or none.
    """

    name: str
    outcome: Outcome
    seconds: float
    reason: str
    saved: float | None = None
    log: str = ""

    def __post_init__(self) -> None:
        # Consoles, pages, chat messages and stores get the stage's text from here.
        object.__setattr__(self, "reason", printable(self.reason))
        object.__setattr__(self, "log", printable(self.log))

    def explanation(self) -> str:
        """The reason, followed by the last lines of output."""
        return f"{self.reason}\n\nlast lines of its output:\n{self.log}" if self.log else self.reason


class Ending(StrEnum):
    """How one `dvc repro` of a stage ended."""

    RAN = "ran"
    SKIPPED = "skipped"
    RESTORED = "restored"
    FAILED = "failed"
    # Retried: another DVC process uses the files, or something outside of the stage ended it.
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
    """Decide how a `dvc repro` of one stage ended, and why.

    Args:
        lines: output of DVC and the stage.
        code: DVC's exit code; negative for a signal, None if its supervisor was killed.
        name: name of the stage.
        failure: the reason that the stage itself left (`tasks.support.stage.read_failure`).
    """
    if code == 0:
        if any(RESTORED.match(line) for line in lines):
            return Attempt(Ending.RESTORED)
        return Attempt(Ending.SKIPPED if any(SKIPPED.match(line) for line in lines) else Ending.RAN)
    if code is None or code < 0:
        who = "its supervisor process was killed" if code is None else f"DVC was ended by {_signal_name(-code)}"
        return Attempt(Ending.FAULT, who, last_lines(lines))
    whole = "\n".join(lines)
    if BUSY.search(whole):
        blockers = [f"process {match[1]}, {match[2]}" for line in lines if (match := BLOCKER.match(line))]
        return Attempt(Ending.BUSY, "; ".join(dict.fromkeys(blockers)) or "another DVC process holds its lock")
    statuses = STAGE_FAILED.findall(whole)
    return _failed(lines, name, failure, int(statuses[-1])) if statuses else _not_started(lines)


def _failed(lines: Sequence[str], name: str, failure: str | None, status: int) -> Attempt:
    """The attempt of a stage whose command failed: its own reason, or else the signal or exit code."""
    signalled = status < 0 or status > 128
    if signalled:
        ended_by = _signal_name(-status if status < 0 else status - 128)
        memory = "; unless somebody did that, the machine probably ran out of memory" if ended_by == "SIGKILL" else ""
        reason = f"the stage was ended by {ended_by}{memory}"
    else:
        reason = f"its command ended with exit code {status}"
    ending = Ending.FAULT if signalled or status == TEMPORARY_FAILURE else Ending.FAILED
    # DVC's last lines repeat the command, and the stage has printed its error already.
    said = list(takewhile(lambda line: not line.startswith("ERROR: failed to reproduce"), lines))
    return Attempt(ending, failure or reason, last_lines(said, f"{name}: {failure}" if failure else ""))


def _not_started(lines: Sequence[str]) -> Attempt:
    """The attempt of a stage that DVC refused to start; the reason is in DVC's own lines."""
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    rest = [line for line in lines if not line.startswith("ERROR")]
    return Attempt(Ending.FAILED, "\n".join(errors) or "DVC did not run it and gave no reason", last_lines(rest))


def last_lines(lines: Sequence[str], error: str = "") -> str:
    """The last lines of output, without DVC's noise and without the lines of `error`, which is shown separately."""
    repeated = set(error.splitlines())
    return "\n".join([line for line in lines if not NOISE.match(line) and line not in repeated][-LOG_LINES:])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
