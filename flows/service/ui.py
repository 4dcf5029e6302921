"""The pages of MLflow, Prefect and the try page, on this machine alone, until Ctrl-C or SIGTERM."""

import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from flows.service.servers import HOST, SECONDS_BETWEEN_LOOKS, Server, prefect_server, require_running, started
from tasks.registry.store import HTTP, require_database, store_uri
from vocabgraft.errors import VocabgraftError
from vocabgraft.planning.corpus import find_files
from vocabgraft.printable import print_line

MLFLOW_PORT, PREFECT_PORT, TRY_PORT = 5000, 4200, 8500
LOGS = Path("reports/servers")
ARTIFACTS = Path("mlruns")


def serve(mlflow_port: int, prefect_port: int, try_port: int, corpus: Path | None, columns: Sequence[str]) -> None:
    """Serve all until Ctrl-C or SIGTERM.

    Args:
        mlflow_port: of MLflow.
        prefect_port: of Prefect.
        try_port: of the try page.
        corpus: the documents that the try page searches; by default those of the held-out queries.
        columns: of a table's texts.

    Raises:
        VocabgraftError: when one cannot be served, or ends.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if corpus is not None:
            find_files([corpus])
        servers = [*servers_of(mlflow_port, prefect_port), try_page(try_port, corpus, columns)]
        with started(servers) as processes:
            for server in servers:
                print_line(f"{server.name}: {server.address}")
            print_line("Ctrl-C stops all")
            while True:
                require_running(servers, processes)
                time.sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        print_line("stopped")


def _interrupt(*_: object) -> None:
    # Not by raising SIGINT: a shell starts background jobs with SIGINT ignored.
    raise KeyboardInterrupt


def try_page(port: int, corpus: Path | None, columns: Sequence[str]) -> Server:
    """The page to type a query in.

    Raises:
        VocabgraftError: when the port is taken.
    """
    _require_free(port)
    command = [sys.executable, "-m", "flows.try_page.app", "--port", str(port)]
    command += ["--corpus", str(corpus)] if corpus else []
    command += [word for column in columns for word in ("--column", column)]
    address = f"http://{HOST}:{port}"
    return Server("Try it", command, address, f"{address}/health", LOGS / "try_page.log")


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
    mlflow = f"http://{HOST}:{mlflow_port}"
    return [
        Server(
            "MLflow",
            # One worker is enough for a person, and each costs half a gigabyte.
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(mlflow_port)),
                # Runs without a server put artifacts there too, so that either reads what the other wrote.
                *("--workers", "1", "--default-artifact-root", str(ARTIFACTS.resolve())),
            ],
            mlflow,
            f"{mlflow}/health",
            LOGS / "mlflow.log",
            # Not on the command line, where every user of the machine could read a password in it.
            {"MLFLOW_BACKEND_STORE_URI": uri},
        ),
        prefect_server(prefect_port, LOGS / "prefect.log"),
    ]


def _require_free(port: int) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((HOST, port))
        except OSError as error:
            raise VocabgraftError(
                f"port {port} is taken ({error.strerror}); choose others with --mlflow-port, --prefect-port, --try-port"
            ) from error
