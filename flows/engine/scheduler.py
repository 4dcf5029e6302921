"""Runs the stages of a plan, each after those before it have ended; with or without Prefect."""

import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from flows.engine.dag import Planned, Stage, cached_since
from flows.engine.prefect_run import harmless
from flows.engine.registry_state import REGISTERING_STAGE, is_lost
from flows.engine.signals import stopped_by_signals
from flows.engine.stage_outcome import Attempt, Ending, Outcome, StageResult
from flows.engine.stage_run import DvcProcesses, HarmlessLog, StageLog, reproduce
from vocabgraft.errors import VocabgraftError
from vocabgraft.printable import printable, warn
from vocabgraft.storage.artifacts import write_json

# Seconds of each stage's last run here: `--plan` shows them, and a run's table shows the time saved.
HISTORY = Path(".dvc/tmp/build_model.seconds.json")
# More than the number of cores, because some stages wait (for a service, a disk, a lock). Graphs are rarely this wide;
# lower --jobs if stages are heavy.
LEAST_JOBS = 8
SECONDS_TO_RETRY, GROWTH = 2.0, 4.0
SECONDS_BUSY, LONGEST_BUSY_WAIT, SECONDS_TO_GIVE_UP = 0.5, 10.0, 3600.0
Body = Callable[[StageLog], StageResult]
# Makes a stage's outputs on another machine and pushes them to DVC's remote. Takes the stage, whether it is forced, its
# log, and a function that says whether the run is being stopped. Returns an attempt if it failed.
Elsewhere = Callable[[Stage, bool, StageLog, Callable[[], bool]], Attempt | None]


class Submit(Protocol):
    """Starts a stage's body, and calls `done` when it has ended, whatever the outcome."""

    def __call__(self, entry: Planned, body: Body, done: Callable[[], None]) -> None:
        """Start it and return."""


class Watch(Protocol):
    """Shows the progress of the stages; several threads call it."""

    def started(self, name: str) -> None:
        """A stage starts."""

    def line(self, name: str, text: str) -> None:
        """A stage wrote a line; a progress bar is one."""

    def note(self, name: str, text: str) -> None:
        """The run itself reports something about a stage."""

    def ended(self, result: StageResult) -> None:
        """A stage has ended, or was left out."""


class NoWatch:
    """Shows nothing."""

    def started(self, name: str) -> None:
        """Ignore the start."""

    def line(self, name: str, text: str) -> None:
        """Ignore the line."""

    def note(self, name: str, text: str) -> None:
        """Ignore the note."""

    def ended(self, result: StageResult) -> None:
        """Ignore the end."""


class _WatchedLog:
    """Passes a stage's output to its log and to the watch."""

    def __init__(self, name: str, log: StageLog, watch: Watch) -> None:
        self._name, self._log, self._watch = name, log, watch

    def line(self, text: str) -> None:
        """A line of the stage."""
        self._log.line(text)
        with harmless("a line of a stage's output was not shown"):
            self._watch.line(self._name, printable(text))

    def progress(self, percent: float) -> None:
        """Pass the progress to the log; the watch reads it from the line of the bar."""
        self._log.progress(percent)

    def note(self, text: str) -> None:
        """A line of the run itself."""
        self._log.line(text)
        with harmless("a note on a stage was not shown"):
            self._watch.note(self._name, printable(text))


def default_jobs() -> int:
    """The number of stages at the same time if --jobs is not given."""
    return max(LEAST_JOBS, os.cpu_count() or 1)


