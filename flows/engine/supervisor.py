"""Starts DVC processes by fork, each under a supervisor that ends everything below it.

A killed flow cannot end its children, and a killed DVC leaves its stage running. So a supervisor stands between the
flow and DVC. If the control socket closes, the flow is gone; the kernel reports the end of DVC. In both cases the
supervisor ends all processes that still run. Importing DVC costs 0.5 s of CPU; forking a process that has already
imported it costs nothing.

The same process reads the DAG, because it has imported DVC while the flow still imports Prefect.

flows.engine.stage_run starts it as `python -P supervisor.py SOCKET LOCK`, with two inherited file descriptors.
"""

import base64
import dataclasses
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Together within the 10 s in which a cancelled run must end.
SECONDS_FOR_THE_STAGE = 3.0
SECONDS_FOR_DVC = 3.0
PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36
SECONDS_BETWEEN_LOOKS, SECONDS_FOR_A_SHORT_LOCK = 0.02, 60.0
STOP = b"stop"
# A request for the DAG and the changes, instead of dvc's command line. The answer is a last line with this prefix and
# base64, which cannot be mistaken for other output.
INSPECT = ["inspect"]
INSPECTED = "inspected:"


def main(channel: socket.socket, lock: int) -> None:
    """Fork a supervisor for each request until the flow closes the channel.

    A request is `{"arguments": [...]}` (dvc's command line or INSPECT) with two file descriptors: the output and the
    control socket. The answer is `{"pid": ...}`, the supervisor's process id, session and process group. Supervisors
    inherit the workspace lock, so it holds until the last one has ended its processes.
    """
    _import_dvc()
    # Last on the path: the project's own packages, which reading the DAG needs.
    sys.path.append(str(Path(__file__).parents[2]))
    # Nobody waits for supervisors here; the control socket tells the flow when one is done.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, 65536, 2)
        if not message:
            return
        output, control = descriptors
        pid = os.fork()
        if pid == 0:
            channel.close()
            _supervise(json.loads(message)["arguments"], output, socket.socket(fileno=control), lock)
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(json.dumps({"pid": pid}).encode())


def _import_dvc() -> None:
    # The modules that a `dvc repro` imports, from sys.modules after one. None of them starts a thread.
    modules = """
        configobj dvc.cachemgr dvc.cli.parser dvc.commands.repro dvc.data_cloud dvc.dirs dvc.parsing.context
        dvc.repo.artifacts dvc.repo.datasets dvc.repo.metrics dvc.repo.open_repo dvc.repo.params dvc.repo.plots
        dvc.repo.reproduce dvc.repo.scm_context dvc.repo.stage dvc.rwlock dvc.scm dvc.stage.cache dvc.stage.imports
        dvc.stage.loader dvc.stage.run dvc.types dvc.utils.serialize dvc.utils.strictyaml dvc_data.hashfile._progress
        dvc_data.hashfile.checkout dvc_data.hashfile.db.local dvc_data.hashfile.state dvc_data.hashfile.status
        dvc_data.hashfile.transfer dvc_data.index dvc_objects.fs.local dvc_objects.fs.memory
        fsspec.implementations.memory networkx psutil ruamel.yaml ruamel.yaml.mergevalue
    """
    for name in modules.split():
        importlib.import_module(name)
    from dvc.cli.parser import get_main_parser

    # This imports the modules of all commands.
    get_main_parser()
    # A garbage collection in a child would copy every memory page of the modules.
    gc.collect()
    gc.freeze()


def _supervise(arguments: list[str], output: int, control: socket.socket, lock: int) -> None:
    """Run DVC to its end, or end it on request or if the flow is gone; never returns."""
    os.setsid()
    _name_process(f"watch {arguments[-1]}")
    if sys.platform == "linux":
        # Orphaned descendants become children of this process, whatever their session, so it can find and end them.
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    dvc = os.fork()
    if dvc == 0:
        for descriptor in (woken, wake, control.fileno(), lock):
            os.close(descriptor)
        _become(_inspect if arguments == INSPECT else _run_dvc, arguments, output)
    # Only DVC and its descendants hold the pipe, so the pipe ends when they have all ended.
    os.close(output)
    code, told = None, False
    while code is None and not told:
        ready, _, _ = select.select([woken, control.fileno()], [], [])
        if woken in ready:
            told = signal.SIGTERM in os.read(woken, 64)
        told = told or control.fileno() in ready
        code = _reap(dvc)
    ended = _end_descendants(dvc, told)
    code = ended if code is None else code
    try:
        control.send(json.dumps({"code": code}).encode())
    except OSError:
        # The flow is gone; nobody reads the answer.
        os._exit(1)
    os._exit(0)


