"""Runs one stage through DVC: its processes and their output."""

import base64
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter

from flows.engine import supervisor
from flows.engine.dag import Stage
from flows.engine.prefect_run import harmless
from flows.engine.stage_outcome import LOG_LINES, NOISE, Attempt, Ending, judge, last_lines
from flows.engine.workspace import MARK, end_leftovers
from tasks.support.stage import forget_failure, read_failure
from vocabgraft.errors import VocabgraftError
from vocabgraft.printable import printable

PROGRESS = re.compile(r"(?<!\d)(\d{1,3})%\|")
# Bytes; a longer line is cut into lines of this length.
LONGEST_LINE = 1 << 16
SECONDS_BETWEEN_PROGRESS = 5.0


class StageLog(Protocol):
    """Receives a stage's output while it runs."""

    def line(self, text: str) -> None:
        """Take a line."""

    def progress(self, percent: float) -> None:
        """Take the percentage of a progress bar."""


class HarmlessLog:
    """Passes printable text to a log; if the log raises an error, the stage continues without it."""

    def __init__(self, log: StageLog) -> None:
        self._log = log

    def line(self, text: str) -> None:
        """Pass on a line."""
        with harmless("a line of a stage's output was not logged"):
            self._log.line(printable(text))

    def progress(self, percent: float) -> None:
        """Pass on the progress."""
        with harmless("the progress of a stage was not logged"):
            self._log.progress(percent)


