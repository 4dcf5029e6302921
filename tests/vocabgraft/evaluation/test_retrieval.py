"""Held-out items: ranks against an oracle, the right answers, link prediction, correlations."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from tests.vocabgraft.conftest import Graft, WriteDataset, load, rows_of
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.errors import VocabgraftError
from vocabgraft.evaluation.evaluated_model import NewWords, Subject
from vocabgraft.evaluation.metrics import Measurement, problems_of
from vocabgraft.evaluation.retrieval import (
    RetrievalSet,
    measure_links,
    measure_retention,
    measure_retrieval,
    measure_similarity,
    ranks,
    retrieval_set,
)
from vocabgraft.tokens.tokenizer import added_tokens

TRIPLES = ("head", "relation", "tail")
PAIRS = ("anchor", "positive")
RETENTION = (
    ["a dog", "the cat", "water", "a house", "the nephrolith", "a nephrolith", "nephrolith"],
    ["a cat", "the bird", "fish", "a wood house", "a stone", "the dog", "kidney"],
    [0.9, 0.4, 0.6, 0.8, 0.7, 0.1, 0.5],
)


def one_query(relevant: list[int], ignored: list[int], documents: int) -> RetrievalSet:
    """One query over documents called by their place."""
    return RetrievalSet("terms", ["query"], [str(place) for place in range(documents)], [relevant], [ignored], ["g"])


def rank_of(scores: list[float], relevant: list[int], ignored: list[int] | None = None) -> float:
    """The rank of a query whose documents have these scores."""
    documents = np.array(scores, dtype=np.float32)[:, None]
    query = np.ones((1, 1), dtype=np.float32)
    return float(ranks(one_query(relevant, ignored or [], len(scores)), query, documents)[0])


@pytest.mark.parametrize(
    ("scores", "relevant", "ignored", "rank"),
    [
        ([3, 2, 1], [0], [], 1),
        ([3, 2, 1], [2], [], 3),
        ([3, 2, 1], [1, 2], [], 2),
        ([3, 2, 1], [2], [0, 1], 1),
        ([1, 1, 1, 1], [0], [], 2.5),
        ([2, 1, 1], [1, 2], [], 2),
    ],
)
def test_ranks_worked_out_by_hand(scores: list[float], relevant: list[int], ignored: list[int], rank: float) -> None:
    assert rank_of(scores, relevant, ignored) == rank


@given(scores=st.lists(st.integers(-3, 3), min_size=2, max_size=8), data=st.data())
def test_the_rank_is_that_of_the_best_answer_among_what_is_no_answer(scores: list[int], data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from("rio"), min_size=len(scores), max_size=len(scores)))
    kinds[0] = "r"
    places = {kind: [place for place, drawn in enumerate(kinds) if drawn == kind] for kind in "rio"}
    candidates = [max(scores[place] for place in places["r"]), *(scores[place] for place in places["o"])]
    expected = rankdata([-value for value in candidates], method="average")[0]
    assert rank_of([float(value) for value in scores], places["r"], places["i"]) == expected


@pytest.mark.parametrize("planted", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_a_similarity_that_is_no_number_is_refused_and_not_ranked_first(planted: float, place: int) -> None:
    scores = [0.5, 0.4]
    scores[place] = planted
    with pytest.raises(VocabgraftError, match="dataset terms: the similarity of the query 'query'"):
        rank_of(scores, [1])


def test_documents_of_all_splits_stand_in_the_way_once_each(write_dataset: WriteDataset) -> None:
    dataset = write_dataset("terms", "pairs", PAIRS, train=[("a", "x"), ("b", "y")], test=[("c", "z"), ("d", "x")])
    retrieval = retrieval_set(dataset)
    assert retrieval.queries == ["c", "d"]
    assert sorted(retrieval.documents) == ["x", "y", "z"]
    assert [[retrieval.documents[place] for place in places] for places in retrieval.relevant] == [["z"], ["x"]]


def test_every_document_of_the_querys_group_is_an_answer(write_dataset: WriteDataset) -> None:
    rows = [("a", "x", "g"), ("b", "y", "g"), ("a", "z", "g"), ("c", "w", "h"), ("d", "v", None), ("e", "u", None)]
    retrieval = retrieval_set(write_dataset("terms", "pairs", (*PAIRS, "group"), test=rows))
    answers = {
        query: [retrieval.documents[place] for place in places]
        for query, places in zip(retrieval.queries, retrieval.relevant, strict=True)
    }
    assert answers == {"a": ["x", "y", "z"], "b": ["x", "y", "z"], "c": ["w"], "d": ["v"], "e": ["u"]}


def test_other_known_tails_of_a_triple_neither_count_nor_stand_in_the_way(write_dataset: WriteDataset) -> None:
    dataset = write_dataset(
        "relations",
        "triples",
        TRIPLES,
        train=[("dog", "IsA", "animal"), ("dog", "MadeOf", "wood"), ("cat", "IsA", "fish")],
        test=[("dog", "IsA", "pet"), ("dog", "IsA", "friend")],
    )
    retrieval = retrieval_set(dataset)
    names = [
        ([retrieval.documents[place] for place in right], sorted(retrieval.documents[place] for place in aside))
        for right, aside in zip(retrieval.relevant, retrieval.ignored, strict=True)
    ]
    assert retrieval.queries == ["dog <|IsA|>", "dog <|IsA|>"]
    assert names == [(["pet"], ["animal", "friend"]), (["friend"], ["animal", "pet"])]


def test_a_dataset_without_a_test_row_is_refused(write_dataset: WriteDataset) -> None:
    with pytest.raises(VocabgraftError, match=r"dataset terms has no test row; raise held_out\.test"):
        retrieval_set(write_dataset("terms", "pairs", PAIRS, train=[("a", "b")]))


@pytest.fixture
def datasets(write_dataset: WriteDataset) -> list[AcceptedDataset]:
    """Triples and pairs, with and without a new word in the query."""
    triples: list[tuple[str | None, ...]] = [
        ("nephrolith", "IsA", "stone"),
        ("dog", "IsA", "animal"),
        ("cat", "IsA", "animal"),
    ]
    pairs: list[tuple[str | None, ...]] = [
        ("a nephrolith", "a stone"),
        ("thrombopenia", "low blood"),
        ("a dog", "bark"),
    ]
    return [
        write_dataset("relations", "triples", TRIPLES, train=[("bird", "IsA", "fish")], test=triples),
        write_dataset("terms", "pairs", PAIRS, train=[("house", "wood")], test=pairs),
    ]


@pytest.fixture
def new_words(graft: Graft) -> NewWords:
    """Which texts hold a new token of the graft."""
    return NewWords(load(graft.merged["tokens"]).tokenizer, graft.tokens)


@pytest.fixture
def subjects(graft: Graft, new_words: NewWords) -> list[Subject]:
    """The base, which reads descriptions, and a merged model."""
    described = [token.new_token for token in added_tokens(graft.tokens)]
    base = Subject("base", load(graft.base), new_words, 4, described)
    return [base, Subject("merged", load(graft.merged["tokens"]), new_words, 4)]


def counts(measurement: Measurement) -> dict[str, int]:
    """How many items each subset has."""
    return {subset: int(measurement.rows(subset).sum()) for subset in ("all", "new_word", "no_new_word")}


def test_a_question_with_a_new_relation_holds_a_new_word_as_one_of_the_retention_pairs_does(
    datasets: list[AcceptedDataset], subjects: list[Subject], new_words: NewWords
) -> None:
    relations, terms = datasets
    for measured in (
        measure_retrieval(relations, subjects, new_words, 2),
        measure_links(relations, subjects, new_words, translation=False),
    ):
        assert all(counts(entry) == {"all": 3, "new_word": 3, "no_new_word": 0} for entry in measured)
    (mrr, recall) = measure_retrieval(terms, subjects, new_words, 2)
    assert (mrr.metric, recall.metric) == ("mrr", "recall@2")
    assert counts(mrr) == {"all": 3, "new_word": 2, "no_new_word": 1}
    assert counts(measure_retention(RETENTION, subjects, new_words)) == {"all": 7, "new_word": 3, "no_new_word": 4}
    relation = (["dog <|IsA|>", "cat"], ["animal", "cat <|IsA|>"], [0.5, 0.6])
    assert counts(measure_retention(relation, subjects, new_words)) == {"all": 2, "new_word": 2, "no_new_word": 0}


def test_what_holds_no_new_word_is_scored_alike_before_and_after(subjects: list[Subject], new_words: NewWords) -> None:
    kept = measure_retention(RETENTION, subjects, new_words)
    assert kept.figure("base", "no_new_word") == kept.figure("merged", "no_new_word")
    assert kept.figure("base", "new_word") != kept.figure("merged", "new_word")


def test_reciprocal_ranks_and_recall_are_those_of_the_ranks(
    datasets: list[AcceptedDataset], subjects: list[Subject], new_words: NewWords
) -> None:
    retrieval = retrieval_set(datasets[0])
    base = subjects[0]
    found = ranks(retrieval, base.encode(retrieval.queries, "query"), base.encode(retrieval.documents, "document"))
    mrr, recall = measure_retrieval(datasets[0], subjects, new_words, 1)
    assert mrr.figure("base", "all") == round(100 * float((1 / found).mean()), 4)
    assert recall.figure("base", "all") == round(100 * float((found <= 1).mean()), 4)
    assert [entry.main for entry in (mrr, recall)] == [True, False]


def test_link_prediction_agrees_with_the_evaluator(
    datasets: list[AcceptedDataset], subjects: list[Subject], new_words: NewWords
) -> None:
    from vocabgraft.triples.link_prediction import LinkPredictionEvaluator

    columns = {split: datasets[0].columns(split) for split in ("train", "test")}
    tokens = {split: [f"<|{name}|>" for name in of["relation"]] for split, of in columns.items()}
    test, known = columns["test"], {name: columns["train"][name] for name in ("head", "tail")}
    merged = subjects[1]
    for translation, scoring in ((False, "text"), (True, "translation")):
        evaluator = LinkPredictionEvaluator(
            test["head"],
            tokens["test"],
            test["tail"],
            known=known | {"relation": tokens["train"]},
            scoring=scoring,  # type: ignore[arg-type]
            leave_out_query=True,
            batch_size=4,
        )
        expected = evaluator(merged.model)
        measured = measure_links(datasets[0], subjects, new_words, translation)
        for entry in measured:
            assert entry.figure("merged", "all") == pytest.approx(
                100 * expected[entry.metric.removeprefix("link_")], abs=1e-3
            )


def test_other_heads_compete_in_link_prediction_and_the_questioned_one_does_not(
    write_dataset: WriteDataset, subjects: list[Subject], new_words: NewWords
) -> None:
    # The base reads the question as "dog is a kind of", and the other head is just that.
    test = [("dog", "IsA", "kidney stone in blood")]
    for name, others, expected in (("alone", [], 100), ("beside", [("dog is a kind of", "MadeOf", "water")], 50)):
        dataset = write_dataset(name, "triples", TRIPLES, train=others, test=test)
        link_mrr = measure_links(dataset, subjects, new_words, translation=False)[0]
        assert link_mrr.figure("base", "all") == pytest.approx(expected, abs=17 * bool(others))
        assert link_mrr.figure("base", "all") < 100 or not others


def test_scored_pairs_are_correlated_with_their_scores(
    write_dataset: WriteDataset, subjects: list[Subject], new_words: NewWords
) -> None:
    from scipy.stats import spearmanr

    rows = list(zip(*RETENTION, strict=True))
    dataset = write_dataset("sts", "scored_pairs", ("sentence1", "sentence2", "score"), test=rows)
    measured = measure_similarity(dataset, subjects, new_words)
    for subject in subjects:
        vectors = [subject.encode(texts).astype(np.float64) for texts in RETENTION[:2]]
        rho = spearmanr((vectors[0] * vectors[1]).sum(axis=1).round(6), RETENTION[2]).statistic
        assert measured.figure(subject.name, "all") == round(100 * rho, 4)


@pytest.mark.parametrize(
    ("retention", "told"),
    [
        ((RETENTION[0], RETENTION[1], [0.5] * 7), "retention: no spearman, because all 7 pairs have the score 0.5"),
        (([], [], []), "retention: no spearman, because there are no pairs"),
        (
            tuple(column[2:] for column in RETENTION),
            "retention without a new word: no spearman, because there are 2 pairs, too few for a correlation",
        ),
        (
            tuple(column[:4] for column in RETENTION),
            "retention with a new word: no spearman, because there are no pairs",
        ),
        (
            (["a dog"] * 4, ["a cat"] * 4, [0.1, 0.2, 0.3, 0.4]),
            "for base and merged all 4 pairs are equally similar",
        ),
    ],
)
def test_a_retention_set_that_measures_nothing_is_said_and_has_no_figure(
    retention: Any, told: str, subjects: list[Subject], new_words: NewWords
) -> None:
    kept = measure_retention(retention, subjects, new_words)
    assert any(problem.startswith(told) or told in problem for problem in problems_of([kept]))
    subset = "no_new_word" if "without" in told else "new_word" if "with a" in told else "all"
    assert kept.figure("base", subset) is None
    assert kept.compare("base", "merged", subset, 0) is None


def test_a_damaged_model_gets_no_score(graft: Graft, new_words: NewWords) -> None:
    damaged = load(graft.merged["tokens"])
    rows_of(damaged)[graft.tokens[0].id] = float("nan")
    subject = Subject("merged", damaged, new_words, 4)
    with pytest.raises(VocabgraftError, match="the merged model's embedding of 'the nephrolith'"):
        measure_retention(RETENTION, [subject], new_words)
