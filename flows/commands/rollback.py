"""Make the previous champion champion again.

python -m flows.commands.rollback --help
"""

import argparse
import sys
from collections.abc import Sequence

from flows.engine.prefect_run import recorded
from tasks.support.stage import switch_telemetry_off
from vocabgraft.config.params import load_params
from vocabgraft.errors import VocabgraftError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    switch_telemetry_off()
    try:
        said = recorded("rollback", lambda: rollback(options.name, options.reason))
    except VocabgraftError as error:
        print(f"rollback: {error}", file=sys.stderr)
        return 1
    print(said)
    return 0


def rollback(name: str | None, reason: str | None = None) -> str:
    """Let champion and previous champion change places; a second call undoes the first.

    Raises:
        VocabgraftError: when there is no previous champion.
    """
    from tasks.registry.lookup import connect
    from tasks.registry.versions import roll_back

    name = name or load_params().register_model.name
    now, before = roll_back(connect(), name, {"decision": "champion by roll-back", "decision_reason": reason or ""})
    return (
        f"{name} version {now.version} is the champion again; version {before.version} is the previous champion "
        "(python -m flows.commands.rollback once more undoes this)"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m flows.commands.rollback",
        description="Make the previous champion champion again; the two change places.",
    )
    parser.add_argument("--name", help="of the registered model (default: register_model.name in params.yaml)")
    parser.add_argument("--reason", metavar="TEXT", help="why; kept as a tag of the version")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