class DvcProcesses:
    """Starts `dvc` in process groups that end with this process, however it ends."""

    def __init__(self, root: Path, lock: int) -> None:
        self._root = root
        self._workspace_lock = lock
        self._guard = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._running: set[DvcRun] = set()

    def warm_up(self) -> None:
        """Start importing DVC in the background."""
        with self._guard:
            if self._process is None or self._process.poll() is not None:
                self._start_launcher()

    def start(self, arguments: Sequence[str]) -> "DvcRun":
        """Start `dvc ARGUMENTS` in the project's folder.

        Raises:
            OSError: if the processes cannot be started.
        """
        reader, writer = os.pipe()
        control, theirs = socket.socketpair()
        try:
            pid = self._request(json.dumps({"arguments": list(arguments)}).encode(), [writer, theirs.fileno()])
        except BaseException:
            os.close(reader)
            control.close()
            raise
        finally:
            os.close(writer)
            theirs.close()
        run = DvcRun(pid, reader, control)
        self._running.add(run)
        return run

    def finish(self, run: "DvcRun") -> None:
        """Close a run that has ended."""
        self._running.discard(run)
        run.close()

    def stop_all(self) -> None:
        """Ask every supervisor to end its processes; safe in a signal handler."""
        for run in tuple(self._running):
            run.stop()

    def close(self) -> None:
        """End the launcher process, which forks the others."""
        if self._channel is not None:
            self._channel.close()
        if self._process is not None:
            # It may still be importing. Its forks are not affected.
            self._process.terminate()
            self._process.wait()

    def _request(self, message: bytes, descriptors: list[int]) -> int:
        with self._guard:
            # A killed launcher is replaced; its forks keep running.
            for _ in range(2):
                if self._process is None or self._process.poll() is not None:
                    self._start_launcher()
                assert self._channel is not None, "a launcher has a channel"
                try:
                    socket.send_fds(self._channel, [message], descriptors)
                    if answer := self._channel.recv(1024):
                        return int(json.loads(answer)["pid"])
                except (BrokenPipeError, ConnectionResetError):
                    pass
                assert self._process is not None, "it was started above"
                self._process.wait()
        raise OSError("the process that starts DVC ended twice in a row; check that memory is free")

    def _start_launcher(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel, theirs = socket.socketpair()
        with theirs:
            descriptors = (theirs.fileno(), self._workspace_lock)
            self._process = subprocess.Popen(
                # By path: the project's folder may lack this package, or contain a module of the same name.
                [sys.executable, "-P", supervisor.__file__, *map(str, descriptors)],
                cwd=self._root,
                env=environment() | {MARK: str(self._root.resolve())},
                stdin=subprocess.DEVNULL,
                pass_fds=descriptors,
                start_new_session=True,
            )


class DvcRun:
    """A running `dvc`: its output, and the control socket of its supervisor."""

    def __init__(self, pid: int, output: int, control: socket.socket) -> None:
        self.pid = pid
        self.output = output
        self.control = control

    def stop(self) -> None:
        """Ask the supervisor to end it."""
        try:
            self.control.send(supervisor.STOP)
        except OSError:
            # The supervisor is gone, and its processes are ending too.
            return

    def kill(self) -> None:
        """Kill the process group at once; used if its supervisor is gone."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    def close(self) -> None:
        """Close the descriptors."""
        os.close(self.output)
        self.control.close()


def reproduce(
    processes: DvcProcesses,
    root: Path,
    name: str,
    force: bool,
    log: StageLog,
    timeout: float | None = None,
    pull: bool = False,
) -> Attempt:
    """Run `dvc repro --single-item` in a process group of its own, and send every line to `log`.

    With `pull`, results are taken from the remote's run cache if it has them.
    """
    # The stage deletes an old reason itself, but DVC may fail before it starts.
    forget_failure(root, name)
    options = [*(["--force"] * force), *(["--pull"] * pull)]
    run = processes.start(["--wait-for-lock", "repro", "--single-item", *options, name])
    try:
        lines, code, timed_out = _follow(run, log, timeout)
        if code is None:
            run.kill()
            end_leftovers(root, log.line, stage=name)
    finally:
        processes.finish(run)
    if timed_out:
        limit = f"stopped after its timeout of {timeout:g} s (meta: timeout_s in dvc.yaml)"
        return Attempt(Ending.TIMED_OUT, limit, last_lines(lines))
    return judge(lines, code, name, read_failure(root, name))


class Inspection:
    """Reads the DAG and the changes in another process, while this one does something else."""

    def __init__(self, processes: DvcProcesses) -> None:
        self._processes = processes
        # In a thread, because starting waits for the import of DVC.
        self._starting = ThreadPoolExecutor(1)
        self._started = self._starting.submit(processes.start, supervisor.INSPECT)

    @property
    def pid(self) -> int:
        """Process id of the reader's supervisor, which is also the process group."""
        return self._started.result().pid

    def result(self, say: Callable[[str], None]) -> tuple[list[Stage], dict[str, list[str]]]:
        """Wait for the result of `flows.engine.dag.inspect`.

        Raises:
            VocabgraftError: as for `flows.engine.dag.inspect`, or if the process was ended.
            OSError: if the process cannot be started.
        """
        with self._starting:
            run = self._started.result()
        try:
            lines, _, _ = _follow(run, _Said(say), None)
        finally:
            self._processes.finish(run)
        answers = [line for line in lines if line.startswith(supervisor.INSPECTED)]
        if not answers:
            tail = "\n".join(lines[-LOG_LINES:])
            raise VocabgraftError(
                f"the process that reads dvc.yaml ended without an answer; run again\n{tail}".rstrip()
            )
        answer = json.loads(base64.b64decode(answers[0].removeprefix(supervisor.INSPECTED)))
        if "error" in answer:
            raise VocabgraftError(answer["error"])
        return TypeAdapter(list[Stage]).validate_python(answer["stages"]), answer["changed"]


class _Said:
    """Passes on a process's lines, except for its answer."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def line(self, text: str) -> None:
        """Pass on a line."""
        if not text.startswith(supervisor.INSPECTED):
            self._say(text)

    def progress(self, percent: float) -> None:
        """Ignore it: reading has no progress."""


def environment() -> dict[str, str]:
    """The environment of a stage, with this interpreter's programs first on the path, as `cmd` lines expect."""
    programs = str(Path(sys.executable).parent)
    # Parallel stages share the cores, and threads that spin while they wait take time from each other. Beside another
    # busy process on 2 cores, an encoder did 104 and 121 texts per second with sleeping threads, 95 and 97 with
    # spinning ones.
    waiting = {"OMP_WAIT_POLICY": "PASSIVE"}
    return {
        **waiting,
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONUNBUFFERED": "1",
    }


def _follow(run: DvcRun, log: StageLog, timeout: float | None) -> tuple[list[str], int | None, bool]:
    """Read the output of DVC and the stage until both have ended.

    Returns:
        The lines, DVC's exit code (None if its supervisor was killed), and whether the timeout was reached.
    """
    lines = _Lines(log)
    deadline = None if timeout is None else time.monotonic() + timeout
    timed_out = False
    while True:
        remaining = None if deadline is None or timed_out else max(deadline - time.monotonic(), 0.0)
        ready, _, _ = select.select([run.output, run.control.fileno()], [], [], remaining)
        if not ready:
            timed_out = True
            run.stop()
        if run.output in ready and (data := os.read(run.output, 65536)):
            lines.add(data)
        elif run.control.fileno() in ready:
            # All writers have ended, so the pipe has only the rest.
            answer = _receive(run.control)
            code: int | None = json.loads(answer)["code"] if answer else None
            if code is None:
                run.kill()
            while data := os.read(run.output, 65536):
                lines.add(data)
            return lines.end(), code, timed_out
        elif run.output in ready:
            # The pipe has ended before the supervisor's answer; wait for the answer.
            select.select([run.control], [], [])


def _receive(control: socket.socket) -> bytes:
    try:
        return control.recv(1024)
    except ConnectionResetError:
        return b""


class _Lines:
    """Splits output into lines and passes them on at once; a progress bar only every few seconds."""

    def __init__(self, log: StageLog) -> None:
        self._log = log
        self._open = b""
        self._lines: list[str] = []
        self._last_progress = time.monotonic()

    def add(self, data: bytes) -> None:
        """Take bytes that were read."""
        # A carriage return ends a line too; progress bars use it to rewrite themselves.
        *whole, self._open = (self._open + data).replace(b"\r", b"\n").split(b"\n")
        if len(self._open) > LONGEST_LINE:
            whole, self._open = [*whole, self._open], b""
        for raw in whole:
            for start in range(0, max(len(raw), 1), LONGEST_LINE):
                self._take(raw[start : start + LONGEST_LINE])

    def end(self) -> list[str]:
        """All lines, with noise but without progress bars."""
        if self._open:
            self._take(self._open)
        return self._lines

    def _take(self, raw: bytes) -> None:
        line = printable(raw.decode(errors="replace")).rstrip()
        if bar := PROGRESS.search(line):
            if time.monotonic() - self._last_progress < SECONDS_BETWEEN_PROGRESS:
                return
            self._last_progress = time.monotonic()
            self._log.progress(float(bar[1]))
        else:
            self._lines.append(line)
        if not NOISE.match(line):
            self._log.line(line.lstrip())
