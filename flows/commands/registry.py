"""The versions of the registered model in one table, and the upkeep of the store.

python -m flows.commands.registry --help
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.engine.prefect_run import recorded
from tasks.support.stage import switch_telemetry_off
from vocabgraft.config.params import load_params
from vocabgraft.errors import VocabgraftError

if TYPE_CHECKING:
    from tasks.registry.lookup import Client, Registered

KEPT = 5
ARTIFACTS = Path("mlruns")
AGES = ((86400, "d"), (3600, "h"), (60, "min"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    switch_telemetry_off()
    try:
        return recorded("registry", lambda: _run(options))
    except VocabgraftError as error:
        print(f"registry: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    from tasks.registry.lookup import connect
    from tasks.registry.versions import list_versions, prune, relocate

    name = options.name or load_params().register_model.name
    if options.relocate:
        old, changed = relocate(options.moved_from, (options.moved_to or ARTIFACTS).resolve())
        print(f"{changed} addresses below {old} now name {(options.moved_to or ARTIFACTS).resolve()}")
    client = connect()
    if options.prune:
        gone = prune(client, name, options.keep)
        numbers = ", ".join(map(str, sorted(gone.versions))) or "none"
        print(f"deleted versions: {numbers}; runs of registrations that were never finished: {gone.runs}")
    rows = [row_of(client, version, time.time()) for version in list_versions(client, name)]
    if options.json:
        print(json.dumps({"name": name, "versions": rows}, indent=2, ensure_ascii=False))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(_table(name, rows))
    return 0


def row_of(client: "Client", version: "Registered", now: float) -> dict[str, Any]:
    """What is told of a version: its aliases, age, figures, gates, decision and origin."""
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
    table.caption = "benefit as register_model.gates.benefit names it, on held-out items; a + is a commit with changes"
    return table


def age(seconds: int) -> str:
    """Seconds in the largest unit that they fill."""
    return next((f"{seconds // length} {unit}" for length, unit in AGES if seconds >= length), f"{seconds} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.commands.registry",
        description="List the versions of the registered model; thin them out; mend a store that was moved.",
    )
    add = parser.add_argument
    add("--name", help="of the registered model (default: register_model.name in params.yaml)")
    add("--json", action="store_true", help="print the list as JSON, with every figure and gate")
    add(
        "--prune", action="store_true", help="delete versions without an alias that are not among the newest, and files"
    )
    add(
        "--keep", type=_count, default=KEPT, metavar="N", help=f"how many of the newest --prune keeps (default: {KEPT})"
    )
    add("--relocate", action="store_true", help="after the folder was moved: rewrite the paths that MLflow stored")
    add(
        "--from",
        dest="moved_from",
        type=Path,
        metavar="OLD",
        help="with --relocate: the old mlruns (default: as stored)",
    )
    add("--to", dest="moved_to", type=Path, metavar="NEW", help="with --relocate: where it is now (default: mlruns)")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no count of versions; give 1 or more")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
