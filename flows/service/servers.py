"""Starts and ends temporary servers, each with its own process group and log."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vocabgraft.errors import VocabgraftError

HOST = "127.0.0.1"
# Importing takes a server 5 to 10 s, its first start also creates tables, and a busy machine takes several times that.
SECONDS_TO_START = 180
SECONDS_BETWEEN_LOOKS = 0.5
# A server that has not ended after this time is killed.
SECONDS_TO_END = 10.0
Process = subprocess.Popen[str]


@dataclass(frozen=True)
class Server:
    """A server to start.

    Attributes:
        name: its name in messages.
        command: its command line.
        address: URL of its pages.
        health: URL that answers once it is ready.
        log: file for its output.
        variables: environment variables in addition to those of this process.
    """

    name: str
    command: Sequence[str]
    address: str
    health: str
    log: Path
    variables: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def started(servers: Sequence[Server]) -> Iterator[list[Process]]:
    """Start the servers; the end of the block ends them and their children.

    Raises:
        VocabgraftError: if a server ends or does not answer in time.
    """
    processes: list[Process] = []
    try:
        for server in servers:
            server.log.parent.mkdir(parents=True, exist_ok=True)
            with server.log.open("w", encoding="utf-8") as log:
                processes.append(
                    subprocess.Popen(
                        server.command,
                        env=os.environ | server.variables,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        text=True,
                        # Ctrl-C must first end the processes that use the servers.
                        start_new_session=True,
                    )
                )
        deadline = time.monotonic() + SECONDS_TO_START
        for server, process in zip(servers, processes, strict=True):
            _wait_for(server, process, deadline)
        yield processes
    finally:
        for process in processes:
            _end_group(process)


def require_running(servers: Sequence[Server], processes: Sequence[Process]) -> None:
    """Raise if a server has ended."""
    for server, process in zip(servers, processes, strict=True):
        if process.poll() is not None:
            raise VocabgraftError(
                f"{server.name} ended with code {process.returncode}; {server.log} says why{_last_line(server.log)}; "
                "if its port is taken, choose another"
            )


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    said = [line.strip() for line in lines if line.strip()]
    return f": {said[-1]}" if said else ""


def answers(address: str) -> bool:
    """Whether a GET request returns status 200."""
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def prefect_server(port: int, log: Path) -> Server:
    """A Prefect server that only this machine can reach."""
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    address = f"http://{HOST}:{port}"
    return Server("Prefect", command, address, f"{address}/api/health", log)


def _wait_for(server: Server, process: Process, deadline: float) -> None:
    while not answers(server.health):
        require_running([server], [process])
        if time.monotonic() > deadline:
            raise VocabgraftError(
                f"{server.name} does not answer at {server.address} after {SECONDS_TO_START} s; {server.log} says why"
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _end_group(process: Process) -> None:
    """End a server and its children with SIGTERM, then with SIGKILL."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            continue
