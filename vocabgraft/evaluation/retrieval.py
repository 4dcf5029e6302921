"""Scores models on each held-out item: retrieval, link prediction and similarity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vocabgraft.config.benefits import LINK_HITS, LINK_METRICS, RETENTION, SPEARMAN
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.data.splits import SPLITS
from vocabgraft.errors import VocabgraftError
from vocabgraft.evaluation.evaluated_model import NewWords, Similarities, Subject
from vocabgraft.evaluation.metrics import Measurement
from vocabgraft.evaluation.significance import Array, Ids
from vocabgraft.models.encode import Embeddings
from vocabgraft.tokens.new_token import relation_token

Retention = tuple[list[str], list[str], list[float]]
QUERIES_AT_ONCE = 64


@dataclass(frozen=True)
class RetrievalSet:
    """Held-out queries over all documents of a dataset.

    `relevant[i]` are the documents that answer query i. `ignored[i]` are other known true answers, left out of the
    ranking (the filtered setting of link prediction). `groups[i]` is the group of query i.
    """

    name: str
    queries: list[str]
    documents: list[str]
    relevant: list[list[int]]
    ignored: list[list[int]]
    groups: list[str]


@dataclass(frozen=True)
class _Links:
    """The test triples of a dataset as questions and as indices of entities and relations, and all known triples."""

    questions: list[str]
    entities: list[str]
    relations: list[str]
    triples: Ids
    known: Ids


def retrieval_set(dataset: AcceptedDataset) -> RetrievalSet:
    """The test split as queries; every distinct document of all splits as candidates.

    For pairs, the documents of the query's group are relevant. For triples, each test tail is the answer of a query,
    and other known tails of the same head and relation are ignored.

    Raises:
        VocabgraftError: if the dataset has no test row.
    """
    pairs = {split: dataset.pairs(split) for split in SPLITS}
    if not pairs["test"]:
        raise VocabgraftError(
            f"dataset {dataset.name} has no test row; raise held_out.test in params.yaml or give a test file"
        )
    position: dict[str, int] = {}
    for split in SPLITS:
        for _, document in pairs[split]:
            position.setdefault(document, len(position))
    documents, groups = list(position), dataset.groups("test")
    if dataset.format != "triples":
        answers = _by_key(groups, [position[document] for _, document in pairs["test"]])
        queries = dict(zip((anchor for anchor, _ in pairs["test"]), groups, strict=True))
        relevant, own_groups = [answers[group] for group in queries.values()], list(queries.values())
        return RetrievalSet(dataset.name, list(queries), documents, relevant, [[] for _ in queries], own_groups)
    known = [(anchor, position[document]) for split in SPLITS for anchor, document in pairs[split]]
    true = _by_key([anchor for anchor, _ in known], [place for _, place in known])
    relevant = [[position[document]] for _, document in pairs["test"]]
    ignored = [
        [place for place in true[anchor] if place != answer[0]]
        for (anchor, _), answer in zip(pairs["test"], relevant, strict=True)
    ]
    return RetrievalSet(dataset.name, [anchor for anchor, _ in pairs["test"]], documents, relevant, ignored, groups)


def ranks(
    retrieval: RetrievalSet,
    queries: Embeddings,
    documents: Embeddings,
    similarities: Similarities = lambda q, d: q @ d.T,
) -> Array:
    """Rank (1 is best) of each query's best relevant document; ties get their mean rank: shape (queries,).

    Raises:
        VocabgraftError: for a similarity that is not finite: NaN would otherwise rank first.
    """
    found = np.zeros(len(queries))
    for row, scores in enumerate(_rows_of_scores(queries, documents, similarities)):
        if not np.isfinite(scores).all():
            raise VocabgraftError(
                f"dataset {retrieval.name}: the similarity of the query {retrieval.queries[row]!r} to a document is "
                "NaN or infinite; the model's weights are damaged, so train it again with lower learning rates"
            )
        best = scores[retrieval.relevant[row]].max()
        others = np.ones(len(scores), dtype=bool)
        others[retrieval.relevant[row]] = False
        others[retrieval.ignored[row]] = False
        found[row] = 1 + (scores[others] > best).sum() + 0.5 * (scores[others] == best).sum()
    return found


def measure_retrieval(
    dataset: AcceptedDataset, subjects: Sequence[Subject], new_words: NewWords, recall_at: int
) -> list[Measurement]:
    """Mean reciprocal rank and recall of the test split's queries.

    Raises:
        VocabgraftError: if the dataset has no test row.
    """
    retrieval = retrieval_set(dataset)
    found: dict[str, Array] = {
        subject.name: ranks(
            retrieval,
            subject.encode(retrieval.queries, "query"),
            subject.encode(retrieval.documents, "document"),
            subject.similarities,
        )
        for subject in subjects
    }
    held = new_words.held(retrieval.queries)
    common: dict[str, Any] = {
        "dataset": dataset.name,
        "items": retrieval.queries,
        "groups": retrieval.groups,
        "new_word": held,
        "answers": [retrieval.documents[places[0]] for places in retrieval.relevant],
    }
    return [
        Measurement(
            metric="mrr", values={name: np.divide(100.0, ranked) for name, ranked in found.items()}, main=True, **common
        ),
        Measurement(
            metric=f"recall@{recall_at}",
            values={name: np.where(ranked <= recall_at, 100.0, 0.0) for name, ranked in found.items()},
            **common,
        ),
    ]


def measure_links(
    dataset: AcceptedDataset, subjects: Sequence[Subject], new_words: NewWords, translation: bool
) -> list[Measurement]:
    """Filtered link prediction of the test triples among all entities, heads and tails of every split.

    The entity in the question is not a candidate: a question is nearest to its own head, so an answer could never rank
    first.

    Args:
        dataset: triples.
        subjects: models.
        new_words: finds questions with a new word.
        translation: whether the triples are learned as translations (Bordes et al., 2013). Then the tail is searched
            near embed(head) + embed(relation) and the head near embed(tail) - embed(relation), and the value of a
            triple is the mean of both; otherwise only the tail is searched, with the question.
    """
    links = _links_of(dataset)
    rank = _translation_ranks if translation else _question_ranks
    found = {subject.name: _link_values(rank(subject, links)) for subject in subjects}
    held = new_words.held(links.questions)
    return [
        Measurement(
            dataset=dataset.name,
            metric=metric,
            items=links.questions,
            groups=dataset.groups("test"),
            new_word=held,
            values={name: values[metric] for name, values in found.items()},
        )
        for metric in LINK_METRICS
    ]


def measure_similarity(dataset: AcceptedDataset, subjects: Sequence[Subject], new_words: NewWords) -> Measurement:
    """Spearman's rho of the similarity of the test split's scored pairs with their scores."""
    columns = dataset.columns("test")
    pairs = columns["sentence1"], columns["sentence2"], columns["score"]
    held = new_words.held(pairs[0]) | new_words.held(pairs[1])
    return _measure_pairs(dataset.name, pairs, subjects, held, dataset.groups("test"))


def measure_retention(retention: Retention, subjects: Sequence[Subject], new_words: NewWords) -> Measurement:
    """Spearman's rho of the similarity of the retention pairs with their scores."""
    held = new_words.held(retention[0]) | new_words.held(retention[1])
    return _measure_pairs(RETENTION, retention, subjects, held, retention[0])


