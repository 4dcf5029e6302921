"""Logs the table of a sweep to MLflow, and to Prefect if the sweep is a flow run."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flows.reporting.numbers import markdown_table
from flows.sweep.grid import SweepParams
from vocabgraft.printable import printable
from vocabgraft.storage.artifacts import digest_of

Row = Mapping[str, Any]
DIGEST_TAG, PARENT_TAG = "vocabgraft.sweep", "mlflow.parentRunId"
TABLE = "sweep.json"
# MLflow's limit for a parameter, in characters.
VALUE_LENGTH = 6000


def log_to_mlflow(name: str, rows: Sequence[Row], sweep: SweepParams) -> None:
    """Log a run with the table and the best point's metric, with a child run per point; nothing is registered.

    The same table is logged only once.

    Args:
        name: name of the sweep.
        rows: one per point: its parameters, the metric (None if it failed), `seconds`, `best`, `reason`, `digest`.
        sweep: the sweep.

    Raises:
        VocabgraftError: if the store cannot be reached or refuses the table.
    """
    from tasks.registry.lookup import connect, experiment_id, metric_name, store_errors

    figure = metric_name(sweep.figure.name)
    content = digest_of([[row["digest"], row[sweep.figure.name]] for row in rows])
    client = connect()
    with store_errors("the sweep cannot be logged"):
        experiment = experiment_id(client)
        if client.search_runs([experiment], f"tags.`{DIGEST_TAG}` = '{content}'", max_results=1):
            return
        tags = {"vocabgraft.kind": "sweep"}
        whole = client.create_run(experiment, run_name=name, tags=tags).info.run_id
        for row in rows:
            _log_point(client, experiment, whole, row, sweep, figure)
        if best := next((row for row in rows if row["best"]), None):
            client.log_metric(whole, figure, best[sweep.figure.name])
        client.log_table(whole, {key: [row[key] for row in rows] for key in rows[0]}, TABLE)
        # Set last: if it is missing, the logging was interrupted and is repeated.
        client.set_tag(whole, DIGEST_TAG, content)
        client.set_terminated(whole, "FINISHED")


def _log_point(client: Any, experiment: str, whole: str, row: Row, sweep: SweepParams, figure: str) -> None:
    named = ", ".join(f"{key.rpartition('.')[2]}={json.dumps(row[key])}" for key in sweep.params)
    tags = {PARENT_TAG: whole, "vocabgraft.kind": "sweep point", "best": str(row["best"]).lower()}
    if row["reason"]:
        tags["reason"] = printable(row["reason"])
    run = client.create_run(experiment, run_name=named, tags=tags).info.run_id
    for key in sweep.params:
        client.log_param(run, key, json.dumps(row[key])[:VALUE_LENGTH])
    client.log_metric(run, "seconds", row["seconds"])
    value = row[sweep.figure.name]
    if value is not None:
        client.log_metric(run, figure, value)
    client.set_terminated(run, "FAILED" if value is None else "FINISHED")


def show_in_prefect(rows: Sequence[Row]) -> None:
    """Keep the table as an artifact of the flow run, if there is one."""
    from prefect.runtime import flow_run

    if flow_run.id is None:
        return
    from prefect.artifacts import create_markdown_artifact

    create_markdown_artifact(printable(as_markdown(rows)), key="sweep", description="All points, with the best one")


def as_markdown(rows: Sequence[Row]) -> str:
    """The table, the best point in bold."""
    headings = [key for key in rows[0] if key not in ("best", "digest")]
    return markdown_table(headings, [[_cell(row[key], row["best"]) for key in headings] for row in rows])


def _cell(value: Any, best: bool) -> str:
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return f"**{text.strip()}**" if best and text.strip() else text
