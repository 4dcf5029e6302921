"""How well a relation's token is told from the others: its rank for held-out triples, between their head and tail."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from vocabgraft.config.datasets import DatasetParams
from vocabgraft.config.losses import LOSSES
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.data.splits import SPLITS
from vocabgraft.models.encode import Embeddings, encode
from vocabgraft.models.unnormalized import encode_pooled
from vocabgraft.tokens.new_token import relation_token
from vocabgraft.triples.losses import Similarity, similarities

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Triple = tuple[str, str, str]
# A mean over fewer ranks says nothing of a relation.
LEAST_TRIPLES = 5
# Questions that are encoded at most, heads times relations, as long as each relation has its fewest triples.
QUESTIONS = 2000


@dataclass(frozen=True)
class HeldOutTriples:
    """The held-out triples of a dataset, and how the objective that it was trained with scores one.

    Attributes:
        dataset: its name.
        held_out: head, relation and tail.
        known: of all splits; a relation that makes a known triple does not stand in the way of the right one.
        template: what is asked for the tail, where `similarity` is None.
        similarity: of embed(head) + embed(relation) to embed(tail), before Normalize, as TransE has it; None where the
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
        """How many held-out triples each relation's token has."""
        return Counter(relation_token(relation) for _, relation, _ in self.held_out)


@dataclass(frozen=True)
class RelationPlace:
    """Where the right relation stands for one triple: from 0, before all others, to 1, after all."""

    token: str
    place: float


def held_out_triples(dataset: AcceptedDataset, settings: DatasetParams) -> HeldOutTriples:
    """The test split of a dataset of triples, scored as its loss trains it."""
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


def chosen_triples(triples: HeldOutTriples) -> list[Triple]:
    """The first triples of each relation, as many of each as the bound on questions lets through."""
    relations = len(triples.relations)
    most = max(LEAST_TRIPLES, QUESTIONS // max(1, relations) ** 2)
    seen: dict[str, int] = {}
    chosen = []
    for triple in triples.held_out:
        seen[triple[1]] = seen.get(triple[1], 0) + 1
        if seen[triple[1]] <= most:
            chosen.append(triple)
    return chosen


def relation_places(model: "SentenceTransformer", triples: HeldOutTriples, batch_size: int) -> list[RelationPlace]:
    """The place of the right relation of each chosen triple among all relations that do not make a known triple.

    The place is (rank - 1) / (relations - 1), ties at their mean: 0 is best, 0.5 is chance. A triple without another
    relation to compare with is left out.
    """
    chosen, relations = chosen_triples(triples), triples.relations
    scores = _scores(model, triples, chosen, batch_size)
    found = []
    for (head, relation, tail), row in zip(chosen, scores, strict=True):
        right = row[relations.index(relation)]
        others = np.array([(head, other, tail) not in triples.known for other in relations])
        if others.any():
            better = (row[others] > right).sum() + 0.5 * (row[others] == right).sum()
            # A score that is no number compares false, which would be the best place.
            place = float(better / others.sum()) if np.isfinite(row).all() else float("nan")
            found.append(RelationPlace(relation_token(relation), place))
    return found


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
