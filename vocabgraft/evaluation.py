"""Quality on held-out items, and what became of everything else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

from vocabgraft.accepted_data import AcceptedDataset
from vocabgraft.encoding import Embeddings, encode_apart
from vocabgraft.errors import VocabgraftError
from vocabgraft.splits import SPLITS
from vocabgraft.tokenizer import ExtendedToken, holds_new_token
from vocabgraft.vocabulary import read_with_descriptions

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
Encoder = Callable[[Sequence[str], Any], Embeddings]
SUBSETS = ("all", "new_word", "no_new_word")


@dataclass(frozen=True)
class RetrievalSet:
    """Held-out queries over all documents of a dataset.

    `relevant[i]` are the documents that answer query i; `ignored[i]` are true answers known from elsewhere, which
    neither count nor stand in the way (the filtered setting of link prediction).
    """

    name: str
    queries: list[str]
    documents: list[str]
    relevant: list[list[int]]
    ignored: list[list[int]]


def retrieval_set(dataset: AcceptedDataset) -> RetrievalSet:
    """The test split as queries; every distinct document of all splits as candidates.

    Of pairs, the documents of the query's group are relevant. Of triples each test tail is a query's answer, and
    the other known tails of the same head and relation are ignored.

    Raises:
        VocabgraftError: when the dataset has no test row.
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
    documents = list(position)
    if dataset.format != "triples":
        answers = _by_key(dataset.groups("test"), [position[document] for _, document in pairs["test"]])
        queries = dict(zip((anchor for anchor, _ in pairs["test"]), dataset.groups("test"), strict=True))
        relevant = [answers[group] for group in queries.values()]
        return RetrievalSet(dataset.name, list(queries), documents, relevant, [[] for _ in queries])
    known = [(anchor, position[document]) for split in SPLITS for anchor, document in pairs[split]]
    true = _by_key([anchor for anchor, _ in known], [place for _, place in known])
    relevant = [[position[document]] for _, document in pairs["test"]]
    ignored = [
        [place for place in true[anchor] if place != answer[0]]
        for (anchor, _), answer in zip(pairs["test"], relevant, strict=True)
    ]
    return RetrievalSet(dataset.name, [anchor for anchor, _ in pairs["test"]], documents, relevant, ignored)


def ranks(retrieval: RetrievalSet, queries: Embeddings, documents: Embeddings) -> "np.ndarray[Any, Any]":
    """Rank (1 is best) of each query's best relevant document, ties counted at their mean: shape (queries,).

    Raises:
        VocabgraftError: for an embedding that is not made of numbers, which would otherwise rank first.
    """
    found = np.zeros(len(queries))
    for row, query in enumerate(queries):
        scores = documents @ query
        if not np.isfinite(scores).all():
            raise VocabgraftError(
                f"dataset {retrieval.name}: the similarity of the query {retrieval.queries[row]!r} to a document is "
                "no number; the model's weights are damaged, so train it again with lower learning rates"
            )
        best = scores[retrieval.relevant[row]].max()
        others = np.ones(len(scores), dtype=bool)
        others[retrieval.relevant[row]] = False
        others[retrieval.ignored[row]] = False
        found[row] = 1 + (scores[others] > best).sum() + 0.5 * (scores[others] == best).sum()
    return found


def score(found: "np.ndarray[Any, Any]", recall_at: int) -> dict[str, float | int]:
    """Mean reciprocal rank and recall of a set of ranks, in percent, with their count."""
    if not len(found):
        return {"queries": 0}
    return {
        "mrr": round(100 * float((1 / found).mean()), 4),
        f"recall@{recall_at}": round(100 * float((found <= recall_at).mean()), 4),
        "queries": len(found),
    }


