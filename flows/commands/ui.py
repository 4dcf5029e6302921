"""`vocabgraft ui`: the pages of MLflow and Prefect."""

from typing import Annotated

from typer import Option

from flows.service.ui import MLFLOW_PORT, PREFECT_PORT, serve


def ui(
    mlflow_port: Annotated[int, Option(metavar="N", help="Port of MLflow.")] = MLFLOW_PORT,
    prefect_port: Annotated[int, Option(metavar="N", help="Port of Prefect.")] = PREFECT_PORT,
) -> None:
    """Serve the pages of MLflow and Prefect on this machine until Ctrl-C.

    Both listen on 127.0.0.1 alone. Their logs go to reports/servers.
    """
    serve(mlflow_port, prefect_port)
