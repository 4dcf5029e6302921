"""Serves the pages of MLflow and Prefect and the try page to this machine, until Ctrl-C or SIGTERM."""

import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from flows.engine.signals import interrupted_by_sigterm
from flows.service.servers import HOST, SECONDS_BETWEEN_LOOKS, Server, prefect_server, require_running, started
from tasks.registry.store import HTTP, require_database, store_uri
from vocabgraft.errors import VocabgraftError
from vocabgraft.planning.corpus import find_files
from vocabgraft.printable import print_line

MLFLOW_PORT, PREFECT_PORT, TRY_PORT = 5000, 4200, 8500
LOGS = Path("reports/servers")
ARTIFACTS = Path("mlruns")


def serve(mlflow_port: int, prefect_port: int, try_port: int, corpus: Path | None, columns: Sequence[str]) -> None:
    """Serve all pages until Ctrl-C or SIGTERM.

    Args:
        mlflow_port: port of MLflow.
        prefect_port: port of Prefect.
        try_port: port of the try page.
        corpus: documents that the try page searches; by default those of the held-out queries.
        columns: text columns, if the corpus is a table.

    Raises:
        VocabgraftError: if a server cannot start, or ends.
    """
    try:
        if corpus is not None:
            find_files([corpus])
        servers = [*servers_of(mlflow_port, prefect_port), try_page(try_port, corpus, columns)]
        with interrupted_by_sigterm(), started(servers) as processes:
            for server in servers:
                print_line(f"{server.name}: {server.address}")
            print_line("Ctrl-C stops all of them")
            while True:
                require_running(servers, processes)
                time.sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        print_line("stopped")


def try_page(port: int, corpus: Path | None, columns: Sequence[str]) -> Server:
    """The server of the try page, which searches with a typed query.

    Raises:
        VocabgraftError: if the port is taken.
    """
    _require_free(port)
    command = [sys.executable, "-m", "flows.try_page.app", "--port", str(port)]
    command += ["--corpus", str(corpus)] if corpus else []
    command += [word for column in columns for word in ("--column", column)]
    address = f"http://{HOST}:{port}"
    return Server("Try it", command, address, f"{address}/health", LOGS / "try_page.log")


def servers_of(mlflow_port: int, prefect_port: int) -> list[Server]:
    """The servers of MLflow, on the project's store, and of Prefect.

    Raises:
        VocabgraftError: if the store is a server itself or does not open, or if a port is taken.
    """
    uri = store_uri()
    if uri.startswith(HTTP):
        raise VocabgraftError(
            "MLFLOW_TRACKING_URI is a server, which has the pages itself; open them there, or unset it"
        )
    require_database(uri)
    for port in (mlflow_port, prefect_port):
        _require_free(port)
    mlflow = f"http://{HOST}:{mlflow_port}"
    return [
        Server(
            "MLflow",
            # One worker is enough for one person, and each takes half a gigabyte.
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(mlflow_port)),
                # Runs without a server put artifacts there too, so both find all artifacts.
                *("--workers", "1", "--default-artifact-root", str(ARTIFACTS.resolve())),
            ],
            mlflow,
            f"{mlflow}/health",
            LOGS / "mlflow.log",
            # Not on the command line, where every user of the machine could read the URI's password.
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
