"""MLflow's and Prefect's pages, on this machine alone, until Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.registry.store import HTTP, require_database, store_uri
from vocabgraft.errors import VocabgraftError

HOST = "127.0.0.1"
MLFLOW_PORT, PREFECT_PORT = 5000, 4200
LOGS = Path("reports/servers")
ARTIFACTS = Path("mlruns")
# Each imports for 5 to 10 s, and makes its tables at its first start; a busy machine takes a multiple.
SECONDS_TO_START = 180
SECONDS_BETWEEN_LOOKS = 0.5
# Of each server, before it is killed.
SECONDS_TO_END = 10.0


@dataclass(frozen=True)
class Server:
    """A server to start: its name, its command, its pages, and what answers once it is there."""

    name: str
    command: Sequence[str]
    address: str
    health: str


def serve(mlflow_port: int, prefect_port: int) -> None:
    """Serve both until Ctrl-C.

    Raises:
        VocabgraftError: when one cannot be served, or ends.
    """
    # A service manager ends a program by this signal; what Ctrl-C does is done then too.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        servers = servers_of(mlflow_port, prefect_port)
        with started(servers) as processes:
            for server in servers:
                print(f"{server.name}: {server.address}", flush=True)
            print("Ctrl-C stops both", flush=True)
            _watch(servers, processes)
    except KeyboardInterrupt:
        print("stopped")


def servers_of(mlflow_port: int, prefect_port: int) -> list[Server]:
    """MLflow over the project's store, and Prefect.

    Raises:
        VocabgraftError: when the store is a server already, does not open, or a port is taken.
    """
    uri = store_uri()
    if uri.startswith(HTTP):
        raise VocabgraftError("MLFLOW_TRACKING_URI names a server already, which has the pages; unset it")
    require_database(uri)
    for port in (mlflow_port, prefect_port):
        _require_free(port)
    mlflow, prefect = f"http://{HOST}:{mlflow_port}", f"http://{HOST}:{prefect_port}"
    python = sys.executable
    return [
        Server(
            "MLflow",
            # One worker is enough for a person, and each costs half a gigabyte.
            [
                *(python, "-m", "mlflow", "server", "--host", HOST, "--port", str(mlflow_port), "--workers", "1"),
                # Where runs without a server put them too, so that either reads what the other wrote.
                *("--default-artifact-root", str(ARTIFACTS.resolve())),
            ],
            mlflow,
            f"{mlflow}/health",
        ),
        Server(
            "Prefect",
            [python, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(prefect_port)],
            prefect,
            f"{prefect}/api/health",
        ),
    ]


@contextmanager
def started(servers: Sequence[Server]) -> Iterator[list["subprocess.Popen[str]"]]:
    """The servers running, each in a process group of its own, and ended with their children at the end.

    Raises:
        VocabgraftError: when one ends or does not answer in time.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    processes: list[subprocess.Popen[str]] = []
    try:
        for server in servers:
            with _log(server).open("w", encoding="utf-8") as log:
                processes.append(
                    subprocess.Popen(
                        server.command,
                        # Not on the command line, where every user of the machine could read a password in it.
                        env=os.environ | {"MLFLOW_BACKEND_STORE_URI": store_uri()},
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        text=True,
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


def _end_group(process: "subprocess.Popen[str]") -> None:
    """End a server and its children: asked first, then killed."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            continue


def _wait_for(server: Server, process: "subprocess.Popen[str]", deadline: float) -> None:
    while not _answers(server.health):
        if process.poll() is not None:
            raise VocabgraftError(f"{server.name} ended with code {process.returncode}; {_log(server)} says why")
        if time.monotonic() > deadline:
            raise VocabgraftError(
                f"{server.name} does not answer at {server.address} after {SECONDS_TO_START} s; {_log(server)} says why"
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _watch(servers: Sequence[Server], processes: Sequence["subprocess.Popen[str]"]) -> None:
    while True:
        for server, process in zip(servers, processes, strict=True):
            if process.poll() is not None:
                raise VocabgraftError(f"{server.name} ended with code {process.returncode}; {_log(server)} says why")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _require_free(port: int) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((HOST, port))
        except OSError as error:
            raise VocabgraftError(
                f"port {port} is taken ({error.strerror}); choose others with --mlflow-port and --prefect-port"
            ) from error


def _log(server: Server) -> Path:
    return LOGS / f"{server.name.lower()}.log"