def _measure_pairs(
    name: str, pairs: Retention, subjects: Sequence[Subject], held: "np.ndarray[Any, Any]", groups: Sequence[str]
) -> Measurement:
    first, second, scores = pairs
    return Measurement(
        dataset=name,
        metric=SPEARMAN,
        items=first,
        groups=groups,
        new_word=held,
        values={
            # Rounded, because differences by rounding errors are not an order.
            subject.name: subject.similarities_of_pairs(subject.encode(first), subject.encode(second))
            .astype(np.float64)
            .round(6)
            for subject in subjects
        },
        scores=np.array(scores, dtype=np.float64),
        answers=second,
        counted="pairs",
        main=True,
    )


def _rows_of_scores(queries: Embeddings, documents: Embeddings, similarities: Similarities) -> Any:
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        yield from similarities(queries[start : start + QUERIES_AT_ONCE], documents)


def _links_of(dataset: AcceptedDataset) -> _Links:
    columns = {split: dataset.columns(split) for split in SPLITS}
    together = {name: [text for split in SPLITS for text in columns[split][name]] for name in columns["test"]}
    entities = list(dict.fromkeys([*together["head"], *together["tail"]]))
    relations = list(dict.fromkeys(together["relation"]))
    return _Links(
        questions=[anchor for anchor, _ in dataset.pairs("test")],
        entities=entities,
        relations=[relation_token(name) for name in relations],
        triples=_numbered(columns["test"], entities, relations),
        known=_numbered(together, entities, relations),
    )


def _question_ranks(subject: Subject, links: _Links) -> list[Array]:
    from vocabgraft.triples.ranking import rank_triples

    queries, candidates = subject.encode(links.questions, "query"), subject.encode(links.entities, "document")
    similarity: Any = subject.model.similarity_fn_name
    return [rank_triples(queries, candidates, links.triples, links.known, "tail", similarity, leave_out_query=True)]


def _translation_ranks(subject: Subject, links: _Links) -> list[Array]:
    from vocabgraft.models.unnormalized import encode_pooled
    from vocabgraft.triples.ranking import rank_triples

    places, vectors = (
        encode_pooled(subject.model, subject.read(texts), subject.batch_size)
        for texts in (links.entities, links.relations)
    )
    heads, relations, tails = links.triples.T
    near_tail, near_head = places[heads] + vectors[relations], places[tails] - vectors[relations]
    return [
        rank_triples(near_tail, places, links.triples, links.known, "tail", leave_out_query=True),
        rank_triples(near_head, places, links.triples, links.known, "head", leave_out_query=True),
    ]


def _link_values(directions: Sequence[Array]) -> dict[str, Array]:
    """Each metric of each triple in percent, the mean over its directions."""
    ranked = np.stack(directions)
    hits = [100.0 * (ranked <= limit).mean(axis=0) for limit in LINK_HITS]
    return dict(zip(LINK_METRICS, [100 * (1 / ranked).mean(axis=0), *hits], strict=True))


def _numbered(columns: dict[str, list[str]], entities: Sequence[str], relations: Sequence[str]) -> Ids:
    """Triples as indices of head, relation and tail: (triples, 3)."""
    place = {text: number for number, text in enumerate(entities)}
    number = {text: number for number, text in enumerate(relations)}
    heads, tails = ([place[text] for text in columns[name]] for name in ("head", "tail"))
    return np.array([heads, [number[text] for text in columns["relation"]], tails], dtype=np.int64).T


def _by_key(keys: Sequence[str], places: Sequence[int]) -> dict[str, list[int]]:
    grouped: dict[str, list[int]] = {}
    for key, place in zip(keys, places, strict=True):
        if place not in grouped.setdefault(key, []):
            grouped[key].append(place)
    return grouped
