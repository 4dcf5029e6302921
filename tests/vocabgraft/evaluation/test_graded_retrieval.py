"""NDCG@10, MRR@10 and Recall@100: against the evaluator of sentence-transformers and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vocabgraft.conftest import Graft, load
from vocabgraft.data.beir import Benchmark
from vocabgraft.errors import VocabgraftError
from vocabgraft.evaluation import graded_retrieval
from vocabgraft.evaluation.evaluated_model import NewWords, Subject
from vocabgraft.evaluation.graded_retrieval import measure_benchmark, score_queries

WORDS = "dog cat animal house wood stone kidney blood heart pain water liver sugar doctor patient drug sleep".split()


def scored(scores: list[list[float]], relevance: list[dict[int, int]]) -> dict[str, list[float]]:
    """The metrics of queries whose documents have these similarities."""
    benchmark = Benchmark("own", [""] * len(scores), [""] * len(scores[0]), relevance)
    rows = np.array(scores, dtype=np.float32)
    found = score_queries(benchmark, rows, np.eye(len(scores[0]), dtype=np.float32), lambda q, d: q @ d.T)
    return {name: values.tolist() for name, values in found.items()}


def test_metrics_worked_out_by_hand() -> None:
    # The second and the third of three are relevant, with grades 1 and 3.
    found = scored([[3.0, 2.0, 1.0]], [{1: 1, 2: 3}])
    assert found["ndcg@10"][0] == pytest.approx((1 / np.log2(3) + 3 / 2) / (3 + 1 / np.log2(3)))
    assert found["mrr@10"] == [0.5]
    assert found["recall@100"] == [1.0]


def test_what_stands_below_the_cut_does_not_count() -> None:
    descending = [float(-place) for place in range(150)]
    found = scored([descending] * 3, [{10: 1}, {9: 1}, {99: 1, 100: 1}])
    assert found["ndcg@10"] == pytest.approx([0, 1 / np.log2(11), 0])
    assert found["mrr@10"] == [0.0, 0.1, 0.0]
    assert found["recall@100"] == [1.0, 1.0, 0.5]


def test_equal_similarities_stand_in_the_order_of_the_corpus() -> None:
    assert scored([[1.0, 1.0, 1.0]], [{1: 1}])["mrr@10"] == [0.5]


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_the_metrics_agree_with_trec_evals_formulas(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 14))
    scores = data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count))
    grades = data.draw(st.dictionaries(st.integers(0, count - 1), st.integers(1, 3), min_size=1))
    found = scored([[float(value) for value in scores]], [grades])
    ranking = sorted(range(count), key=lambda place: (-scores[place], place))
    gains = [grades.get(place, 0) / np.log2(rank + 2) for rank, place in enumerate(ranking)]
    ideal = [grade / np.log2(rank + 2) for rank, grade in enumerate(sorted(grades.values(), reverse=True))]
    assert found["ndcg@10"][0] == pytest.approx(sum(gains[:10]) / sum(ideal[:10]))
    first = min(ranking.index(place) for place in grades)
    assert found["mrr@10"][0] == pytest.approx(1 / (first + 1) if first < 10 else 0)
    assert found["recall@100"] == [1.0]


def test_the_figures_are_those_of_the_evaluator_of_sentence_transformers(
    graft: Graft, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    documents = [*(f"a {left} of {right}" for left in WORDS for right in WORDS[:8]), "", ""]
    queries = [f"the {word} with nephrolith" for word in WORDS[:5]] + [f"the {word}" for word in WORDS[:7]]
    relevance = [{place: 1, (7 * place + 3) % len(documents): 1} for place in range(len(queries))]
    model = load(graft.merged["tokens"])
    new_words = NewWords(model.tokenizer, graft.tokens)
    evaluator = InformationRetrievalEvaluator(
        {str(place): text for place, text in enumerate(queries)},
        {str(place): text for place, text in enumerate(documents)},
        {str(place): {str(document) for document in relevant} for place, relevant in enumerate(relevance)},
        ndcg_at_k=[10],
        mrr_at_k=[10],
        precision_recall_at_k=[100],
    )
    expected = evaluator(model)
    # Several blocks.
    monkeypatch.setattr(graded_retrieval, "NUMBERS_AT_ONCE", 3 * len(documents))
    benchmark = Benchmark("own", queries, documents, relevance)
    measured = measure_benchmark(benchmark, [Subject("merged", model, new_words, 8)], new_words)
    assert [entry.metric for entry in measured] == ["ndcg@10", "mrr@10", "recall@100"]
    for entry in measured:
        assert entry.figure("merged", "all") == pytest.approx(100 * expected[f"cosine_{entry.metric}"], abs=0.01)
    assert int(measured[0].rows("new_word").sum()) == 5


def test_a_similarity_that_is_no_number_is_refused() -> None:
    with pytest.raises(VocabgraftError, match="benchmark own: a similarity is NaN or infinite"):
        scored([[float("nan"), 1.0]], [{0: 1}])
