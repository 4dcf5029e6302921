"""Several processes that train together, started and ended from one.

Each is told its place by the variables that torchrun sets, so a process that torchrun started, on this or another
machine, is one of them too.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from vocabgraft.errors import VocabgraftError

LAUNCHER = "VOCABGRAFT_LAUNCHER"
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_END = 5.0


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is; 0 writes what is kept."""
    return int(os.environ.get("RANK", "0"))


def is_worker() -> bool:
    """Whether this process is one of several that were started to train together."""
    return "RANK" in os.environ


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run `python ARGUMENTS` as so many processes and wait for them; when one fails, or this one is ended, all end.

    Raises:
        VocabgraftError: for more processes than processors, or when one fails.
    """
    _require_room(processes)
    with _ended_by_signals():
        started: list[subprocess.Popen[bytes]] = []
        try:
            port = _free_port()
            for number in range(processes):
                command = [sys.executable, *arguments]
                started.append(subprocess.Popen(command, env=_environment(number, processes, port)))
            _wait(started)
        finally:
            _end(started)


def enter() -> None:
    """Called by a started process: it ends when its launcher is gone, and only the first one speaks."""
    if rank():
        # What the first one says on the way, this one would say again; errors are said by each.
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    launcher = os.environ.get(LAUNCHER)
    if launcher:
        threading.Thread(target=_end_with, args=(int(launcher),), daemon=True).start()


def leave() -> None:
    """Called by a started process that is done: nobody waits for it any more."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _require_room(processes: int) -> None:
    import torch

    gpus = torch.cuda.device_count()
    room, what = (gpus, "GPUs") if gpus else (os.cpu_count() or 1, "cores")
    if processes > room:
        raise VocabgraftError(
            f"train_adapter.launcher.processes is {processes}, and this machine has {room} {what}; allowed: 1 to {room}"
        )


def _environment(number: int, processes: int, port: int) -> dict[str, str]:
    # The same code as here, also where the working folder is another one.
    root = str(Path(__file__).parent.parent)
    threads = max(1, (os.cpu_count() or 1) // processes)
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        LAUNCHER: str(os.getpid()),
    }


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait(started: Sequence["subprocess.Popen[bytes]"]) -> None:
    while True:
        codes = [process.poll() for process in started]
        for number, code in enumerate(codes):
            if code:
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise VocabgraftError(
                    f"process {number} of {len(started)} {how}, and the others were stopped; what it said is above"
                )
        if all(code == 0 for code in codes):
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _end(started: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ask, wait, then kill."""
    running = [process for process in started if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + SECONDS_TO_END
    for process in running:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Within the block, being asked to end is an exception, so that what was started is ended too."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)
