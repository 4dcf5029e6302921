"""Updates an index for a new model: encodes only texts that the model embeds differently."""

import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from tqdm.auto import tqdm

from vocabgraft.errors import VocabgraftError
from vocabgraft.index.model_diff import BoolArray, ModelDifference
from vocabgraft.index.parquet import (
    Columns,
    VectorFiles,
    id_keys,
    open_vector_files,
    read_rows,
    read_texts,
    require_distinct_ids,
    write_replaced,
)
from vocabgraft.models.encode import Embeddings, Role, encode
from vocabgraft.storage.artifacts import digest_of, file_sha256
from vocabgraft.storage.locks import only_one

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Id = TypeVar("Id")
Item = TypeVar("Item")
# A kill loses at most this work, a few seconds; a batch of this size is large enough to sort by length.
TEXTS_AT_A_TIME = 2_048
LOOKED_AT_TOGETHER = 8_192


@dataclass(frozen=True)
class EncodingSettings:
    """How texts are embedded; must match the stored vectors.

    Attributes:
        role: of the texts; None for a plain `encode`.
        batch_size: texts per batch.
        normalise: whether vectors are scaled to length 1 afterwards.
    """

    role: Role | None = "document"
    batch_size: int = 64
    normalise: bool = False


@dataclass(frozen=True)
class ReembeddingJob:
    """A re-embedding to run.

    Attributes:
        source: a Parquet file or a folder of them, with vectors of the previous model.
        destination: the new index; must not exist yet.
        models: a digest of the two models, so that partial work of other models is not resumed.
        columns: of the files.
        settings: how the vectors were made.
        sample: number of unaffected texts to encode for comparison.
        tolerance: largest allowed difference of a number in a stored vector, relative to the vector's length.
    """

    source: Path
    destination: Path
    models: str
    columns: Columns = field(default_factory=Columns)
    settings: EncodingSettings = field(default_factory=EncodingSettings)
    sample: int = 256
    tolerance: float = 1e-6


@dataclass(frozen=True)
class Reembedded:
    """The result of a re-embedding.

    Attributes:
        texts: number of texts in the index.
        recomputed: number of texts encoded with the new model, in this run or a killed one.
        resumed: number of them taken over from the killed run.
        everything: why all texts were encoded; None if only some were.
        sampled: number of unaffected texts encoded for comparison.
        deviation: the largest difference of a number in their vectors, relative to the vector's length.
        seconds: by step: looking, verifying, computing, writing.
        seconds_for_all: estimated time to encode every text, from those that were encoded; None if all were.
    """

    texts: int
    recomputed: int
    resumed: int
    everything: str | None
    sampled: int
    deviation: float
    seconds: dict[str, float]
    seconds_for_all: float | None


@dataclass
class _Sample:
    """A random sample of the unaffected rows: those with the smallest random keys."""

    size: int
    keys: "np.ndarray[Any, np.dtype[np.float64]]" = field(default_factory=lambda: np.zeros(0))
    texts: list[str] = field(default_factory=list)
    vectors: list[Any] = field(default_factory=list)

    def offer(self, keys: Any, texts: list[str], vectors: Any, untouched: BoolArray) -> None:
        """Add those rows of a batch that belong to the sample so far."""
        limit = self.keys.max() if len(self.keys) == self.size and self.size else np.inf
        places = np.flatnonzero(untouched & (keys < limit))
        places = places[np.argsort(keys[places])[: self.size]]
        merged = np.concatenate([self.keys, keys[places]])
        chosen = np.argsort(merged)[: self.size]
        all_texts = [*self.texts, *(texts[place] for place in places)]
        # Copied, so that one row does not keep a whole batch in memory.
        all_vectors = [*self.vectors, *(vectors[place].copy() for place in places)]
        self.keys = merged[chosen]
        self.texts, self.vectors = [all_texts[i] for i in chosen], [all_vectors[i] for i in chosen]


def updated_vectors(
    items: Iterable[tuple[Id, str]],
    difference: ModelDifference,
    model: "SentenceTransformer",
    settings: EncodingSettings | None = None,
) -> Iterator[tuple[Id, Embeddings]]:
    """The new vectors for an index in any store (FAISS, Qdrant, pgvector).

    Streams: at most `LOOKED_AT_TOGETHER` texts are in memory.

    Args:
        items: (id, text) of everything in the store.
        difference: from `compare_models(previous, model)`.
        model: the new model.
        settings: how the stored vectors were made.

    Yields:
        (id, vector of shape (width,) in float32) of the texts whose vector changes, in order.
    """
    settings = settings or EncodingSettings()
    waiting: list[tuple[Id, str]] = []
    for block in _in_blocks(items, LOOKED_AT_TOGETHER):
        stale = difference.stale([text for _, text in block])
        waiting += [item for item, is_stale in zip(block, stale, strict=True) if is_stale]
        while len(waiting) >= TEXTS_AT_A_TIME:
            yield from _embedded(waiting[:TEXTS_AT_A_TIME], model, settings)
            waiting = waiting[TEXTS_AT_A_TIME:]
    yield from _embedded(waiting, model, settings)