class StageRuns:
    """One run of a plan: the result of each stage so far, and whether a signal stopped it."""

    def __init__(
        self,
        planned: Sequence[Planned],
        root: Path,
        processes: DvcProcesses,
        jobs: int,
        keep_going: bool,
        elsewhere: Elsewhere | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._planned = planned
        self._root = root
        self._processes = processes
        self._jobs = jobs
        self._keep_going = keep_going
        self._elsewhere = elsewhere
        self._watch = watch or NoWatch()
        self._results: dict[str, StageResult] = {}
        self._guard = threading.Lock()
        self._stopping = threading.Event()
        self._before = last_seconds(root)
        self.stopped_by: int | None = None

    def run(self, submit: Submit) -> list[StageResult]:
        """Run every stage, and return the results in the order of the plan.

        SIGINT and SIGTERM end the running stages and skip the rest. They are handled only in the main thread.
        """
        waiting = {entry.stage.name: entry for entry in self._planned}
        running: set[str] = set()
        ended: SimpleQueue[str] = SimpleQueue()
        with stopped_by_signals(self._stop):
            while waiting or running:
                for name in self._ready(waiting, running):
                    entry = waiting.pop(name)
                    running.add(name)
                    submit(entry, partial(self._run_stage, entry), partial(ended.put, name))
                running.discard(ended.get())
        unexpected = "ended unexpectedly; the log above gives the reason"
        names = [entry.stage.name for entry in self._planned]
        return [self._results.get(name, StageResult(name, Outcome.FAILED, 0.0, unexpected)) for name in names]

    def _ready(self, waiting: dict[str, Planned], running: set[str]) -> list[str]:
        free = self._jobs - len(running)
        ready = [n for n, e in waiting.items() if not any(u in waiting or u in running for u in e.stage.upstream)]
        return ready[:free]

    def _stop(self, number: int) -> None:
        self.stopped_by = number
        self._stopping.set()
        self._processes.stop_all()

    def _run_stage(self, entry: Planned, log: StageLog) -> StageResult:
        name, started, log = entry.stage.name, time.perf_counter(), HarmlessLog(log)
        try:
            result = self._left_out(entry)
            if result is None:
                with harmless("the start of a stage was not shown"):
                    self._watch.started(name)
                result = self._reproduced(entry, _WatchedLog(name, log, self._watch))
        except (VocabgraftError, OSError) as error:
            result = StageResult(name, Outcome.FAILED, 0.0, str(error))
        except Exception as error:  # noqa: BLE001  a bug of the flow itself goes to the report, like any other reason
            trace = traceback.format_exc()
            result = StageResult(name, Outcome.FAILED, 0.0, f"unexpected {type(error).__name__}: {error}", log=trace)
        result = self._with_savings(replace(result, seconds=time.perf_counter() - started))
        with self._guard:
            self._results[name] = result
            if result.outcome is Outcome.COMPLETED:
                with harmless("the duration of a stage, used for forecasts, was not saved"):
                    keep_seconds(self._root, {name: result.seconds})
        with harmless("the end of a stage was not shown"):
            self._watch.ended(result)
        return result

    def _with_savings(self, result: StageResult) -> StageResult:
        took = self._before.get(result.name)
        if took is None or result.outcome not in (Outcome.UNCHANGED, Outcome.RESTORED):
            return result
        return replace(result, saved=max(took - result.seconds, 0.0))

    def _left_out(self, entry: Planned) -> StageResult | None:
        """The result of a stage that does not run (cancelled, after a failure, unchanged); None if it runs."""
        name, upstream = entry.stage.name, self._of(entry.stage.upstream)
        if self._stopping.is_set():
            return StageResult(name, Outcome.CANCELLED, 0.0, "the run was cancelled before it started")
        if broken := [result.name for result in upstream if not result.outcome.succeeded]:
            return StageResult(name, Outcome.NOT_READY, 0.0, f"{', '.join(broken)} did not succeed")
        moved = any(result.outcome is not Outcome.UNCHANGED for result in upstream)
        if not (entry.own or (entry.behind and moved)):
            lost = self._registers(entry) and is_lost(entry.stage, self._root, _ignore)
            return None if lost else StageResult(name, Outcome.UNCHANGED, 0.0, "")
        failed = [result.name for result in self._of(tuple(self._results)) if result.outcome is Outcome.FAILED]
        if failed and not self._keep_going:
            reason = f"not started after {', '.join(failed)} failed; --keep-going runs the stages that do not need it"
            return StageResult(name, Outcome.NOT_READY, 0.0, reason)
        return None

    def _of(self, names: Sequence[str]) -> list[StageResult]:
        with self._guard:
            return [self._results[name] for name in names if name in self._results]

    def _registers(self, entry: Planned) -> bool:
        return entry.stage.name == REGISTERING_STAGE and not os.environ.get("DVC_EXP_NAME")

    def _reproduced(self, entry: Planned, log: _WatchedLog) -> StageResult:
        reasons = "; ".join(entry.reasons)
        result = StageResult(entry.stage.name, Outcome.UNCHANGED, 0.0, reasons)
        if entry.runs:
            result = self._outcome(entry, self._tried(entry, "forced" in entry.own, log))
        if result.outcome.succeeded and self._registers(entry) and is_lost(entry.stage, self._root, log.note):
            result = self._outcome(entry, self._tried(entry, True, log))
            result = replace(
                result, reason=result.reason if not result.outcome.succeeded else "the registry had lost it"
            )
        return result

    def _tried(self, entry: Planned, force: bool, log: _WatchedLog) -> Attempt:
        """The last attempt at a stage: repeated while other processes hold its files, and a few times after a crash."""
        stage, faults, started, busy = entry.stage, 0, time.monotonic(), SECONDS_BUSY
        while True:
            attempt = self._attempt(stage, force, log)
            if self._stopping.is_set():
                return attempt
            if attempt.ending is Ending.BUSY and time.monotonic() - started < SECONDS_TO_GIVE_UP:
                log.note(f"waits: {attempt.reason}")
                delay, busy = busy, min(2 * busy, LONGEST_BUSY_WAIT)
            elif attempt.ending is Ending.FAULT and faults < stage.retries:
                delay, faults = SECONDS_TO_RETRY * GROWTH**faults, faults + 1
                log.note(f"{attempt.reason.splitlines()[0]}; try {faults + 1} of {stage.retries + 1} in {delay:g} s")
            else:
                return attempt
            self._stopping.wait(delay)
            if self._stopping.is_set():
                return attempt

    def _attempt(self, stage: Stage, force: bool, log: StageLog) -> Attempt:
        if self._elsewhere is None or not stage.resources:
            return reproduce(self._processes, self._root, stage.name, force, log, stage.timeout)
        if (failed := self._elsewhere(stage, force, log, self._stopping.is_set)) is not None:
            return failed
        # DVC itself pulls the outputs and writes dvc.lock, as for any result in its run cache.
        attempt = reproduce(self._processes, self._root, stage.name, False, log, stage.timeout, pull=True)
        return Attempt(Ending.RAN) if attempt.ending is Ending.RESTORED else attempt

    def _outcome(self, entry: Planned, attempt: Attempt) -> StageResult:
        name, reasons = entry.stage.name, "; ".join(entry.reasons)
        if attempt.ending is Ending.SKIPPED:
            return StageResult(name, Outcome.UNCHANGED, 0.0, "its inputs are the same after all")
        if attempt.ending is Ending.RAN:
            return StageResult(name, Outcome.COMPLETED, 0.0, reasons)
        if attempt.ending is Ending.RESTORED:
            since = cached_since(self._root, name)
            source = f"from the run cache, of {since:%Y-%m-%d %H:%M}" if since else "from DVC's cache"
            return StageResult(name, Outcome.RESTORED, 0.0, f"{source}; {reasons}")
        if self._stopping.is_set():
            return StageResult(name, Outcome.CANCELLED, 0.0, "the run was cancelled while it ran")
        return StageResult(name, Outcome.FAILED, 0.0, attempt.reason, log=attempt.log)


class NoLog:
    """Keeps nothing: without Prefect, only the watch shows a stage's lines."""

    def line(self, text: str) -> None:
        """Ignore the line."""

    def progress(self, percent: float) -> None:
        """Ignore the progress."""


def run_in_threads(runs: StageRuns, jobs: int) -> list[StageResult]:
    """Run a plan in threads, without Prefect."""
    with ThreadPoolExecutor(max_workers=jobs) as pool:

        def submit(entry: Planned, body: Body, done: Callable[[], None]) -> None:
            future: Future[StageResult] = pool.submit(body, NoLog())
            future.add_done_callback(lambda _: _ended(future, done))

        return runs.run(submit)


def _ended(future: "Future[StageResult]", done: Callable[[], None]) -> None:
    if error := future.exception():
        warn("".join(traceback.format_exception(error)))
    done()


def _ignore(_: str) -> None:
    """Say nothing."""


def last_seconds(root: Path) -> dict[str, float]:
    """The seconds of each stage's last completed run in this workspace."""
    try:
        content = json.loads((root / HISTORY).read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in content.items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):
        # It is only a forecast, so a damaged file (after a full disk, for example) is ignored.
        return {}


def keep_seconds(root: Path, seconds: dict[str, float]) -> None:
    """Record the seconds of stages, and keep those of the others."""
    write_json(root / HISTORY, last_seconds(root) | {name: round(value, 2) for name, value in seconds.items()})
