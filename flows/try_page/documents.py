"""The documents that the page searches, and their embeddings by each model, computed once and cached."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from flows.try_page.models import TryModel, output_of
from vocabgraft.data.accepted import read_datasets
from vocabgraft.errors import VocabgraftError
from vocabgraft.evaluation.retrieval import retrieval_set
from vocabgraft.models.encode import Embeddings
from vocabgraft.planning.corpus import find_files, read_blocks, split_files
from vocabgraft.storage.atomic import put_in_place, work_beside

VALIDATING_STAGE = "validate_data"
CACHE = Path("reports/try_page")
BEIR_CORPUS = "corpus.jsonl"
MOST = 100_000
AT_ONCE = 512
VECTORS = "vectors.npy"


@dataclass(frozen=True)
class Documents:
    """Distinct texts, where they are from, and whether there were more than `MOST`."""

    texts: list[str]
    source: str
    is_cut: bool = False

    @property
    def digest(self) -> str:
        """Of the texts in their order."""
        found = hashlib.sha256()
        for text in self.texts:
            found.update(len(text.encode()).to_bytes(8, "big") + text.encode())
        return found.hexdigest()


def held_out_documents(root: Path) -> Documents:
    """The documents that the held-out queries are evaluated over.

    Raises:
        VocabgraftError: when there are none.
    """
    output = output_of(VALIDATING_STAGE, root)
    if output is None or not (output / "datasets").is_dir():
        raise VocabgraftError(
            f"{VALIDATING_STAGE} has no output yet; run the pipeline (vocabgraft run), or name a file with --corpus"
        )
    sets = [
        retrieval_set(entry)
        for entry in read_datasets(output / "datasets")
        if entry.is_retrieval and entry.rows("test")
    ]
    texts = list(dict.fromkeys(text for entry in sets for text in entry.documents))
    if not texts:
        raise VocabgraftError("no dataset has held-out queries; name a file of documents with --corpus")
    return Documents(texts[:MOST], f"the held-out data ({', '.join(entry.name for entry in sets)})", len(texts) > MOST)


def read_corpus(path: Path, columns: Sequence[str]) -> Documents:
    """The distinct texts of a file or folder: a line of .txt, a column of .csv, .tsv, .jsonl and .parquet, or BEIR.

    Raises:
        VocabgraftError: when it cannot be read or holds no text.
    """
    beir = path / BEIR_CORPUS
    found = _beir_texts(beir) if beir.is_file() else _texts(path, columns)
    texts = list(islice(dict.fromkeys(text for text in found if text.strip()), MOST + 1))
    if not texts:
        raise VocabgraftError(f"--corpus {path} holds no text")
    return Documents(texts[:MOST], path.name, len(texts) > MOST)


def _texts(path: Path, columns: Sequence[str]) -> Iterator[str]:
    for part in split_files(find_files([path]), columns):
        for block in read_blocks(part, columns):
            yield from block.texts


def _beir_texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                yield " ".join(part for part in (entry.get("title"), entry["text"]) if part)
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                raise VocabgraftError(
                    f"--corpus {path} line {number} is {line[:40]!r}; allowed: a JSON object with text ({error!r})"
                ) from error


def embedded(
    model: TryModel, documents: Documents, cache: Path, progress: Callable[[int], None] = lambda done: None
) -> Embeddings:
    """The documents' embeddings: from the cache, or computed and put there.

    Args:
        model: a model of the page.
        documents: what it embeds.
        cache: a folder.
        progress: function that gets the number of embedded documents.
    """
    place = cache / f"{model.candidate.digest[:16]}-{documents.digest[:16]}"
    if (place / VECTORS).is_file():
        found: Embeddings = np.load(place / VECTORS)
        return found
    parts = []
    for start in range(0, len(documents.texts), AT_ONCE):
        parts.append(model.embed(documents.texts[start : start + AT_ONCE], "document"))
        progress(min(start + AT_ONCE, len(documents.texts)))
    vectors = np.concatenate(parts)
    with work_beside(place) as work:
        np.save(work / VECTORS, vectors)
        put_in_place(work, place)
    return vectors
