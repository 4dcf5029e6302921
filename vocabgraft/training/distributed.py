"""Trains in several processes, on one machine or on several.

The variables of torchrun give each process its rank, so a process that torchrun started, on this or another machine,
can take part.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from vocabgraft.errors import VocabgraftError

LAUNCHER = "VOCABGRAFT_LAUNCHER"
# Set if a stage runs on several machines that share no files: their number, the index of this one, and the address at
# which the first one listens, HOST:PORT.
NODES, NODE, RENDEZVOUS = "VOCABGRAFT_NODES", "VOCABGRAFT_NODE", "VOCABGRAFT_RENDEZVOUS"
LOOPBACK = "127.0.0.1"
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_END = 5.0


def world_size() -> int:
    """The number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The rank of this process; rank 0 writes the results."""
    return int(os.environ.get("RANK", "0"))


def nodes() -> int:
    """The number of machines without shared files on which this stage runs."""
    return int(os.environ.get(NODES, "1"))


def writes() -> bool:
    """Whether this process writes the stage's output: the first of all, or of its machine if they share no files."""
    return (int(os.environ.get("LOCAL_RANK", "0")) if nodes() > 1 else rank()) == 0


def is_worker() -> bool:
    """Whether this process is one of several that train together."""
    return "RANK" in os.environ


def launch(arguments: Sequence[str], processes: int) -> None:
    """Run `python ARGUMENTS` in this many processes and wait; if one fails, or this one is ended, all end.

    With several machines, `processes` counts those of all machines, and this call starts those of this machine.

    Raises:
        VocabgraftError: for more processes than processors, a number that the machines cannot share equally, or if one
            process fails.
    """
    here = _share(processes)
    _require_room(here)
    first = here * int(os.environ.get(NODE, "0"))
    with _ended_by_signals(), _meeting_place(processes) as place:
        started: list[subprocess.Popen[bytes]] = []
        try:
            shared = _environment(processes, here, place)
            for number in range(here):
                own = {"RANK": str(first + number), "LOCAL_RANK": str(number)}
                started.append(subprocess.Popen([sys.executable, *arguments], env=shared | own))
            _wait(started, first)
        finally:
            _end(started)


def enter() -> None:
    """Set up a started process: it ends when its launcher is gone, and only the first one prints progress."""
    if rank():
        # This process would repeat what the first one prints; every process prints its errors.
        sys.stdout.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    launcher = os.environ.get(LAUNCHER)
    if launcher:
        threading.Thread(target=_end_with, args=(int(launcher),), daemon=True).start()


def leave() -> None:
    """End a started process cleanly, since nobody waits for it any more."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _share(processes: int) -> int:
    """The number of processes on this machine."""
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
            f"has {room} {what}; allowed: 1 to {room} per machine; the machines of a cluster share them with "
            "meta.resources.nodes in dvc.yaml and --ray"
        )


@contextmanager
def _meeting_place(processes: int) -> Iterator[dict[str, str]]:
    """The rendezvous of the processes, as the variables that torch reads.

    Several machines meet at an address of the first one. On one machine this process holds the store itself, like
    torchrun's agent: a store that torch opens in the first process listens on every interface.
    """
    if address := os.environ.get(RENDEZVOUS):
        host, _, port = address.rpartition(":")
        yield {"MASTER_ADDR": host, "MASTER_PORT": port}
        return
    import torch.distributed

    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port = listener.getsockname()[1]
        # The store closes it.
        listening = listener.detach()
    # PyTorch documents this name but does not list it in `__all__`.
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        LOOPBACK, port, processes, is_master=True, wait_for_workers=False, use_libuv=True, master_listen_fd=listening
    )
    yield {
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    # The store closes with its last reference.
    del store


def _environment(processes: int, here: int, place: Mapping[str, str]) -> dict[str, str]:
    """The environment of all processes of this machine."""
    # Import the same code as here, even if the working folder is another one.
    root = str(Path(__file__).parents[2])
    threads = max(1, (os.cpu_count() or 1) // here)
    return {
        "OMP_NUM_THREADS": str(threads),
        **_interfaces(place["MASTER_ADDR"], int(place["MASTER_PORT"])),
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(here),
        **place,
        LAUNCHER: str(os.getpid()),
    }


def _interfaces(host: str, port: int) -> dict[str, str]:
    """The network interface over which this machine reaches the first one; the loopback interface for one machine.

    By default the libraries use the interface of the host name, which may be open to a network, and which Debian's
    /etc/hosts maps to a loopback address.
    """
    import psutil

    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        # Sends nothing.
        probe.connect(address)
        own = probe.getsockname()[0]
    found = [name for name, of in psutil.net_if_addrs().items() if any(entry.address == own for entry in of)]
    return {"GLOO_SOCKET_IFNAME": found[0], "NCCL_SOCKET_IFNAME": found[0]} if found else {}


def _wait(started: Sequence["subprocess.Popen[bytes]"], first: int) -> None:
    while True:
        codes = [process.poll() for process in started]
        for number, code in enumerate(codes, start=first):
            if code:
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise VocabgraftError(
                    f"process {number} of {len(started) * nodes()} {how}, and the others were stopped; its output is "
                    "above"
                )
        if all(code == 0 for code in codes):
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _end(started: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Ask the processes to end, wait, then kill them."""
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
    """Within the block, a request to end raises an exception, so that started processes are ended too."""

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
