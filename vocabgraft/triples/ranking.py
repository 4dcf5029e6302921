"""Filtered ranks of triples among all entities, and the metrics of these ranks."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import Embeddings
from vocabgraft.triples.losses import Direction, Similarity

if TYPE_CHECKING:
    pass


Ids = np.ndarray[Any, np.dtype[np.int64]]


Ranks = np.ndarray[Any, np.dtype[np.float64]]


Figures = dict[str, float]


HITS = (1, 3, 10)


# 32 MB of scores: 80 queries at a time over 100,000 entities.
SCORES_AT_ONCE = 2**23


def rank_triples(
    queries: Embeddings,
    entities: Embeddings,
    triples: Ids,
    known: Ids,
    direction: Direction,
    similarity: Similarity = "euclidean",
    leave_out_query: bool = False,
    scores_at_once: int = SCORES_AT_ONCE,
    device: torch.device | str = "cpu",
) -> Ranks:
    """The filtered rank, 1 is best, of each triple's tail (or head) among all entities.

    The rank is 1 + the entities with a higher score + half of those with the same score. Entities with equal embeddings
    are scored once, so that rounding cannot separate them.

    Args:
        queries: (triples, width); the answer of each triple should be similar to its query.
        entities: (entities, width).
        triples: indices of head, relation and tail: (triples, 3).
        known: all known triples, (known, 3); for the usual filter they include those of `triples`.
        direction: `tail` ranks the third column, `head` the first.
        similarity: `euclidean` and `manhattan` are negative distances.
        leave_out_query: whether to exclude the query's own entity from the candidates, unless it is the answer.
        scores_at_once: bounds the memory; it does not change the ranks.
        device: on which the scores are computed.

    Returns:
        (triples,)

    Raises:
        VocabgraftError: when sizes do not match, or a score is NaN.
    """
    _require_fit(queries, entities, triples, known)
    asked, answer = (0, 2) if direction == "tail" else (2, 0)
    true = _TrueAnswers(known, asked, answer)
    kinds, rows = _distinct_rows(entities)
    scorer = _Scorer(entities[rows], np.bincount(kinds, minlength=len(rows)), similarity, device)
    ranks = np.zeros(len(triples))
    step = max(1, scores_at_once // max(1, len(rows)))
    for start in range(0, len(triples), step):
        block = triples[start : start + step]
        aside = [true.beside(triple, leave_out_query) for triple in block]
        ranks[start : start + step] = scorer.ranks(queries[start : start + step], kinds, block[:, answer], aside)
    return ranks


def rank_figures(ranks: Ranks) -> Figures:
    """Mean rank, mean reciprocal rank and the shares of ranks up to 1, 3 and 10."""
    hits = {f"hits@{limit}": float((ranks <= limit).mean()) for limit in HITS}
    return {"mr": float(ranks.mean()), "mrr": float((1 / ranks).mean()), **hits}


class _TrueAnswers:
    """The known answers for each pair of an entity and a relation, as two sorted arrays."""

    def __init__(self, known: Ids, asked: int, answer: int) -> None:
        self.asked, self.answer = asked, answer
        self.relations = int(known[:, 1].max(initial=0)) + 1
        keys = known[:, asked] * self.relations + known[:, 1]
        order = np.argsort(keys, kind="stable")
        self.keys, self.answers = keys[order], known[order, answer]

    def beside(self, triple: Ids, leave_out_query: bool) -> Ids:
        """The entities to ignore for a triple: its other known answers."""
        found = self.answers[:0]
        if triple[1] < self.relations:
            key = triple[self.asked] * self.relations + triple[1]
            start, end = np.searchsorted(self.keys, (key, key + 1))
            found = self.answers[start:end]
        aside: Ids = np.unique(np.append(found, triple[self.asked]) if leave_out_query else found)
        beside: Ids = aside[aside != triple[self.answer]]
        return beside


class _Scorer:
    """Scores queries against distinct embeddings, each of one or more entities."""

    def __init__(self, rows: Embeddings, counts: Ids, similarity: Similarity, device: torch.device | str) -> None:
        self.similarity, self.device = similarity, device
        self.counts = torch.from_numpy(counts).to(device)
        self.rows = self._prepared(rows)
        # Minus half of the squared length, the product falls as the distance grows.
        self.offsets = self.rows.square().sum(dim=1) / 2 if similarity == "euclidean" else None

    def ranks(self, queries: Embeddings, kinds: Ids, answers: Ids, aside: Sequence[Ids]) -> Ranks:
        """Ranks of a block: (queries,)."""
        scores = self._scores(self._prepared(queries))
        if not torch.isfinite(scores).all():
            raise VocabgraftError(
                "a score of link prediction is NaN; the model's weights or the relation vectors are damaged, so "
                "train again with lower learning rates"
            )
        right = scores.gather(1, torch.from_numpy(kinds[answers]).to(self.device).unsqueeze(1))
        none = torch.zeros((), dtype=self.counts.dtype, device=self.device)
        higher = torch.where(scores > right, self.counts, none).sum(dim=1).cpu().numpy().astype(np.float64)
        same = torch.where(scores == right, self.counts, none).sum(dim=1).cpu().numpy().astype(np.float64)
        # The ignored entities were counted with the others; subtract them here, which costs only their number.
        sizes = [len(places) for places in aside]
        owner = np.repeat(np.arange(len(aside)), sizes)
        places = kinds[np.concatenate(aside)] if len(aside) else kinds[:0]
        looked_up = scores[torch.from_numpy(owner), torch.from_numpy(places)].cpu().numpy()
        own = right.squeeze(1).cpu().numpy()[owner]
        higher -= np.bincount(owner, looked_up > own, minlength=len(aside))
        same -= np.bincount(owner, looked_up == own, minlength=len(aside))
        # The right answer has the same score as itself.
        ranks: Ranks = 1 + higher + (same - 1) / 2
        return ranks

    def _prepared(self, values: Embeddings) -> torch.Tensor:
        rows = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(self.device)
        return torch.nn.functional.normalize(rows, dim=1) if self.similarity == "cosine" else rows

    def _scores(self, queries: torch.Tensor) -> torch.Tensor:
        if self.similarity == "manhattan":
            return -torch.cdist(queries, self.rows, p=1.0)
        products = queries @ self.rows.T
        return products if self.offsets is None else products.sub_(self.offsets)


def _distinct_rows(entities: Embeddings) -> tuple[Ids, Ids]:
    """The index of each entity's embedding, and the first entity of each distinct embedding."""
    numbers: dict[bytes, int] = {}
    first: list[int] = []
    kinds = np.zeros(len(entities), dtype=np.int64)
    for place, row in enumerate(entities):
        # Negative zero equals zero but has other bytes.
        key = hashlib.blake2b((row + 0.0).tobytes(), digest_size=16).digest()
        kinds[place] = numbers.setdefault(key, len(numbers))
        if len(numbers) > len(first):
            first.append(place)
    return kinds, np.array(first, dtype=np.int64)


def _require_fit(queries: Embeddings, entities: Embeddings, triples: Ids, known: Ids) -> None:
    if len(queries) != len(triples) or queries.shape[1] != entities.shape[1]:
        raise VocabgraftError(
            f"link prediction has queries of shape {queries.shape} for {len(triples)} triples and entities of shape "
            f"{entities.shape}; give one query of the entities' width per triple"
        )
    last = max((int(ids[:, [0, 2]].max(initial=0)) for ids in (triples, known)), default=0)
    if last >= len(entities) or min(triples.min(initial=0), known.min(initial=0)) < 0:
        raise VocabgraftError(
            f"triples name the entity {last} (or one below 0), but there are {len(entities)} entities; allowed: 0 to "
            f"{len(entities) - 1}"
        )
