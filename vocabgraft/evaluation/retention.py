"""Retention and drift: how far embeddings of general texts moved, and which stored vectors stay valid."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vocabgraft.evaluation.evaluated_model import BoolArray, NewWords, Subject
from vocabgraft.evaluation.significance import Array
from vocabgraft.models.encode import Embeddings

NEIGHBOURS = 10
# In a smaller corpus, ten neighbors are nearly all texts, so keeping them means nothing.
LEAST_CORPUS = 2 * NEIGHBOURS
SHOWN_TEXTS = 10
# The distance of a float32 vector from the same text's vector in another batch.
SAME_VECTOR = 1e-6
# 32 MB of similarities at once.
NUMBERS_AT_ONCE = 2**23


def reference_corpus(texts: Sequence[str], limit: int) -> list[str]:
    """At most `limit` distinct texts: those with the lowest hashes, so that an added text replaces few others."""
    distinct = dict.fromkeys(texts)
    return sorted(distinct, key=lambda text: hashlib.sha256(text.encode()).digest())[:limit]


def measure_drift(base: Subject, merged: Subject, corpus: Sequence[str], new_words: NewWords) -> dict[str, Any]:
    """How far stored vectors of a corpus moved from `base` to `merged`.

    Returns:
        `corpus`, the number of texts. `drift`, for texts without and with a new token: `texts`, their number, and the
        drift (1 - cosine of a text's two embeddings) as `mean`, `p99` (99th percentile) and `worst` (the ten texts that
        moved most, with their cosines), and the two following metrics for these texts. `neighbours_kept`, the share of
        a text's ten nearest neighbors in the corpus that it keeps, in percent. `valid_share`, the share of texts whose
        stored vector equals the model's (within 1e-6), in percent. `problems`, the reasons for metrics that could not
        be measured and are None.
    """
    before, after = base.encode(corpus, "document"), merged.encode(corpus, "document")
    held = new_words.held(corpus)
    comparable = before.shape == after.shape
    cosines = cosines_of(before, after) if comparable else None
    valid = still_valid(before, after)
    kept = neighbours_kept(base, merged, before, after) if len(corpus) >= LEAST_CORPUS else None
    subsets = {"no_new_word": ~held, "new_word": held}
    return {
        "corpus": len(corpus),
        "drift": {name: _drift(corpus, rows, cosines, kept, valid) for name, rows in subsets.items()},
        "neighbours_kept": _percent(kept),
        "valid_share": _percent(valid),
        "problems": _problems(len(corpus), subsets, before.shape[1], after.shape[1]),
    }


def moved_share(base: Subject, other: Subject, corpus: Sequence[str]) -> float | None:
    """The share of a corpus, in percent, whose stored vectors must be computed again; None for an empty corpus."""
    return _percent(~still_valid(base.encode(corpus, "document"), other.encode(corpus, "document")))


def cosines_of(before: Embeddings, after: Embeddings) -> Array:
    """The cosine of each row with its counterpart, exactly 1 if the two are equal: (rows,)."""
    left, right = before.astype(np.float64), after.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines = (left * right).sum(axis=1) / np.maximum(lengths, 1e-30)
    found: Array = np.where((before == after).all(axis=1), 1.0, np.clip(cosines, -1, 1))
    return found


def still_valid(before: Embeddings, after: Embeddings) -> BoolArray:
    """Whether each stored vector equals the model's within 1e-6; never true if the widths differ: (rows,)."""
    if before.shape != after.shape:
        return np.zeros(len(before), dtype=bool)
    found: BoolArray = (np.abs(before - after) <= SAME_VECTOR).all(axis=1)
    return found


def neighbours_kept(base: Subject, merged: Subject, before: Embeddings, after: Embeddings) -> Array:
    """The share, 0 to 1, of each row's ten nearest rows that are the same in both models: (rows,)."""
    kept = np.zeros(len(before))
    step = max(1, NUMBERS_AT_ONCE // max(1, len(before)))
    for start in range(0, len(before), step):
        rows = slice(start, start + step)
        near = [
            nearest(subject.similarities(embeddings[rows], embeddings), start, NEIGHBOURS)
            for subject, embeddings in ((base, before), (merged, after))
        ]
        kept[rows] = (near[0] & near[1]).sum(axis=1) / NEIGHBOURS
    return kept


def nearest(similarities: "np.ndarray[Any, Any]", start: int, count: int) -> BoolArray:
    """Mark the `count` most similar columns of each row, without its own; ties go to the first: (rows, columns).

    Args:
        similarities: (rows, columns), where row i is column `start + i`.
        start: the column of the first row.
        count: number of columns to mark, less than the number of other columns.
    """
    # Similarities that differ only by rounding are equal.
    scores = similarities.astype(np.float64).round(6)
    own = np.arange(len(scores))
    scores[own, start + own] = -np.inf
    last = -np.partition(-scores, count - 1, axis=1)[:, count - 1 : count]
    above, equal = scores > last, scores == last
    found: BoolArray = above | (equal & (np.cumsum(equal, axis=1) <= count - above.sum(axis=1, keepdims=True)))
    return found


def _drift(
    corpus: Sequence[str], rows: BoolArray, cosines: Array | None, kept: Array | None, valid: BoolArray
) -> dict[str, Any]:
    figures = {
        "texts": int(rows.sum()),
        "neighbours_kept": _percent(kept[rows]) if kept is not None else None,
        "valid_share": _percent(valid[rows]),
    }
    if cosines is None or not rows.any():
        return {**figures, "mean": None, "p99": None, "worst": []}
    drift = 1 - cosines[rows]
    moved = rows & (cosines < 1)
    order = [place for place in np.argsort(cosines, kind="stable").tolist() if moved[place]][:SHOWN_TEXTS]
    worst = [{"text": corpus[place], "cosine": round(float(cosines[place]), 6)} for place in order]
    high = float(np.quantile(drift, 0.99))
    return {**figures, "mean": round(float(drift.mean()), 6), "p99": round(high, 6), "worst": worst}


def _percent(values: "np.ndarray[Any, Any] | None") -> float | None:
    return round(100 * float(values.mean()), 4) if values is not None and len(values) else None


def _problems(texts: int, subsets: dict[str, BoolArray], before: int, after: int) -> list[str]:
    problems = []
    if texts < LEAST_CORPUS:
        problems.append(
            f"the reference corpus has {texts} texts, too few for {NEIGHBOURS} neighbors (at least {LEAST_CORPUS}); "
            "add datasets, contexts or retention pairs, or raise evaluate_model.reference_texts"
        )
    for name, rows in subsets.items():
        if not rows.any():
            problems.append(
                f"the reference corpus has no text {'without' if name == 'no_new_word' else 'with'} a new word"
            )
    if before != after:
        problems.append(
            f"the merged model's embeddings have width {after} and the base's {before}, so no stored vector is valid "
            "and drift is undefined"
        )
    return problems
