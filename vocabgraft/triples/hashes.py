"""The set of known triples as hashes of 8 bytes each: a million triples take 8 MB.

A text is identified by its token ids: texts with the same ids have the same hash. With 64 bits, the probability that
any of a billion triples is mistaken for one of a million known triples is 5 in 100,000.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabgraft.errors import VocabgraftError

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
COLUMNS = ("head", "relation", "tail")
ROWS_AT_ONCE = 10_000
# Odd numbers with random bits: 2^64 over the golden ratio (Steele et al., 2014), and two of splitmix64's.
STEP, FIRST, SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def hash_features(features: Mapping[str, Any]) -> Hashes:
    """A hash for each row of a batch, from its input ids in order, without padding: shape (rows,).

    Raises:
        VocabgraftError: for features without ids and mask per row.
    """
    ids, mask = features.get("input_ids"), features.get("attention_mask")
    if ids is None or mask is None or ids.ndim != 2 or ids.shape != mask.shape:
        raise VocabgraftError(
            f"a text is identified by its input_ids and attention_mask, both (rows, length); the model's features are "
            f"{', '.join(sorted(features))}. Use a model that has a Transformer as its first layer"
        )
    kept = mask.cpu().numpy() != 0
    places = np.cumsum(kept, axis=1).astype(np.uint64)
    with np.errstate(over="ignore"):
        mixed = _mix(ids.cpu().numpy().astype(np.uint64) + places * STEP)
        return _mix((mixed * kept).sum(axis=1, dtype=np.uint64))


def hash_texts(model: "SentenceTransformer", texts: Sequence[str], prompt: str | None = None) -> Hashes:
    """A hash for each text as the model tokenizes it, with its prompt: shape (texts,)."""
    distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    blocks = [hash_features(model.preprocess(block, prompt=prompt)) for block in _blocks(list(distinct))]
    hashes = np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.uint64)
    return hashes[[distinct[text] for text in texts]]


def combine(heads: Hashes, relations: Hashes, tails: Hashes) -> Hashes:
    """Hashes of triples from the hashes of their texts; the arrays are broadcast."""
    with np.errstate(over="ignore"):
        return _mix(_mix(_mix(heads * STEP + FIRST) ^ relations) * SECOND ^ tails)


def hash_triples(
    model: "SentenceTransformer", triples: "Mapping[str, Sequence[str]] | Dataset", prompts: Mapping[str, str] = {}
) -> Hashes:
    """Sorted distinct hashes of triples, read block by block: shape (distinct triples,).

    Args:
        model: its tokenizer decides which texts are the same.
        triples: text columns `head`, `relation` and `tail`, such as a memory-mapped Dataset.
        prompts: the trainer's prompts by column.

    Raises:
        VocabgraftError: when a column is absent, or the columns differ in length.
    """
    names = triples.column_names if hasattr(triples, "column_names") else list(triples)
    if absent := [name for name in COLUMNS if name not in names]:
        raise VocabgraftError(
            f"known triples have the columns {', '.join(map(str, names))}; {', '.join(absent)} is absent. "
            f"Give the columns {', '.join(COLUMNS)}"
        )
    columns = [triples[name] for name in COLUMNS]
    if len({len(column) for column in columns}) > 1:
        raise VocabgraftError(
            f"the columns of the known triples have {', '.join(str(len(column)) for column in columns)} rows; "
            "give one head, relation and tail per triple"
        )
    blocks = [
        combine(*(hash_texts(model, part, prompts.get(name)) for name, part in zip(COLUMNS, parts, strict=True)))
        for parts in zip(*(_blocks(column) for column in columns), strict=True)
    ]
    hashes: Hashes = np.unique(np.concatenate(blocks)) if blocks else np.zeros(0, dtype=np.uint64)
    return hashes


def are_known(triples: Hashes, known: Hashes) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Whether each hash is in the sorted `known`; the shape of `triples`."""
    if not len(known):
        return np.zeros(triples.shape, dtype=bool)
    places = np.searchsorted(known, triples).clip(max=len(known) - 1)
    found: np.ndarray[Any, np.dtype[np.bool_]] = known[places] == triples
    return found


def _blocks(texts: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), ROWS_AT_ONCE):
        yield list(texts[start : start + ROWS_AT_ONCE])


def _mix(values: Hashes) -> Hashes:
    """The finalizer of splitmix64: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * FIRST
    values = (values ^ (values >> np.uint64(27))) * SECOND
    mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed
