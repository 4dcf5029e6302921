"""Versions in the MLflow registry: listing, aliases, roll-back, pruning, relocation."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlLoggedModel, SqlRun
from mlflow.tracking import MlflowClient

from tasks.registry.gate_results import GateResult
from tasks.registry.lookup import (
    CHAMPION,
    EXPERIMENT,
    NEXT_CHAMPION,
    PREVIOUS_CHAMPION,
    Registered,
    all_pages,
    described,
    find_by_alias,
    store_errors,
)
from tasks.registry.register import KIND_TAG, NAME_TAG, REGISTRATION_KIND, describe, remove_run, remove_version
from tasks.registry.store import HTTP, one_writer, store_uri
from vocabgraft.errors import VocabgraftError
from vocabgraft.printable import printable

# Tags: why a version was promoted or not, the evidence for its benefit, and the reason that a person gave.
DECISION_TAG, EVIDENCE_TAG, REASON_TAG = "decision", "evidence", "decision_reason"
# A registration takes seconds. If its run has no version a day later, it was killed.
SECONDS_UNTIL_ABANDONED = 24 * 3600
# Columns of MLflow's tables with locations of files.
LOCATIONS: Sequence[tuple[Any, str]] = (
    (SqlExperiment, "artifact_location"),
    (SqlRun, "artifact_uri"),
    (SqlLoggedModel, "artifact_location"),
    (SqlModelVersion, "storage_location"),
    (SqlModelVersion, "source"),
)


class ChampionMovedError(VocabgraftError):
    """The champion changed after a version was compared with it."""


@dataclass(frozen=True)
class Pruned:
    """The deleted versions, and the number of deleted runs of unfinished registrations."""

    versions: Sequence[int]
    runs: int


def set_alias(client: MlflowClient, name: str, alias: str, model_version: int) -> None:
    """Point an alias at a version."""
    with store_errors(f"{name} version {model_version} cannot become {alias}"):
        client.set_registered_model_alias(name, alias, str(model_version))


def tag_version(client: MlflowClient, name: str, model_version: int, tags: Mapping[str, str]) -> None:
    """Add tags to a version."""
    with store_errors(f"{name} version {model_version} cannot be tagged"):
        for key, value in tags.items():
            client.set_model_version_tag(name, str(model_version), key, printable(value))


def replace_card(client: MlflowClient, version: Registered, card: str) -> None:
    """Replace the description of a registered version; the card in its files stays."""
    with store_errors(f"the card of {version.name} version {version.version} cannot be replaced"):
        describe(client, version, card)


def list_versions(client: MlflowClient, name: str) -> list[Registered]:
    """Every version of a model, the newest first.

    Raises:
        VocabgraftError: if the registry has no model with this name, with the names that it has.
    """
    with store_errors("the registry cannot be read"):
        # MLflow's filters cannot quote every valid name, so names are compared here.
        entries = all_pages(lambda token: client.search_model_versions(page_token=token))
        found = [described(client, entry) for entry in entries if entry.name == name]
        if not found:
            names = sorted({entry.name for entry in entries})
            raise VocabgraftError(
                f"the registry has no version of {name!r}; it has {', '.join(names) or 'no model'} "
                "(choose with --name; the default is register_model.name in params.yaml)"
            )
    return sorted(found, key=lambda entry: -entry.version)


def find_version(client: MlflowClient, name: str, number: int) -> Registered:
    """A version by its number.

    Raises:
        VocabgraftError: if there is none, with the numbers that exist.
    """
    found = list_versions(client, name)
    for entry in found:
        if entry.version == number:
            return entry
    raise VocabgraftError(
        f"{name} has no version {number}; it has {', '.join(str(entry.version) for entry in reversed(found))}"
    )


def make_champion(
    client: MlflowClient, new: Registered, tags: Mapping[str, str], champion: Registered | None
) -> Registered | None:
    """Make a version the champion; the current champion becomes the previous one.

    Args:
        client: client of the registry.
        new: the version.
        tags: tags to set first: why it was promoted.
        champion: the champion with which the version was compared.

    Returns:
        The champion before; None if there was none, or it is the same.

    Raises:
        ChampionMovedError: if another version has become champion.
        VocabgraftError: if the version has been deleted.
    """
    with alias_change(client, new.name):
        before = require_champion(client, new, champion)
        find_version(client, new.name, new.version)
        tag_version(client, new.name, new.version, tags)
        _change_champion(client, before, new)
    return None if before and before.version == new.version else before


def require_champion(client: MlflowClient, judged: Registered, champion: Registered | None) -> Registered | None:
    """The current champion, which must be the one with which a version was compared.

    Raises:
        ChampionMovedError: if it is another one.
    """
    now = find_by_alias(client, judged.name, CHAMPION)
    if (now and now.version) != (champion and champion.version):
        raise ChampionMovedError(
            f"the champion of {judged.name} is now {_number(now)}, but version {judged.version} was compared "
            f"with {_number(champion)}; run again"
        )
    return now


def roll_back(client: MlflowClient, name: str, tags: Mapping[str, str]) -> tuple[Registered, Registered]:
    """Swap champion and previous champion; a second call undoes the first.

    Returns:
        The new champion, and the one before.

    Raises:
        VocabgraftError: if there is no previous champion.
    """
    with alias_change(client, name):
        champion, previous = (find_by_alias(client, name, alias) for alias in (CHAMPION, PREVIOUS_CHAMPION))
        if previous is None or champion is None or previous.version == champion.version:
            missing = CHAMPION if champion is None else f"{PREVIOUS_CHAMPION} other than its champion"
            raise VocabgraftError(
                f"{name} has no {missing}, so there is nothing to roll back to; "
                "vocabgraft registry promote N chooses a version"
            )
        tag_version(client, name, previous.version, tags)
        _change_champion(client, champion, previous)
    return previous, champion


@contextmanager
def alias_change(client: MlflowClient, name: str) -> Iterator[None]:
    """Lock the aliases of a SQLite store, and first finish a change of champion that a killed process began.

    A store behind a server has no such lock; there each writer reads the aliases right before it writes.
    """
    with one_writer(store_uri()):
        finish_change(client, name)
        yield


def finish_change(client: MlflowClient, name: str) -> None:
    """Finish a change of champion that a killed process began."""
    begun = find_by_alias(client, name, NEXT_CHAMPION)
    if begun is not None:
        _change_champion(client, find_by_alias(client, name, CHAMPION), begun)


def _change_champion(client: MlflowClient, before: Registered | None, new: Registered) -> None:
    """Set both aliases. NEXT_CHAMPION marks the new champion meanwhile, so that a killed change can be finished."""
    if before is None or before.version != new.version:
        set_alias(client, new.name, NEXT_CHAMPION, new.version)
        if before is not None:
            # This one first, so that there always is a champion.
            set_alias(client, new.name, PREVIOUS_CHAMPION, before.version)
        set_alias(client, new.name, CHAMPION, new.version)
    with store_errors(f"the alias {NEXT_CHAMPION} of {new.name} cannot be deleted"):
        client.delete_registered_model_alias(new.name, NEXT_CHAMPION)


def _number(version: Registered | None) -> str:
    return "no version" if version is None else f"version {version.version}"


def prune(client: MlflowClient, name: str, keep: int, now: float | None = None) -> Pruned:
    """Delete old versions without an alias, and the runs of killed registrations.

    Args:
        client: client of the registry.
        name: name of the model.
        keep: number of newest versions that stay.
        now: current time in seconds since 1970.
    """
    versions = list_versions(client, name)
    deleted = [entry.version for entry in versions[keep:] if not entry.aliases and _remove_unused(client, entry)]
    kept = {entry.run_id for entry in versions}
    before = ((time.time() if now is None else now) - SECONDS_UNTIL_ABANDONED) * 1000
    with store_errors(f"the runs of {EXPERIMENT} cannot be searched"):
        abandoned = [run for run in _registration_runs(client, name) if run.info.start_time < before]
        lost = [run.info.run_id for run in abandoned if run.info.run_id not in kept]
        for run_id in lost:
            remove_run(client, run_id)
    return Pruned(deleted, len(lost))


def _remove_unused(client: MlflowClient, entry: Registered) -> bool:
    """Delete a version unless it has got an alias or was deleted after it was listed."""
    with alias_change(client, entry.name):
        there = {found.version: found.aliases for found in list_versions(client, entry.name)}
        if there.get(entry.version, ("deleted",)):
            return False
        remove_version(client, entry)
    return True


def relocate(old: Path | None, new: Path) -> tuple[str, int]:
    """Rewrite the file locations of a store after it was moved: MLflow stores absolute paths.

    Args:
        old: the old folder of the artifacts; by default that of the oldest experiment in the store.
        new: the new folder.

    Returns:
        The old folder, and the number of rewritten locations.

    Raises:
        VocabgraftError: for a store behind a tracking server, which owns the files, or if `new` is not a folder.
    """
    if store_uri().startswith(HTTP):
        raise VocabgraftError(
            "vocabgraft registry relocate works on a database, not through a tracking server; run it on the "
            "server's machine with MLFLOW_TRACKING_URI set to its database"
        )
    if not new.is_dir():
        raise VocabgraftError(f"{new} is not a folder; give the new folder of the artifacts with --to")
    engine = sqlalchemy.create_engine(store_uri())
    with store_errors("the locations of artifacts cannot be rewritten"), engine.begin() as connection:
        before = str(old) if old else _folder_on_record(connection)
        changed = sum(_rewrite(connection, table, column, before, str(new)) for table, column in LOCATIONS)
    engine.dispose()
    return before, changed


def _folder_on_record(connection: sqlalchemy.Connection) -> str:
    location = connection.execute(
        sqlalchemy.select(SqlExperiment.artifact_location).order_by(SqlExperiment.experiment_id)
    ).scalar()
    if location is None or "://" in location:
        raise VocabgraftError(
            f"the store keeps its artifacts at {location}, which is not a folder of this machine; give --from"
        )
    return str(Path(location).parent)


def _rewrite(connection: sqlalchemy.Connection, table: Any, column: str, old: str, new: str) -> int:
    place = getattr(table, column)
    changed = 0
    keys = list(sqlalchemy.inspect(table).primary_key)
    for *key, value in connection.execute(sqlalchemy.select(*keys, place)).all():
        moved = _moved(value, old, new)
        if moved == value:
            continue
        chosen = [entry == part for entry, part in zip(keys, key, strict=True)]
        connection.execute(sqlalchemy.update(table).where(*chosen).values({column: moved}))
        changed += 1
    return changed


def _moved(value: str | None, old: str, new: str) -> str | None:
    for prefix in ("", "file://"):
        start = f"{prefix}{old}"
        if value is not None and (value == start or value.startswith(f"{start}/")):
            return f"{prefix}{new}{value[len(start) :]}"
    return value


def _registration_runs(client: MlflowClient, name: str) -> list[Any]:
    try:
        experiment = client.get_experiment_by_name(EXPERIMENT)
    except MlflowException:
        return []
    if experiment is None:
        return []
    chosen = f"tags.`{KIND_TAG}` = '{REGISTRATION_KIND}'"
    runs = all_pages(lambda token: client.search_runs([experiment.experiment_id], chosen, page_token=token))
    return [run for run in runs if run.data.tags.get(NAME_TAG) == name]


def figures_on(client: MlflowClient, version: Registered) -> dict[str, float]:
    """The metrics of the trained model in a version's run, by name."""
    with store_errors(f"the run of {version.name} version {version.version} cannot be read"):
        metrics = client.get_run(version.run_id).data.metrics if version.run_id else {}
    return {name.removeprefix("merged."): value for name, value in metrics.items() if name.startswith("merged.")}


def gates_on(version: Registered) -> list[GateResult]:
    """The results of a version's gates at its registration."""
    return [GateResult.from_json(entry) for entry in json.loads(version.tags.get("gates", "[]"))]
