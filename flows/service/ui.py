"""MLflow's and Prefect's pages, on this machine alone, until Ctrl-C."""

import socket
import sys
import time
from pathlib import Path

from flows.engine.signals import interrupted_by_sigterm
from flows.service.servers import HOST, SECONDS_BETWEEN_LOOKS, Server, prefect_server, require_running, started
from tasks.registry.store import HTTP, require_database, store_uri
from vocabgraft.errors import VocabgraftError
from vocabgraft.printable import print_line

MLFLOW_PORT, PREFECT_PORT = 5000, 4200
LOGS = Path("reports/servers")
ARTIFACTS = Path("mlruns")


def serve(mlflow_port: int, prefect_port: int) -> None:
    """Serve both until Ctrl-C.

    Raises:
        VocabgraftError: when one cannot be served, or ends.
    """
    try:
        servers = servers_of(mlflow_port, prefect_port)
        with interrupted_by_sigterm(), started(servers) as processes:
            for server in servers:
                print_line(f"{server.name}: {server.address}")
            print_line("Ctrl-C stops both")
            while True:
                require_running(servers, processes)
                time.sleep(SECONDS_BETWEEN_LOOKS)
    except KeyboardInterrupt:
        print_line("stopped")


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
                f"port {port} is taken ({error.strerror}); choose others with --mlflow-port and --prefect-port"
            ) from error
