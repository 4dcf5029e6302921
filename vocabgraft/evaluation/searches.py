"""Search results before and after training: the queries whose rank changed most, and a random sample."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vocabgraft.data.beir import Benchmark
from vocabgraft.evaluation.evaluated_model import Subject
from vocabgraft.evaluation.metrics import highest
from vocabgraft.evaluation.retrieval import RetrievalSet, ranks
from vocabgraft.evaluation.significance import Array
from vocabgraft.tokens.tokenizer import new_ids_in

# For each of gains, losses and sample: a person reads thirty searches, not three hundred.
SHOWN = 10
NEAREST = 5
SHOWN_ANSWERS = 3


def changed_searches(retrieval: RetrievalSet, base: Subject, merged: Subject, seed: int) -> dict[str, Any]:
    """The searches of one dataset that a person should look at.

    The change of a query is the factor by which the rank of its best answer changed: from 100 to 10 is as much as from
    10 to 1. A difference of ranks would show only answers to which nobody scrolls.

    Args:
        retrieval: held-out queries over all documents.
        base: the model before training. Its embeddings are cached, so nothing is embedded twice.
        merged: the model after training.
        seed: seed of the sample.

    Returns:
        `dataset`; the numbers of `queries` and `documents`, and of queries that `improved` and `worsened`; and up to 10
        searches each in `gains`, `losses` and `sample`. A search has `query`, `answers`, `rank` by model, `tokens` by
        model as [token, is new], and `nearest` by model, the five nearest documents as
        [document, similarity, "right" | "also right" | ""]. "Also right" is another true answer to the query.
    """
    subjects = {"base": base, "merged": merged}
    found = {name: _ranks(retrieval, subject) for name, subject in subjects.items()}
    # Positive if the answer moved up.
    change = np.log(found["base"] / found["merged"])
    order = np.argsort(-change, kind="stable")
    chosen = {
        "gains": [place for place in order.tolist() if change[place] > 0][:SHOWN],
        "losses": [place for place in order[::-1].tolist() if change[place] < 0][:SHOWN],
        "sample": _sample(retrieval, seed),
    }
    shown = _describe(retrieval, sorted({place for places in chosen.values() for place in places}), subjects, found)
    return {
        "dataset": retrieval.name,
        "queries": len(retrieval.queries),
        "documents": len(retrieval.documents),
        "improved": int((change > 0).sum()),
        "worsened": int((change < 0).sum()),
        **{kind: [shown[place] for place in places] for kind, places in chosen.items()},
    }


def benchmark_set(benchmark: Benchmark) -> RetrievalSet:
    """A benchmark as queries with their relevant documents, regardless of grades."""
    queries, relevant = benchmark.queries, [list(grades) for grades in benchmark.relevance]
    return RetrievalSet(benchmark.name, queries, benchmark.documents, relevant, [[] for _ in queries], queries)


def _ranks(retrieval: RetrievalSet, subject: Subject) -> Array:
    queries, documents = subject.encode(retrieval.queries, "query"), subject.encode(retrieval.documents, "document")
    return ranks(retrieval, queries, documents, subject.similarities)


def _sample(retrieval: RetrievalSet, seed: int) -> list[int]:
    # A different sample for each dataset, but the same in every process.
    generator = np.random.default_rng([seed, zlib.crc32(retrieval.name.encode())])
    drawn: list[int] = np.sort(generator.permutation(len(retrieval.queries))[:SHOWN]).tolist()
    return drawn


def _describe(
    retrieval: RetrievalSet, places: Sequence[int], subjects: Mapping[str, Subject], found: Mapping[str, Array]
) -> dict[int, dict[str, Any]]:
    queries = [retrieval.queries[place] for place in places]
    tokens = {name: _tokens(subject, queries) for name, subject in subjects.items()}
    nearest = {name: _nearest(retrieval, places, subject) for name, subject in subjects.items()}
    return {
        place: {
            "query": retrieval.queries[place],
            "answers": [retrieval.documents[answer] for answer in retrieval.relevant[place][:SHOWN_ANSWERS]],
            "rank": {name: round(float(found[name][place]), 1) for name in subjects},
            "tokens": {name: tokens[name][row] for name in subjects},
            "nearest": {name: nearest[name][row] for name in subjects},
        }
        for row, place in enumerate(places)
    }


def _tokens(subject: Subject, texts: Sequence[str]) -> list[list[list[Any]]]:
    """Each text's tokens as [token, is new]."""
    if not texts:
        return []
    tokenizer, new_ids = subject.model.tokenizer, [token.id for token in subject.new_words.tokens]
    encoded = tokenizer(subject.read(texts), add_special_tokens=False, verbose=False)["input_ids"]
    new = new_ids_in(encoded, new_ids)
    return [
        [[token, token_id in held] for token, token_id in zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True)]
        for ids, held in zip(encoded, new, strict=True)
    ]


def _nearest(retrieval: RetrievalSet, places: Sequence[int], subject: Subject) -> list[list[list[Any]]]:
    queries = subject.encode([retrieval.queries[place] for place in places], "query")
    scores = subject.similarities(queries, subject.encode(retrieval.documents, "document"))
    return [
        [
            [retrieval.documents[document], float(row[document]), _kind(retrieval, place, document)]
            # Rounded before sorting, because the last digits of equal texts may differ.
            for document in highest(row, NEAREST)
        ]
        for place, row in zip(places, scores.astype(np.float64).round(4), strict=True)
    ]


def _kind(retrieval: RetrievalSet, place: int, document: int) -> str:
    if document in retrieval.relevant[place]:
        return "right"
    return "also right" if document in retrieval.ignored[place] else ""
