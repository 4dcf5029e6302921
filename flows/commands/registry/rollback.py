"""`vocabgraft registry rollback`: make the previous champion the champion again."""

from typing import Annotated

from typer import Option

from flows.commands.output import ModelName, Output, Quiet
from flows.engine.prefect_run import recorded
from vocabgraft.config.params import load_params


def roll_back(
    name: ModelName = None,
    reason: Annotated[str | None, Option(metavar="TEXT", help="Why; kept as a tag of the version.")] = None,
    quiet: Quiet = False,
) -> None:
    """Make the previous champion the champion again.

    The two swap their aliases, so running it again undoes it.
    """
    Output(quiet=quiet).line(recorded("rollback", lambda: rollback(name, reason)))


def rollback(name: str | None, reason: str | None = None) -> str:
    """Swap champion and previous champion; a second call undoes the first.

    Raises:
        VocabgraftError: if there is no previous champion.
    """
    from tasks.registry.lookup import connect
    from tasks.registry.versions import roll_back

    name = name or load_params().register_model.name
    now, before = roll_back(connect(), name, {"decision": "champion by roll-back", "decision_reason": reason or ""})
    return (
        f"{name} version {now.version} is the champion again; version {before.version} is the previous champion "
        "(vocabgraft registry rollback again undoes this)"
    )