def _become(work: Callable[[list[str]], int], arguments: list[str], output: int) -> None:
    """Do the work with `output` as its standard output and end with its exit code; never returns."""
    import logging

    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123  a descriptor is what is wanted
        os.dup2(nothing.fileno(), 0)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.close(output)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    _name_process(f"dvc {arguments[-1]}")
    _look_at_locks_often()
    code = 255
    try:
        code = work(arguments)
    finally:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _run_dvc(arguments: list[str]) -> int:
    from dvc.cli import main as dvc

    # DVC writes this into its locks and shows it to users who run into them.
    sys.argv = ["dvc", *arguments]
    return int(dvc(arguments))


def _inspect(_: list[str]) -> int:
    from flows.engine.dag import inspect
    from vocabgraft.errors import VocabgraftError
    from vocabgraft.printable import print_line

    try:
        stages, changed = inspect(Path(), print_line)
    except VocabgraftError as error:
        answer: dict[str, Any] = {"error": str(error)}
    else:
        answer = {"stages": [dataclasses.asdict(stage) for stage in stages], "changed": changed}
    print_line(INSPECTED + base64.b64encode(json.dumps(answer, default=str).encode()).decode())
    return 0


def _look_at_locks_often() -> None:
    """Make this process check DVC's locks more often, and wait longer for the short-lived one.

    DVC checks every 0.5 s, so the last of eight stages that end together waits 4 s. DVC also gives up on the lock of
    its record of readers after 3 s; on a busy machine a stage would then fail after its work is done.
    """
    from dvc.lock import FAILED_TO_LOCK_MESSAGE, Lock, LockError

    def lock(self: Any) -> None:
        deadline = None if self._wait else time.monotonic() + SECONDS_FOR_A_SHORT_LOCK
        while True:
            try:
                self._do_lock()
                return
            except LockError as error:
                if deadline is not None and time.monotonic() > deadline:
                    raise LockError(FAILED_TO_LOCK_MESSAGE) from error
            time.sleep(SECONDS_BETWEEN_LOOKS)

    Lock.lock = lock


def _reap(dvc: int) -> int | None:
    """Reap ended children; gives DVC's exit code (negative for a signal) if DVC was among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == dvc:
            code = os.waitstatus_to_exitcode(status)


def _end_descendants(dvc: int, told: bool) -> int | None:
    """End all descendants of this process: SIGTERM first, then SIGKILL.

    The stage gets SIGTERM before DVC, so that DVC sees it fail and releases its locks.

    Returns:
        DVC's exit code, if it was still running.
    """
    started = time.monotonic()
    asked: set[int] = set()
    code = None
    while alive := _descendants():
        elapsed = time.monotonic() - started
        patient = told and elapsed < SECONDS_FOR_THE_STAGE
        for process in alive:
            if elapsed > SECONDS_FOR_THE_STAGE + SECONDS_FOR_DVC:
                _signal(process, signal.SIGKILL)
            elif process not in asked and not (patient and process == dvc):
                asked.add(process)
                _signal(process, signal.SIGTERM)
        time.sleep(0.05)
        reaped = _reap(dvc)
        code = reaped if code is None else code
    reaped = _reap(dvc)
    return reaped if code is None else code


def _descendants() -> list[int]:
    import psutil

    found = psutil.Process(os.getpid()).children(recursive=True)
    return [process.pid for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        # It ended after it was listed.
        return


def _name_process(name: str) -> None:
    """Set the name that `ps -o comm` and `top` show (15 characters); these processes share one command line."""
    if sys.platform == "linux":
        _prctl(PR_SET_NAME, name.encode()[:15])


def _prctl(option: int, argument: Any) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, argument, 0, 0, 0)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