def evaluate(
    base: "SentenceTransformer",
    others: dict[str, "SentenceTransformer"],
    datasets: Sequence[AcceptedDataset],
    retention: tuple[list[str], list[str], list[float]],
    tokens: Sequence[ExtendedToken],
    batch_size: int,
    recall_at: int,
) -> dict[str, dict[str, Any]]:
    """Score the base and the extended models on the same texts.

    The base reads a new special token as its description, since that is all that it could have been given.

    Returns:
        For each model: each dataset's subsets (`all`, `new_word`, `no_new_word` by the query) with their figures,
        `retention` (Spearman's rho in percent, by whether a pair holds a new word) and `tokens_per_text`.
    """
    extended = next(iter(others.values())).tokenizer
    new_ids = [token.id for token in tokens]
    # A relation's token makes every query of triples hold a new token; what its subsets tell apart is a new word.
    word_ids = [token.id for token in tokens if token.kind != "special"]
    described = [token.new_token for token in tokens if not token.retrained]
    result: dict[str, dict[str, Any]] = {}
    for name, model in {"base": base, **others}.items():

        def read(texts: Sequence[str], name: str = name) -> list[str]:
            return [read_with_descriptions(text, described) for text in texts] if name == "base" else list(texts)

        def embed(texts: Sequence[str], role: Any, model: Any = model, read: Any = read) -> Embeddings:
            return encode_apart(model, read(texts), holds_new_token(extended, texts, new_ids), batch_size, role)

        result[name] = {
            **{
                entry.name: _score_dataset(retrieval_set(entry), embed, extended, word_ids, recall_at)
                for entry in datasets
                if entry.is_retrieval
            },
            "retention": _score_retention(retention, embed, extended, new_ids),
            "tokens_per_text": _tokens_per_text(model, read, datasets),
        }
    return result


def _score_dataset(
    retrieval: RetrievalSet, embed: Encoder, tokenizer: Any, word_ids: Sequence[int], recall_at: int
) -> dict[str, dict[str, float | int]]:
    found = ranks(retrieval, embed(retrieval.queries, "query"), embed(retrieval.documents, "document"))
    held = holds_new_token(tokenizer, retrieval.queries, word_ids)
    return {subset: score(found[rows], recall_at) for subset, rows in _subsets(held).items()}


def _score_retention(
    retention: tuple[list[str], list[str], list[float]], embed: Encoder, tokenizer: Any, new_ids: Sequence[int]
) -> dict[str, dict[str, float | int]]:
    first, second, scores = retention
    similarity = (embed(first, None) * embed(second, None)).sum(axis=1)
    held = holds_new_token(tokenizer, first, new_ids) | holds_new_token(tokenizer, second, new_ids)
    return {
        subset: {"spearman": rho, "pairs": int(rows.sum())}
        for subset, rows in _subsets(held).items()
        if (rho := _spearman(similarity[rows], np.array(scores)[rows])) is not None
    }


def _spearman(similarity: "np.ndarray[Any, Any]", scores: "np.ndarray[Any, Any]") -> float | None:
    """In percent; None where fewer than three pairs, or equal values, leave no order to compare."""
    if len(scores) < 3 or len(set(scores.tolist())) < 2 or len(set(similarity.tolist())) < 2:
        return None
    return round(100 * float(spearmanr(similarity, scores).statistic), 4)


def _subsets(held: BoolArray) -> dict[str, BoolArray]:
    return dict(zip(SUBSETS, (np.ones_like(held), held, ~held), strict=True))


def _tokens_per_text(
    model: Any, read: Callable[[Sequence[str]], list[str]], datasets: Sequence[AcceptedDataset]
) -> float:
    texts = [text for dataset in datasets for text in dataset.texts("test")]
    lengths = [len(ids) for ids in model.tokenizer(read(texts), add_special_tokens=False, verbose=False)["input_ids"]]
    return round(sum(lengths) / len(lengths), 4)


def _by_key(keys: Sequence[str], places: Sequence[int]) -> dict[str, list[int]]:
    grouped: dict[str, list[int]] = {}
    for key, place in zip(keys, places, strict=True):
        if place not in grouped.setdefault(key, []):
            grouped[key].append(place)
    return grouped
