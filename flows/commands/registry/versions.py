"""`vocabgraft registry list`, `prune` and `relocate`: the table of versions, and maintenance of the store."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from rich.text import Text
from typer import Option

from flows.commands.output import Json, ModelName, Output, Quiet
from flows.engine.prefect_run import recorded
from vocabgraft.config.params import load_params

if TYPE_CHECKING:
    from tasks.registry.lookup import Client, Registered
    from tasks.registry.versions import Pruned

KEPT = 5
ARTIFACTS = Path("mlruns")
AGES = ((86400, "d"), (3600, "h"), (60, "min"))


def list_versions(name: ModelName = None, as_json: Json = False) -> None:
    """List the versions of the registered model.

    The JSON has every metric and gate of each version.
    """
    output = Output(as_json)
    model, rows = recorded("registry", lambda: _rows(name))
    output.show(_table(model, rows))
    output.document({"name": model, "versions": rows})


def prune_versions(
    keep: Annotated[int, Option(metavar="N", min=1, help="Number of newest versions that stay.")] = KEPT,
    name: ModelName = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Delete old versions that have no alias, with their files.

    It also deletes the runs of killed registrations, a day after they began.
    """
    output = Output(as_json, quiet)
    gone = recorded("registry", lambda: _prune(name, keep))
    numbers = ", ".join(map(str, sorted(gone.versions))) or "none"
    output.line(f"deleted versions: {numbers}; runs of unfinished registrations: {gone.runs}")
    output.document({"deleted_versions": sorted(gone.versions), "deleted_runs": gone.runs})


def relocate_store(
    moved_from: Annotated[
        Path | None, Option("--from", metavar="FOLDER", help="The old mlruns. Default: as MLflow stored it.")
    ] = None,
    moved_to: Annotated[Path, Option("--to", metavar="FOLDER", help="The new mlruns.")] = ARTIFACTS,
    quiet: Quiet = False,
) -> None:
    """Rewrite the paths that MLflow stored, after the folder was moved.

    For stores in SQLite and PostgreSQL whose artifacts are files.
    """
    from tasks.registry.versions import relocate

    old, changed = recorded("registry", lambda: relocate(moved_from, moved_to.resolve()))
    Output(quiet=quiet).line(f"{changed} paths below {old} now point to {moved_to.resolve()}")


def _rows(name: str | None) -> tuple[str, list[dict[str, Any]]]:
    from tasks.registry.lookup import connect
    from tasks.registry.versions import alias_change, list_versions

    model, client = name or load_params().register_model.name, connect()
    with alias_change(client, model):
        # Entering it finishes the change of a killed process.
        pass
    return model, [row_of(client, version, time.time()) for version in list_versions(client, model)]


def _prune(name: str | None, keep: int) -> "Pruned":
    from tasks.registry.lookup import connect
    from tasks.registry.versions import prune

    return prune(connect(), name or load_params().register_model.name, keep)


def row_of(client: "Client", version: "Registered", now: float) -> dict[str, Any]:
    """A version in the table: its aliases, age, metrics, gates, decision and origin."""
    from tasks.registry.versions import DECISION_TAG, EVIDENCE_TAG, REASON_TAG, figures_on, gates_on

    return {
        "version": version.version,
        "aliases": list(version.aliases),
        "age_seconds": max(0, round(now - version.created / 1000)),
        "benefit": float(version.tags["benefit"]) if "benefit" in version.tags else None,
        "figures": figures_on(client, version),
        "gates": [gate.as_json() for gate in gates_on(version)],
        "decision": version.tags.get(DECISION_TAG, ""),
        "evidence": version.tags.get(EVIDENCE_TAG, ""),
        "reason": version.tags.get(REASON_TAG, ""),
        "base": version.tags.get("base", ""),
        "content_digest": version.tags.get("content_digest", ""),
        "git_commit": version.tags.get("git_commit", ""),
        "git_dirty": version.tags.get("git_dirty") == "true",
    }


def _table(name: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=name, title_justify="left")
    for heading, side in (("version", "right"), ("aliases", "left"), ("age", "right"), ("benefit", "right")):
        table.add_column(heading, justify=side)  # type: ignore[arg-type]
    for heading in ("gates", "decision", "content", "commit"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        held = sum(gate["verdict"] == "holds" for gate in row["gates"])
        table.add_row(
            str(row["version"]),
            ", ".join(row["aliases"]),
            age(row["age_seconds"]),
            "" if row["benefit"] is None else f"{row['benefit']:.2f}",
            f"{held} of {len(row['gates'])}",
            # Not markup: a person's reason may hold square brackets.
            Text(": ".join(filter(None, (row["decision"], row["reason"])))),
            row["content_digest"][:8],
            row["git_commit"][:8] + ("+" if row["git_dirty"] else ""),
        )
    table.caption = (
        "benefit: the metric of register_model.gates.benefit on held-out items; +: a commit with uncommitted changes"
    )
    return table


def age(seconds: int) -> str:
    """Seconds as a number of the largest unit that fits."""
    return next((f"{seconds // length} {unit}" for length, unit in AGES if seconds >= length), f"{seconds} s")
