"""Scores: ranks against an oracle, the right answers, the right subsets."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from tests.vocabgraft.conftest import Graft, WriteDataset, load, rows_of
from vocabgraft.accepted_data import AcceptedDataset
from vocabgraft.errors import VocabgraftError
from vocabgraft.evaluation import RetrievalSet, evaluate, ranks, retrieval_set, score

TRIPLES = ("head", "relation", "tail")
PAIRS = ("anchor", "positive")
RETENTION = (
    ["a dog", "the cat", "water", "a house", "the nephrolith", "a nephrolith", "nephrolith"],
    ["a cat", "the bird", "fish", "a wood house", "a stone", "the dog", "kidney"],
    [0.9, 0.4, 0.6, 0.8, 0.7, 0.1, 0.5],
)


def one_query(relevant: list[int], ignored: list[int], documents: int) -> RetrievalSet:
    """One query over documents called by their place."""
    return RetrievalSet("terms", ["query"], [str(place) for place in range(documents)], [relevant], [ignored])


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


def test_scores_worked_out_by_hand() -> None:
    found = np.array([1.0, 2.0, 4.0, 10.5])
    assert score(found, 2) == {"mrr": round(100 * (1 + 0.5 + 0.25 + 1 / 10.5) / 4, 4), "recall@2": 50.0, "queries": 4}
    assert score(np.zeros(0), 10) == {"queries": 0}


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


def run(graft: Graft, datasets: list[AcceptedDataset], **models: Any) -> dict[str, dict[str, Any]]:
    """Evaluate models against the base."""
    return evaluate(load(graft.base), models, datasets, RETENTION, graft.tokens, 4, 2)


def test_subsets_are_told_apart_by_a_new_word_and_not_by_a_relations_token(
    graft: Graft, datasets: list[AcceptedDataset]
) -> None:
    figures = run(graft, datasets, merged=load(graft.merged["tokens"]))
    assert figures.keys() == {"base", "merged"}
    for model in figures.values():
        queries = {
            name: {subset: entry["queries"] for subset, entry in model[name].items()} for name in ("relations", "terms")
        }
        assert queries["relations"] == {"all": 3, "new_word": 1, "no_new_word": 2}
        assert queries["terms"] == {"all": 3, "new_word": 2, "no_new_word": 1}
        assert {subset: entry["pairs"] for subset, entry in model["retention"].items()} == {
            "all": 7,
            "new_word": 3,
            "no_new_word": 4,
        }


def test_what_holds_no_new_word_is_scored_alike_before_and_after(graft: Graft, datasets: list[AcceptedDataset]) -> None:
    figures = run(graft, datasets, merged=load(graft.merged["tokens"]))
    before, after = figures["base"], figures["merged"]
    assert before["retention"]["no_new_word"] == after["retention"]["no_new_word"]
    assert before["retention"]["new_word"] != after["retention"]["new_word"]


def test_the_base_reads_a_relation_as_its_description(graft: Graft, datasets: list[AcceptedDataset]) -> None:
    figures = run(graft, datasets, merged=load(graft.merged["tokens"]))
    # Queries and answers in pieces: "dog is a kind of" (5) and "animal" (1) before, "dog <|IsA|>" (2) after.
    relations = [("nephrolith", 10), ("dog", 1), ("cat", 1)]
    before = sum(pieces + 4 + 1 for _, pieces in relations) + (11 + 2) + (12 + 2) + (2 + 1)
    after = sum(1 + 1 + 1 for _ in relations) + (2 + 2) + (1 + 2) + (2 + 1)
    assert figures["base"]["tokens_per_text"] == round(before / 12, 4)
    assert figures["merged"]["tokens_per_text"] == round(after / 12, 4)


def test_a_damaged_model_gets_no_score(graft: Graft, datasets: list[AcceptedDataset]) -> None:
    damaged = load(graft.merged["tokens"])
    rows_of(damaged)[graft.tokens[0].id] = float("nan")
    with pytest.raises(VocabgraftError, match="is no number; the model's weights are damaged"):
        run(graft, datasets, merged=damaged)


def test_a_subset_of_retention_too_small_for_a_correlation_is_left_out(
    graft: Graft, datasets: list[AcceptedDataset]
) -> None:
    retention = tuple(column[2:] for column in RETENTION)
    merged = {"merged": load(graft.merged["tokens"])}
    figures = evaluate(load(graft.base), merged, datasets, retention, graft.tokens, 4, 2)  # type: ignore[arg-type]
    assert figures["merged"]["retention"].keys() == {"all", "new_word"}
