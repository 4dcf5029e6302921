"""Retrieval with graded judgments, as in BEIR: NDCG@10, MRR@10 and Recall@100."""

from collections.abc import Mapping, Sequence

import numpy as np

from vocabgraft.config.benefits import BENCHMARK_METRICS
from vocabgraft.data.beir import Benchmark
from vocabgraft.errors import VocabgraftError
from vocabgraft.evaluation.evaluated_model import NewWords, Similarities, Subject
from vocabgraft.evaluation.metrics import Measurement, highest
from vocabgraft.evaluation.significance import Array
from vocabgraft.models.encode import Embeddings

DEPTH = 100
NUMBERS_AT_ONCE = 2**23


def measure_benchmark(benchmark: Benchmark, subjects: Sequence[Subject], new_words: NewWords) -> list[Measurement]:
    """NDCG@10, MRR@10 and Recall@100 of each query."""
    found = {
        subject.name: score_queries(
            benchmark,
            subject.encode(benchmark.queries, "query"),
            subject.encode(benchmark.documents, "document"),
            subject.similarities,
        )
        for subject in subjects
    }
    held = new_words.held(benchmark.queries)
    return [
        Measurement(
            dataset=benchmark.name,
            metric=metric,
            items=benchmark.queries,
            groups=[str(number) for number in range(len(benchmark.queries))],
            new_word=held,
            values={name: 100 * scores[metric] for name, scores in found.items()},
            main=metric == BENCHMARK_METRICS[0],
        )
        for metric in BENCHMARK_METRICS
    ]


def score_queries(
    benchmark: Benchmark, queries: Embeddings, documents: Embeddings, similarities: Similarities
) -> dict[str, Array]:
    """Each metric of each query, 0 to 1: (queries,).

    Documents with equal scores are ranked in the order of the corpus.

    Raises:
        VocabgraftError: for a similarity that is not finite.
    """
    scores: dict[str, list[float]] = {metric: [] for metric in BENCHMARK_METRICS}
    step = max(1, NUMBERS_AT_ONCE // max(1, len(documents)))
    for start in range(0, len(queries), step):
        block = similarities(queries[start : start + step], documents)
        if not np.isfinite(block).all():
            raise VocabgraftError(
                f"benchmark {benchmark.name}: a similarity is NaN or infinite; the model's weights are damaged"
            )
        for row, grades in zip(block, benchmark.relevance[start : start + step], strict=True):
            for metric, value in zip(BENCHMARK_METRICS, _scores(highest(row, DEPTH), grades), strict=True):
                scores[metric].append(value)
    return {metric: np.array(values) for metric, values in scores.items()}


def _scores(ranking: Sequence[int], grades: Mapping[int, int]) -> tuple[float, float, float]:
    """NDCG@10 with linear gains as in trec_eval, MRR@10, Recall@100."""
    gains = [grades.get(place, 0) for place in ranking]
    ideal = _discounted(sorted(grades.values(), reverse=True)[:10])
    first = next((rank for rank, gain in enumerate(gains[:10], start=1) if gain), None)
    found = sum(gain > 0 for gain in gains[:100])
    return _discounted(gains[:10]) / ideal, 1 / first if first else 0.0, found / len(grades)


def _discounted(gains: Sequence[int]) -> float:
    return sum(gain / float(np.log2(rank + 1)) for rank, gain in enumerate(gains, start=1))