def largest_deviation(
    model: "SentenceTransformer", texts: list[str], stored: Any, settings: EncodingSettings | None = None
) -> float:
    """The largest difference of the stored vectors, (texts, width), from the model's, by the vector's length.

    Rounding to 16-bit floats is not counted. A text's padding depends on its batch, so vectors of all-MiniLM differ by
    about 1e-7 between batches in float32.
    """
    computed = _encode(model, texts, settings or EncodingSettings()).astype(np.float64)
    stored = np.asarray(stored)
    difference = np.abs(stored.astype(np.float64) - computed)
    if stored.dtype == np.float16:
        difference -= np.spacing(np.abs(stored)).astype(np.float64) / 2
    return float(max(0.0, (difference.max(axis=1) / np.linalg.norm(computed, axis=1)).max()))


def reembed(job: ReembeddingJob, difference: ModelDifference, model: "SentenceTransformer") -> Reembedded:
    """Write the index again, with the new model's vectors for the texts that it embeds differently.

    The computed vectors are kept beside the destination, in parts of `TEXTS_AT_A_TIME` texts. After a kill they are
    reused if no input, model or setting changed. The destination appears when it is complete.

    Raises:
        VocabgraftError: for bad input, a stored vector of an unaffected text that differs from the model's, or another
            process that writes to this destination; then nothing is written.
    """
    _require_width(require_possible(job), model)
    place = job.destination
    with only_one(place.parent / f".{place.name}.lock", f"{place} is being written by another run"):
        return _reembed(job, difference, model)


def _reembed(job: ReembeddingJob, difference: ModelDifference, model: "SentenceTransformer") -> Reembedded:
    # Checked again: another run may have ended a moment ago.
    files = require_possible(job)
    before = _stamps(files)
    work = _work_folder(job, files)
    seconds: dict[str, float] = {}
    with _timed(seconds, "looking"):
        chosen, sample = _look(files, difference, job)
    deviation = 0.0
    with _timed(seconds, "verifying"):
        if sample.texts:
            deviation = _verified(model, sample, job)
    work.mkdir(parents=True, exist_ok=True)
    total = int(sum(rows.sum() for rows in chosen))
    with _timed(seconds, "computing"):
        resumed = _compute(files, chosen, total, work, model, job.settings)
    with _timed(seconds, "writing"):
        _write(files, chosen, work, job.destination, before)
    embedded = len(sample.texts) + total - resumed
    a_text = (seconds["verifying"] + seconds["computing"]) / embedded if embedded else 0.0
    whole = a_text * files.total if sample.texts else None
    return Reembedded(files.total, total, resumed, difference.everything, len(sample.texts), deviation, seconds, whole)


def count_stale(source: Path, columns: Columns, difference: ModelDifference) -> tuple[int, int]:
    """The number of texts in an index, and how many of them the new model embeds differently.

    Raises:
        VocabgraftError: for files that cannot be used.
    """
    files = open_vector_files(source, columns)
    return files.total, sum(int(difference.stale(texts).sum()) for texts in read_texts(files))


def require_possible(job: ReembeddingJob) -> VectorFiles:
    """The files of a job, after checking their columns and the destination.

    Raises:
        VocabgraftError: for files that cannot be used, or a destination that exists.
    """
    if job.destination.exists():
        raise VocabgraftError(f"{job.destination} exists already; name another place, or delete it")
    if job.source.is_dir() and job.source.resolve() in job.destination.resolve().parents:
        raise VocabgraftError(f"{job.destination} lies inside {job.source}, whose files are read; name another place")
    return open_vector_files(job.source, job.columns)


def _require_width(files: VectorFiles, model: "SentenceTransformer") -> None:
    width = model.get_embedding_dimension()
    if width != files.width:
        raise VocabgraftError(
            f"{files.root}: vectors have width {files.width}, the model gives {width}; "
            "this index was made with another model"
        )


def _stamps(files: VectorFiles) -> list[tuple[int, int]]:
    return [(path.stat().st_size, path.stat().st_mtime_ns) for path in files.paths]


def _work_folder(job: ReembeddingJob, files: VectorFiles) -> Path:
    """The folder of the parts, whose name identifies the work; deletes parts of other work."""
    contents = {str(path.relative_to(job.source)): file_sha256(path) for path in files.paths}
    digest = digest_of([contents, job.models, job.columns.names, str(job.settings), TEXTS_AT_A_TIME])
    work = job.destination.parent / f".{job.destination.name}.{digest[:16]}.partial"
    parts = re.compile(rf"\.{re.escape(job.destination.name)}\.[0-9a-f]{{16}}\.partial")
    for left in job.destination.parent.iterdir():
        if left != work and parts.fullmatch(left.name):
            shutil.rmtree(left)
    return work


