"""Reads a registered model back from the registry and compares it with the merged folder."""

import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tasks.registry.champion import ITEMS
from tasks.registry.lookup import Registered, download_model
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import load_model
from vocabgraft.models.encode import encode

READ_BACK_TAG = "read_back"
TEXTS = 64
BATCH_SIZE = 16


def read_back(registered: Registered, merged: Path, evaluation: Path, trust_remote_code: bool = False) -> int:
    """Encode held-out texts with the version in the registry and with the merged folder; the bits must be equal.

    Returns:
        The number of texts.

    Raises:
        VocabgraftError: if the version cannot be read, or its embeddings differ.
    """
    named = f"{registered.name} version {registered.version}"
    texts = list(dict.fromkeys(pq.read_table(evaluation / ITEMS, columns=["item"])["item"].to_pylist()))[:TEXTS]
    logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
    try:
        folder = download_model(f"models:/{registered.name}/{registered.version}")
        there, here = (
            encode(
                load_model(path, device="cpu", own_modules=True, trust_remote_code=trust_remote_code), texts, BATCH_SIZE
            )
            for path in (folder, merged)
        )
    except VocabgraftError as error:
        raise VocabgraftError(
            f"{named} is in the registry, but its model cannot be read back: {error}; if its files were moved, "
            "vocabgraft registry relocate finds them again; if they are lost, delete the "
            "version and run again"
        ) from error
    if not np.array_equal(there, here):
        worst = float(np.abs(there - here).max())
        raise VocabgraftError(
            f"{named} in the registry encodes {len(texts)} texts differently from {merged} "
            f"(largest difference {worst:.3g}); its files have changed; delete the version and run again"
        )
    return len(texts)
