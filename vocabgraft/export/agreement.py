"""Measures how well an export agrees with its model: cosine per text, and the order of search results."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
NEAREST = 10
# Rounding in float32 moves a cosine by about 1e-7, which must not reorder two documents that are equally near.
SCORE_DIGITS = 5


@dataclass(frozen=True)
class Agreement:
    """Two encodings of the same texts, compared.

    Attributes:
        texts: number of encoded texts.
        queries: number of them that are queries.
        cosine_mean: mean cosine of the two embeddings of a text.
        cosine_min: the lowest cosine of a text.
        worst: that text.
        nearest_kept: share of the ten nearest documents that stay among the ten nearest, averaged over queries. With
            fewer than 40 documents, the nearest quarter counts.
        first_kept: share of queries whose nearest document stays the nearest.
    """

    texts: int
    queries: int
    cosine_mean: float
    cosine_min: float
    worst: str
    nearest_kept: float
    first_kept: float

    def as_json(self) -> dict[str, Any]:
        """The metrics, rounded to what another CPU reproduces, without the text itself."""
        return {
            name: round(value, 6) if isinstance(value, float) else value
            for name, value in asdict(self).items()
            if name != "worst"
        }


@dataclass(frozen=True)
class Encoded:
    """Embeddings of queries and of documents by one model."""

    queries: Array
    documents: Array


def compare(exact: Encoded, exported: Encoded, queries: Sequence[str], documents: Sequence[str]) -> Agreement:
    """Compare an export's embeddings with the model's own.

    Args:
        exact: by the model.
        exported: by its export.
        queries: texts that search.
        documents: texts that are searched.
    """
    cosines = np.concatenate(
        [cosines_of(exact.queries, exported.queries), cosines_of(exact.documents, exported.documents)]
    )
    same = _places_of(queries, documents)
    nearest, other = (_nearest(encoded, same) for encoded in (exact, exported))
    kept = [len(set(one) & set(two)) / len(one) for one, two in zip(nearest.tolist(), other.tolist(), strict=True)]
    lowest = int(np.argmin(np.nan_to_num(cosines, nan=-1.0)))
    return Agreement(
        texts=len(cosines),
        queries=len(queries),
        cosine_mean=float(cosines.mean()),
        cosine_min=float(cosines[lowest]),
        worst=[*queries, *documents][lowest],
        nearest_kept=float(np.mean(kept)),
        first_kept=float(np.mean(nearest[:, 0] == other[:, 0])),
    )


def cosines_of(left: Array, right: Array) -> Array:
    """The cosine of each row of one array with the same row of the other."""
    one, two = _unit(left), _unit(right)
    found: Array = np.einsum("ij,ij->i", one, two)
    return found


def _nearest(encoded: Encoded, same: Sequence[Sequence[int]]) -> Array:
    """The indices of the documents nearest to each query, nearest first; ties go to the first document.

    Args:
        encoded: by one model.
        same: for each query, the documents with the same text, which every model would find.
    """
    queries, documents = _unit(encoded.queries), _unit(encoded.documents)
    # With few documents the ten nearest would be all of them, whatever their order.
    count = min(NEAREST, max(1, len(documents) // 4))
    found = []
    for query, itself in zip(queries, same, strict=True):
        scores = np.round(documents @ query, SCORE_DIGITS)
        scores[list(itself)] = -np.inf
        found.append(np.argsort(-scores, kind="stable")[:count])
    return np.stack(found)


def _places_of(queries: Sequence[str], documents: Sequence[str]) -> list[list[int]]:
    places: dict[str, list[int]] = {}
    for place, text in enumerate(documents):
        places.setdefault(text, []).append(place)
    return [places.get(text, []) for text in queries]


def _unit(rows: Array) -> Array:
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.where(lengths > 0, lengths, 1.0)