def _look(files: VectorFiles, difference: ModelDifference, job: ReembeddingJob) -> tuple[list[BoolArray], _Sample]:
    """The rows of each batch that change, and a sample of the others; checks every row."""
    chosen: list[BoolArray] = []
    keys = []
    sample = _Sample(job.sample)
    generator = np.random.default_rng()
    with tqdm(total=files.total, desc="looking for texts that change", unit="text") as progress:
        for rows in read_rows(files):
            stale = difference.stale(rows.texts)
            sample.offer(generator.random(len(stale)), rows.texts, rows.vectors, ~stale)
            chosen.append(stale)
            keys.append(id_keys(rows.ids))
            progress.update(len(stale))
    require_distinct_ids(files, keys)
    return chosen, sample


def _verified(model: "SentenceTransformer", sample: _Sample, job: ReembeddingJob) -> float:
    deviation = largest_deviation(model, sample.texts, np.stack(sample.vectors), job.settings)
    # Written so that NaN is refused.
    if not deviation <= job.tolerance:
        raise VocabgraftError(
            f"{job.source}: of {len(sample.texts)} random texts that should keep their vector, one has a stored vector "
            f"that differs from the new model's by {deviation:.1e} of its length; allowed: {job.tolerance:.0e}. "
            "Nothing was written. Name the model that made these vectors as the previous one, and how it encoded them "
            "(--encode-as, --normalise); a GPU or bfloat16 rounds differently from a CPU"
        )
    return deviation


def _compute(
    files: VectorFiles,
    chosen: list[BoolArray],
    total: int,
    work: Path,
    model: "SentenceTransformer",
    settings: EncodingSettings,
) -> int:
    """Write the parts that do not exist yet; return the number of texts in the existing ones."""
    resumed = 0
    texts = (
        text
        for block, stale in zip(read_texts(files), chosen, strict=True)
        for text, is_stale in zip(block, stale, strict=True)
        if is_stale
    )
    with tqdm(total=total, desc="embedding", unit="text") as progress:
        for number, block in enumerate(_in_blocks(texts, TEXTS_AT_A_TIME)):
            if _read_part(work, number, (len(block), files.width)) is None:
                _write_part(work, number, _encode(model, block, settings))
            else:
                resumed += len(block)
            progress.update(len(block))
    return resumed


def _part(work: Path, number: int) -> Path:
    return work / f"part-{number:07}.npy"


def _write_part(work: Path, number: int, vectors: Embeddings) -> None:
    unfinished = work / "unfinished.npy"
    np.save(unfinished, vectors, allow_pickle=False)
    unfinished.replace(_part(work, number))


def _read_part(work: Path, number: int, shape: tuple[int, int]) -> Embeddings | None:
    """A part of the expected shape; None if it is missing or damaged."""
    path = _part(work, number)
    try:
        vectors: Embeddings = np.load(path, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return vectors if vectors.shape == shape else None


def _write(
    files: VectorFiles, chosen: list[BoolArray], work: Path, destination: Path, before: list[tuple[int, int]]
) -> None:
    made = work / "complete"
    if made.is_dir():
        shutil.rmtree(made)
    if files.root.is_dir():
        made.mkdir()
    counts = [int(rows.sum()) for rows in chosen if rows.any()]
    with tqdm(total=files.total, desc="writing", unit="text") as progress:
        for written in write_replaced(files, made, iter(chosen), _from_parts(work, counts)):
            progress.update(written)
    if _stamps(files) != before:
        raise VocabgraftError(f"{files.root} changed while it was read; nothing was written: run again")
    made.replace(destination)
    shutil.rmtree(work)


def _from_parts(work: Path, counts: list[int]) -> Iterator[Embeddings]:
    """The computed vectors, in arrays of the requested sizes."""
    numbers = count()
    held: Embeddings | None = None
    for wanted in counts:
        while held is None or len(held) < wanted:
            part: Embeddings = np.load(_part(work, next(numbers)), allow_pickle=False)
            held = part if held is None else np.concatenate([held, part])
        yield held[:wanted]
        held = held[wanted:]


def _encode(model: "SentenceTransformer", texts: list[str], settings: EncodingSettings) -> Embeddings:
    vectors = encode(model, texts, settings.batch_size, settings.role)
    if settings.normalise and len(vectors):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _embedded(
    items: list[tuple[Id, str]], model: "SentenceTransformer", settings: EncodingSettings
) -> Iterator[tuple[Id, Embeddings]]:
    vectors = _encode(model, [text for _, text in items], settings)
    yield from zip((key for key, _ in items), vectors, strict=True)


def _in_blocks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    block: list[Item] = []
    for item in items:
        block.append(item)
        if len(block) == size:
            yield block
            block = []
    if block:
        yield block


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds that a block takes to a table."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
