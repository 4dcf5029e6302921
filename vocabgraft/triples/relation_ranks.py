"""Scores triples with every relation, to test how well relation tokens are distinguished."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from vocabgraft.config.datasets import DatasetParams
from vocabgraft.config.losses import LOSSES
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.data.splits import SPLITS
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import Embeddings, encode
from vocabgraft.models.unnormalized import encode_pooled
from vocabgraft.tokens.new_token import relation_token
from vocabgraft.triples.losses import Similarity, similarities

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Triple = tuple[str, str, str]
# Per relation, for any number of relations.
LEAST_TRIPLES = 5
# Enough to find two swapped relations.
MOST_TRIPLES = 20
# The largest number of encoded heads times relations, after each relation has its minimum of triples.
QUESTIONS = 4000


@dataclass(frozen=True)
class HeldOutTriples:
    """The held-out triples of a dataset, and how its training objective scores one.

    Attributes:
        dataset: its name.
        held_out: head, relation and tail.
        known: of all splits; a relation that makes another known triple is ignored.
        template: of the query for the tail, if `similarity` is None.
        similarity: of embed(head) + embed(relation) to embed(tail), before Normalize, as in TransE; None if the
            objective compares the text of head and relation with the tail.
    """

    dataset: str
    held_out: tuple[Triple, ...]
    known: frozenset[Triple]
    template: str
    similarity: Similarity | None

    @property
    def relations(self) -> list[str]:
        """All relations of the known triples, in order."""
        return sorted({relation for _, relation, _ in self.known})

    @property
    def counts(self) -> dict[str, int]:
        """The number of held-out triples by relation token."""
        return Counter(relation_token(relation) for _, relation, _ in self.held_out)


@dataclass(frozen=True)
class RelationScores:
    """Scores of some triples with each relation in place of their own.

    Attributes:
        tokens: the relations' tokens, in the order of the columns.
        right: (triples,) the column of each triple's own relation.
        scores: (triples, relations), higher is better; NaN where another relation makes a known triple.
    """

    tokens: tuple[str, ...]
    right: "np.ndarray[Any, np.dtype[np.intp]]"
    scores: "np.ndarray[Any, np.dtype[np.float64]]"


def held_out_triples(dataset: AcceptedDataset, settings: DatasetParams) -> HeldOutTriples:
    """The test split of a dataset of triples, with the scoring of its loss."""
    triples = {split: _triples(dataset.columns(split)) for split in SPLITS}
    known = frozenset(triple for split in SPLITS for triple in triples[split])
    return HeldOutTriples(dataset.name, tuple(triples["test"]), known, dataset.template, _similarity(settings))


def _triples(columns: dict[str, list[Any]]) -> list[Triple]:
    return list(zip(columns["head"], columns["relation"], columns["tail"], strict=True))


def _similarity(settings: DatasetParams) -> Similarity | None:
    loss = settings.chosen_loss
    if LOSSES[loss.name].reads != "triple":
        return None
    if loss.arguments.get("p") == 1:
        return "manhattan"
    given: Literal["euclidean", "manhattan", "cosine", "dot"] = loss.arguments.get("similarity", "euclidean")
    return given


def held_out_sample(triples: HeldOutTriples) -> list[Triple]:
    """The first held-out triples of each relation, as many as the limit on queries allows."""
    return _first_of_each(triples.held_out, triples)


def known_sample(triples: HeldOutTriples) -> list[Triple]:
    """Known triples of each relation, from all splits, in hash order so that heads are mixed."""
    ordered = sorted(triples.known, key=lambda triple: hashlib.sha256("\t".join(triple).encode()).digest())
    return _first_of_each(ordered, triples)


def relation_scores(
    model: "SentenceTransformer", triples: HeldOutTriples, chosen: Sequence[Triple], batch_size: int
) -> RelationScores:
    """Score each chosen triple with every relation, masking those that make another known triple.

    Raises:
        VocabgraftError: when a score is NaN or infinite.
    """
    relations = triples.relations
    scores = np.asarray(_scores(model, triples, chosen, batch_size), dtype=np.float64)
    if not np.isfinite(scores).all():
        raise VocabgraftError(f"dataset {triples.dataset}: scores of triples are NaN or infinite")
    known = [
        [other != relation and (head, other, tail) in triples.known for other in relations]
        for head, relation, tail in chosen
    ]
    return RelationScores(
        tokens=tuple(map(relation_token, relations)),
        right=np.array([relations.index(relation) for _, relation, _ in chosen], dtype=np.intp),
        scores=np.where(np.array(known, dtype=bool), np.nan, scores),
    )


def _first_of_each(triples: Iterable[Triple], of: HeldOutTriples) -> list[Triple]:
    most = max(LEAST_TRIPLES, min(MOST_TRIPLES, QUESTIONS // max(1, len(of.relations)) ** 2))
    seen: dict[str, int] = {}
    chosen = []
    for triple in triples:
        seen[triple[1]] = seen.get(triple[1], 0) + 1
        if seen[triple[1]] <= most:
            chosen.append(triple)
    return chosen


def _scores(
    model: "SentenceTransformer", triples: HeldOutTriples, chosen: Sequence[Triple], batch_size: int
) -> "np.ndarray[Any, Any]":
    """The score of each triple with each relation in place of its own: (triples, relations)."""
    names = [relation_token(relation) for relation in triples.relations]
    heads, tails = list(dict.fromkeys(t[0] for t in chosen)), list(dict.fromkeys(t[2] for t in chosen))
    if triples.similarity is None:
        asked = [triples.template.format(head=head, relation=name) for head in heads for name in names]
        queries = encode(model, asked, batch_size, "query").reshape(len(heads), len(names), -1)
        answers, similarity = encode(model, tails, batch_size, "document"), "cosine"
    else:
        queries = encode_pooled(model, heads, batch_size)[:, None] + encode_pooled(model, names, batch_size)[None]
        answers, similarity = encode_pooled(model, tails, batch_size), triples.similarity
    place = {text: number for number, text in enumerate(heads)}, {text: number for number, text in enumerate(tails)}
    return np.array([_to_tail(queries[place[0][h]], answers[place[1][t]], similarity) for h, _, t in chosen])


def _to_tail(queries: Embeddings, tail: Embeddings, similarity: Any) -> "np.ndarray[Any, Any]":
    found = similarities(torch.from_numpy(queries), torch.from_numpy(tail)[None], similarity)
    return np.asarray(found[:, 0])
