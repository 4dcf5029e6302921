"""The registry as a run of the flow needs it: there before any training, and with the model after it."""

import os
from collections.abc import Collection
from pathlib import Path

from flows.publishing import REGISTERING_STAGE
from vocabgraft.artifacts import read_json
from vocabgraft.errors import VocabgraftError


def require_registry(names: Collection[str]) -> None:
    """Ask the store whether it is there, when the named stages are to register a model.

    Raises:
        VocabgraftError: when it is not, before hours of training end in that.
    """
    if REGISTERING_STAGE not in names or os.environ.get("DVC_EXP_NAME"):
        return
    from tasks._registry import RETRIES_AT_START, connect

    connect(RETRIES_AT_START)


def missing_from_registry(output: Path) -> str:
    """Why the model that a registration left on record has to be registered again; empty where the registry has it.

    DVC knows the file that registration leaves, not the registry.

    Raises:
        VocabgraftError: for a version whose files are not there. It is not replaced: the folder may only have been
            moved, and with the version its aliases would go.
    """
    from tasks._registration import has_files
    from tasks._registry import connect, find_by_digest

    record = read_json(output / "registration.json")
    client = connect()
    found = find_by_digest(client, record["name"], record["content_digest"])
    if found is None:
        return f"the registry has no version of {record['name']} with this content"
    if not has_files(client, found):
        raise VocabgraftError(
            f"{record['name']} version {found.version} is in the registry, but its files are not where it says; after "
            "the folder was moved, python -m flows.registry --relocate finds them again; when they are lost, delete "
            "the version in MLflow and run again, which registers the model anew"
        )
    return ""
