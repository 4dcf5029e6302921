"""Checks that the registry is reachable before a run, and that it still has the registered version afterwards.

DVC knows only the file that the stage register_model writes.
"""

import os
import sqlite3
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flows.engine.dag import Stage
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import read_json

REGISTERING_STAGE = "register_model"
DEFAULT_STORE = "sqlite:///mlflow.db"
# Reads MLflow's tables: importing MLflow takes about 2 s of CPU, this query a millisecond.
QUERY = """
SELECT version, storage_location FROM model_versions JOIN model_version_tags AS tag USING (name, version)
WHERE name = ? AND tag.key = 'content_digest' AND tag.value = ? AND current_stage != 'Deleted_Internal'
ORDER BY version DESC LIMIT 1
"""
ALIASES = "SELECT alias FROM registered_model_aliases WHERE name = ? AND version = ? ORDER BY alias"


@dataclass(frozen=True)
class Found:
    """The newest version with some content, its aliases, and the location of its files in the store's table."""

    version: int
    aliases: tuple[str, ...]
    location: str = ""

    @property
    def files_are_here(self) -> bool:
        """Whether its files are on this machine; files of other stores are not checked."""
        folder = Path(self.location.removeprefix("file://"))
        return bool(self.location) and folder.is_dir() and any(folder.iterdir())


def find_registered(name: str, digest: str, root: Path) -> Found | None:
    """The newest version of a model with this content, or None. Reads SQLite directly, other stores through MLflow.

    Raises:
        VocabgraftError: if the registry cannot be read.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
    # A hit is proof. A miss is not, because the tables may have another layout.
    if uri.startswith("sqlite:///") and (found := _look_up(root / uri.removeprefix("sqlite:///"), name, digest)):
        return found
    from tasks.registry.lookup import connect, find_by_digest

    registered = find_by_digest(connect(), name, digest)
    return Found(registered.version, registered.aliases) if registered else None


def _look_up(path: Path, name: str, digest: str) -> Found | None:
    try:
        # Read only, so that looking does not create a missing store.
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
        try:
            row = connection.execute(QUERY, (name, digest)).fetchone()
            aliases = connection.execute(ALIASES, (name, row[0])).fetchall() if row else []
        finally:
            connection.close()
    except sqlite3.Error:
        # MLflow itself reports what is wrong with its store, or reads a layout that this query does not know.
        return None
    return Found(int(row[0]), tuple(alias for (alias,) in aliases), row[1] or "") if row else None


def registered_content(stage: Stage, root: Path) -> dict[str, Any]:
    """The name and the content digest from the output of register_model.

    Raises:
        VocabgraftError: if its file is missing or damaged.
    """
    content: dict[str, Any] = read_json(root / stage.outs[0] / "registration.json")
    return content


def require_registry(names: Collection[str]) -> None:
    """Check that the registry is reachable, if one of the named stages registers a model.

    Raises:
        VocabgraftError: if it is not; better now than after hours of training.
    """
    if REGISTERING_STAGE not in names or os.environ.get("DVC_EXP_NAME"):
        return
    from tasks.registry.lookup import RETRIES_AT_START, connect

    connect(RETRIES_AT_START)


def is_lost(stage: Stage, root: Path, say: Callable[[str], None]) -> bool:
    """Whether the registry lacks the version that register_model recorded.

    Raises:
        VocabgraftError: for a version whose files are missing. It is not replaced: the folder may only have been moved,
            and replacing the version would delete its aliases.
    """
    made = registered_content(stage, root)
    found = find_registered(made["name"], made["content_digest"], root)
    if found is None:
        say(f"the registry has no version of {made['name']} with this content; registering it again")
        return True
    if not found.files_are_here:
        _require_files(made["name"], made["content_digest"])
    return False


def _require_files(name: str, digest: str) -> None:
    from tasks.registry.lookup import connect, find_by_digest
    from tasks.registry.register import has_files

    client = connect()
    found = find_by_digest(client, name, digest)
    if found is not None and not has_files(client, found):
        raise VocabgraftError(
            f"{name} version {found.version} is in the registry, but its files are not at the recorded location; if "
            "the folder was moved, vocabgraft registry relocate finds them again; if they are lost, delete the version "
            "in MLflow and run again, which registers the model again"
        )
