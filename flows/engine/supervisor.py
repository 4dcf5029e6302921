"""Processes for DVC: forked from one that has imported it, each watched by a supervisor that ends everything under it.

A flow that is killed cannot end its children, and DVC that is killed leaves its stage writing. So between the flow and
DVC stands a supervisor: it learns from the closed control socket that the flow is gone and from the kernel that DVC is,
and then ends whatever still runs. Importing DVC takes half a second of a core, a fork of what has it none.

The same process reads the DAG, since it has what that takes while the flow still imports Prefect.

Started by flows.engine.stage_run as `python -P supervisor.py SOCKET LOCK`, with two inherited file descriptors.
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

# All of it within the ten seconds in which a cancelled run has to be over.
SECONDS_FOR_THE_STAGE = 3.0
SECONDS_FOR_DVC = 3.0
PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 15, 36
SECONDS_BETWEEN_LOOKS, SECONDS_FOR_A_SHORT_LOCK = 0.02, 60.0
STOP = b"stop"
# Instead of dvc's command line: the DAG and what changed, in a last line that begins so and goes on in base64, whose
# letters no reader of output takes for anything else.
INSPECT = ["inspect"]
INSPECTED = "inspected:"


def main(channel: socket.socket, lock: int) -> None:
    """Fork a supervisor for each request until the flow closes the channel.

    A request is `{"arguments": [...]}`, dvc's command line or INSPECT, with two file descriptors: where it writes, and
    the control socket. The answer is `{"pid": ...}`, the supervisor's, which is also its session and process group. The
    workspace lock is inherited, so that it holds until the last supervisor has ended what it watches.
    """
    _import_dvc()
    # Behind everything else: the project's own packages, wherever they are installed, for what reads the DAG.
    sys.path.append(str(Path(__file__).parents[2]))
    # The supervisors are not waited for; whoever asked knows from the control socket when one is done.
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
    # What a `dvc repro` imports on its way, as seen in sys.modules after one; nothing here starts a thread.
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

    # It imports every command's module.
    get_main_parser()
    # A collection in a child would touch, and so copy, every page of the modules.
    gc.collect()
    gc.freeze()


def _supervise(arguments: list[str], output: int, control: socket.socket, lock: int) -> None:
    """Run DVC to its end, or end it when told to or left alone; never returns."""
    os.setsid()
    _name_process(f"watch {arguments[-1]}")
    if sys.platform == "linux":
        # Orphans below become this process's children, whatever session they went to, and can be found and ended.
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
    # Only DVC and what is under it hold the pipe, so that its end is the end of all of them.
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
        # The flow is gone: nobody is left to tell.
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

    # DVC writes it into its locks, as what a user who meets them is told.
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
    """Let this process wait for DVC's locks in short steps, and for the short-lived ones too.

    DVC looks every half second: of eight stages that end together the last then waits four. And it gives up on the lock
    of its record of readers after three seconds, which on a busy machine fails a stage that has done its work.
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
    """Collect every child that has ended; DVC's exit code, negative for a signal, where it was among them."""
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
    """End everything below this process: asked first, then killed.

    The stage is asked before DVC is, so that DVC sees it fail, and lets go of its locks and of a half-written file.

    Returns:
        DVC's exit code, where it was still running.
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
        # It ended between being listed and being asked.
        return


def _name_process(name: str) -> None:
    """What `ps -o comm` and `top` show, up to 15 characters; all of these processes have one command line."""
    if sys.platform == "linux":
        _prctl(PR_SET_NAME, name.encode()[:15])


def _prctl(option: int, argument: Any) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, argument, 0, 0, 0)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
