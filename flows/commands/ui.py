"""`vocabgraft ui`: the pages of MLflow and Prefect, and one to try models on."""

from pathlib import Path
from typing import Annotated

from typer import Option

from flows.commands.output import Columns
from flows.service.ui import MLFLOW_PORT, PREFECT_PORT, TRY_PORT, serve


def ui(
    mlflow_port: Annotated[int, Option(metavar="N", help="Port of MLflow.")] = MLFLOW_PORT,
    prefect_port: Annotated[int, Option(metavar="N", help="Port of Prefect.")] = PREFECT_PORT,
    try_port: Annotated[int, Option(metavar="N", help="Port of the page to try models on.")] = TRY_PORT,
    corpus: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help="Documents to search: .txt, .csv, .tsv, .jsonl, .parquet, or a folder in BEIR's layout, up to "
            "100,000. Default: those of the held-out queries.",
        ),
    ] = None,
    column: Columns = None,
) -> None:
    """Serve the pages of MLflow and Prefect, and one to try models on, until Ctrl-C.

    The try page compares base, champion and challenger: type a query, two texts or a word. All listen on 127.0.0.1
    alone. Their logs go to reports/servers.
    """
    serve(mlflow_port, prefect_port, try_port, corpus, tuple(column or ("text",)))
