"""Trains in several processes, on one machine or on several.

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
# Set where a stage runs on several machines that share no files: how many they are, which of them this one is, and
# where the first one listens, HOST:PORT.
NODES, NODE, RENDEZVOUS = "VOCABGRAFT_NODES", "VOCABGRAFT_NODE", "VOCABGRAFT_RENDEZVOUS"
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_END = 5.0


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is; 0 writes what is kept."""
    return int(os.environ.get("RANK", "0"))


def nodes() -> int:
    """On how many machines that share no files this stage runs."""
    return int(os.environ.get(NODES, "1"))


def writes() -> bool:
    """Whether this process writes the stage's output: the first of all, or of its machine where they share no files."""
    return (int(os.environ.get("LOCAL_RANK", "0")) if nodes() > 1 else rank()) == 0


def is_worker() -> bool:
    """Whether this process is one of several that were started to train together."""
    return "RANK" in os.environ


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run `python ARGUMENTS` as so many processes and wait for them; when one fails, or this one is ended, all end.

    Where the stage runs on several machines these are the processes of all of them, and this starts its machine's.

    Raises:
        VocabgraftError: for more processes than processors, for processes that the machines cannot share equally, or
            when one fails.
    """
    here = _share(processes)
    _require_room(here)
    first = here * int(os.environ.get(NODE, "0"))
    with _ended_by_signals():
        started: list[subprocess.Popen[bytes]] = []
        try:
            shared = _environment(processes, here)
            for number in range(here):
                own = {"RANK": str(first + number), "LOCAL_RANK": str(number)}
                started.append(subprocess.Popen([sys.executable, *arguments], env=shared | own))
            _wait(started, first)
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


def _share(processes: int) -> int:
    """How many of the processes are this machine's."""
    if processes % nodes():
        raise VocabgraftError(
            f"train_adapter.launcher.processes is {processes}, and the stage runs on {nodes()} machines "
            f"(meta.resources.nodes in dvc.yaml), which share them equally; give a multiple of {nodes()}"
        )
    return processes // nodes()


def _require_room(processes: int) -> None:
    import torch

    gpus = torch.cuda.device_count()
    room, what = (gpus, "GPUs") if gpus else (os.cpu_count() or 1, "cores")
    if processes > room:
        raise VocabgraftError(
            f"train_adapter.launcher.processes is {processes * nodes()}, {processes} of them on this machine, which "
            f"has {room} {what}; allowed: 1 to {room} a machine; the machines of a cluster share them with "
            "meta.resources.nodes in dvc.yaml and --ray"
        )


def _environment(processes: int, here: int) -> dict[str, str]:
    """What all processes of this machine are told."""
    # The same code as here, also where the working folder is another one.
    root = str(Path(__file__).parents[2])
    threads = max(1, (os.cpu_count() or 1) // here)
    address = os.environ.get(RENDEZVOUS) or f"127.0.0.1:{_free_port()}"
    host, _, port = address.rpartition(":")
    return {
        "OMP_NUM_THREADS": str(threads),
        **(_interfaces(host, int(port)) if nodes() > 1 else {}),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(here),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
        LAUNCHER: str(os.getpid()),
    }


def _interfaces(host: str, port: int) -> dict[str, str]:
    """The network interface by which this machine reaches the first one.

    By themselves the libraries take that of the machine's name, which Debian's /etc/hosts gives a loopback address.
    """
    import psutil

    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        # It sends nothing.
        probe.connect(address)
        own = probe.getsockname()[0]
    found = [name for name, of in psutil.net_if_addrs().items() if any(entry.address == own for entry in of)]
    return {"GLOO_SOCKET_IFNAME": found[0], "NCCL_SOCKET_IFNAME": found[0]} if found else {}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait(started: Sequence["subprocess.Popen[bytes]"], first: int) -> None:
    while True:
        codes = [process.poll() for process in started]
        for number, code in enumerate(codes, start=first):
            if code:
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise VocabgraftError(
                    f"process {number} of {len(started) * nodes()} {how}, and the others were stopped; what it said is "
                    "above"
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
