"""Ranks against a naive count of every candidate, ties, filtering, blocks; and the evaluator."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.vocabgraft.conftest import Graft, load
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.unnormalized import encode_pooled
from vocabgraft.triples.link_prediction import LinkPredictionEvaluator
from vocabgraft.triples.losses import closed_form
from vocabgraft.triples.ranking import rank_figures, rank_triples

RELATION = "<|IsA|>"
HEADS, RELATIONS, TAILS = ["a dog", "cat", "a dog"], [RELATION, RELATION, "->"], ["animal", "animal", "wood"]
KNOWN = {"head": ["a dog", "stone"], "relation": [RELATION, "->"], "tail": ["fish", "house"]}
NO_TRIPLES = np.zeros((0, 3), dtype=np.int64)


def naive_score(query: Any, entity: Any, similarity: str) -> float:
    """In float64, from the definition."""
    query, entity = query.astype(np.float64), entity.astype(np.float64)
    if similarity == "euclidean":
        return -float(((query - entity) ** 2).sum())
    if similarity == "manhattan":
        return -float(np.abs(query - entity).sum())
    product = float((query * entity).sum())
    return product / float(np.linalg.norm(query) * np.linalg.norm(entity)) if similarity == "cosine" else product


def naive_ranks(
    queries: Any, entities: Any, triples: Any, known: Any, direction: str, similarity: str, leave_out: bool
) -> list[float]:
    """Each candidate in turn."""
    true = {tuple(triple) for triple in [*known.tolist(), *triples.tolist()]}
    ranks = []
    for query, (head, relation, tail) in zip(queries, triples.tolist(), strict=True):
        answer, asked = (tail, head) if direction == "tail" else (head, tail)
        right = naive_score(query, entities[answer], similarity)
        rank = 1.0
        for place, entity in enumerate(entities):
            made = (head, relation, place) if direction == "tail" else (place, relation, tail)
            if place == answer or made in true or (leave_out and place == asked):
                continue
            value = naive_score(query, entity, similarity)
            rank += 1.0 if value > right else 0.5 if value == right else 0.0
        ranks.append(rank)
    return ranks


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Few values in few dimensions, so that ties and known answers are common and float32 is exact."""
    count = draw(st.integers(1, 9))
    similarity = draw(st.sampled_from(["euclidean", "manhattan", "cosine", "dot"]))
    # Of four signs the length is 2, exactly.
    values = st.sampled_from([-1, 1]) if similarity == "cosine" else st.integers(-2, 2)
    entities = np.array(draw(st.lists(st.lists(values, min_size=4, max_size=4), min_size=count, max_size=count)))
    triple = st.tuples(st.integers(0, count - 1), st.integers(0, 2), st.integers(0, count - 1))
    triples = draw(st.lists(triple, min_size=1, max_size=8))
    known = draw(st.lists(triple, max_size=20)) + triples
    vectors = st.lists(values, min_size=4, max_size=4)
    queries = np.array(draw(st.lists(vectors, min_size=len(triples), max_size=len(triples))))
    return {
        "queries": queries.astype(np.float32),
        "entities": entities.astype(np.float32),
        "triples": np.array(triples, dtype=np.int64),
        "known": np.array(known, dtype=np.int64),
        "direction": draw(st.sampled_from(["tail", "head"])),
        "similarity": similarity,
    }


@given(problem=problems(), leave_out=st.booleans(), scores_at_once=st.integers(1, 100))
def test_ranks_are_those_of_counting_every_candidate_whatever_the_blocks(
    problem: dict[str, Any], leave_out: bool, scores_at_once: int
) -> None:
    found = rank_triples(**problem, leave_out_query=leave_out, scores_at_once=scores_at_once)
    assert found.tolist() == naive_ranks(**problem, leave_out=leave_out)


@given(problem=problems(), order=st.randoms(use_true_random=False))
def test_the_order_of_the_entities_does_not_matter(problem: dict[str, Any], order: Any) -> None:
    places = list(range(len(problem["entities"])))
    order.shuffle(places)
    moved = np.argsort(places)
    renamed = {
        name: np.stack([moved[ids[:, 0]], ids[:, 1], moved[ids[:, 2]]], axis=1)
        for name, ids in problem.items()
        if name in ("triples", "known")
    }
    other = problem | renamed | {"entities": problem["entities"][places]}
    assert rank_triples(**problem).tolist() == rank_triples(**other).tolist()


def test_entities_with_one_embedding_share_their_ranks_in_a_wide_matrix() -> None:
    """Products of matrices round by the place of a column; equal embeddings must score the same all the same."""
    generator = np.random.default_rng(0)
    entities = np.repeat(generator.normal(size=(1, 384)), 1003, axis=0).astype(np.float32)
    triples = np.array([[0, 0, 7], [1, 0, 1002]])
    queries = generator.normal(size=(2, 384)).astype(np.float32)
    for similarity in ("euclidean", "cosine", "dot", "manhattan"):
        ranks = rank_triples(queries, entities, triples, NO_TRIPLES, "tail", similarity)  # type: ignore[arg-type]
        assert ranks.tolist() == [502.0, 502.0]


@pytest.mark.parametrize("similarity", ["euclidean", "manhattan"])
def test_planted_translations_are_found(similarity: Any) -> None:
    generator = np.random.default_rng(0)
    entities = generator.normal(size=(200, 16)).astype(np.float32)
    vector = (entities[1] - entities[0]).astype(np.float32)
    entities[3] = entities[2] + vector
    triples = np.array([[0, 0, 1], [2, 0, 3]])
    tails = rank_triples(entities[[0, 2]] + vector, entities, triples, NO_TRIPLES, "tail", similarity)
    heads = rank_triples(entities[[1, 3]] - vector, entities, triples, NO_TRIPLES, "head", similarity)
    assert [*tails.tolist(), *heads.tolist()] == [1, 1, 1, 1]


def test_a_known_answer_stands_in_the_way_only_where_it_is_not_known() -> None:
    entities = np.array([[0.0], [1.0], [2.0], [3.0]], dtype=np.float32)
    triples = np.array([[0, 0, 3]])
    options: dict[str, Any] = {"direction": "tail", "similarity": "euclidean"}
    query = np.zeros((1, 1), dtype=np.float32)
    assert rank_triples(query, entities, triples, NO_TRIPLES, **options).tolist() == [4]
    assert rank_triples(query, entities, triples, NO_TRIPLES, leave_out_query=True, **options).tolist() == [3]
    known = np.array([[0, 0, 1], [0, 0, 1], [0, 1, 2], [1, 0, 2], [0, 0, 3]])
    assert rank_triples(query, entities, triples, known, **options).tolist() == [3]


@pytest.mark.parametrize("planted", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["queries", "entities"])
def test_a_score_that_is_no_number_is_refused(planted: float, where: str) -> None:
    arrays = {"queries": np.ones((1, 2), dtype=np.float32), "entities": np.ones((3, 2), dtype=np.float32)}
    arrays[where][0, 0] = planted
    with pytest.raises(VocabgraftError, match="a score of link prediction is NaN"):
        rank_triples(**arrays, triples=np.array([[0, 0, 1]]), known=NO_TRIPLES, direction="tail")


def test_arrays_that_do_not_fit_are_refused() -> None:
    entities = np.ones((3, 2), dtype=np.float32)
    with pytest.raises(VocabgraftError, match=r"queries of shape \(2, 2\) for 1 triples"):
        rank_triples(entities[:2], entities, np.array([[0, 0, 1]]), NO_TRIPLES, "tail")
    with pytest.raises(VocabgraftError, match=r"name the entity 3 .* allowed: 0 to 2"):
        rank_triples(entities[:1], entities, np.array([[0, 0, 3]]), NO_TRIPLES, "tail")


def test_figures_worked_out_by_hand() -> None:
    figures = rank_figures(np.array([1.0, 1.5, 4.0, 10.0]))
    assert figures == {"mr": 4.125, "mrr": (1 + 1 / 1.5 + 0.25 + 0.1) / 4, "hits@1": 0.25, "hits@3": 0.5, "hits@10": 1}


def expected_mrr(graft: Graft, vectors: dict[str, Any], directions: tuple[str, ...] = ("tail", "head")) -> list[float]:
    """Reciprocal ranks from plain embeddings and the naive count."""
    texts = list(dict.fromkeys([*KNOWN["head"], *KNOWN["tail"], *HEADS, *TAILS]))
    entities = encode_pooled(load(graft.resized), texts, 8)
    names = ["->", RELATION]

    def numbered(heads: list[str], relations: list[str], tails: list[str]) -> Any:
        rows = zip(heads, relations, tails, strict=True)
        return np.array([[texts.index(head), names.index(name), texts.index(tail)] for head, name, tail in rows])

    triples, known = numbered(HEADS, RELATIONS, TAILS), numbered(*(KNOWN[name] for name in KNOWN))
    moves = np.stack([vectors[name] for name in RELATIONS])
    ranks = []
    for direction in directions:
        queries = entities[triples[:, 0]] + moves if direction == "tail" else entities[triples[:, 2]] - moves
        ranks += naive_ranks(queries, entities, triples, known, direction, "euclidean", False)
    return [1 / rank for rank in ranks]


@pytest.mark.parametrize("scoring", ["translation", "closed_form"])
def test_translations_are_ranked_in_both_directions(graft: Graft, scoring: Any) -> None:
    model = load(graft.resized)
    generator = np.random.default_rng(0)
    if scoring == "translation":
        vectors = dict(zip(("->", RELATION), encode_pooled(model, ["->", RELATION], 8), strict=True))
    else:
        arrays = generator.normal(size=(2, 3, 32)).astype(np.float32)
        vectors = closed_form(arrays[0], arrays[1], RELATIONS)
    evaluator = LinkPredictionEvaluator(
        HEADS, RELATIONS, TAILS, known=KNOWN, scoring=scoring, relation_vectors=vectors, name="dev"
    )
    figures = evaluator(model)
    assert evaluator.primary_metric == "dev_mrr"
    assert evaluator.greater_is_better
    expected = expected_mrr(graft, vectors)
    assert figures["dev_mrr"] == pytest.approx(np.mean(expected))
    assert figures["dev_tail_mrr"] == pytest.approx(np.mean(expected[:3]))
    assert figures["dev_head_mrr"] == pytest.approx(np.mean(expected[3:]))
    assert figures["dev_relation_IsA_mrr"] == pytest.approx(np.mean([expected[place] for place in (0, 1, 3, 4)]))
    assert figures["dev_relation_->_mrr"] == pytest.approx(np.mean([expected[place] for place in (2, 5)]))
    assert evaluator.by_relation["->"]["tail"]["mrr"] == pytest.approx(expected[2])


def test_text_is_ranked_by_the_models_own_similarity_and_backwards_only_by_a_template(graft: Graft) -> None:
    model = load(graft.resized)
    options: dict[str, Any] = {"known": KNOWN, "scoring": "text"}
    forward = LinkPredictionEvaluator(HEADS, RELATIONS, TAILS, **options)
    figures = forward(model)
    texts = forward.texts
    scores = (
        model.encode([f"{head} {name}" for head, name in zip(HEADS, RELATIONS, strict=True)]) @ model.encode(texts).T
    )
    aside = {0: {"fish"}, 1: set(), 2: set()}
    ranks = [
        1 + sum(s > row[texts.index(tail)] for text, s in zip(texts, row, strict=True) if text not in aside[place])
        for place, (row, tail) in enumerate(zip(scores, TAILS, strict=True))
    ]
    assert figures["mr"] == pytest.approx(np.mean(ranks))
    assert figures["tail_mr"] == figures["mr"]
    assert "head_mr" not in figures
    both = LinkPredictionEvaluator(HEADS, RELATIONS, TAILS, inverse_template="what {relation} {tail}", **options)(model)
    assert both["tail_mr"] == figures["mr"]
    assert both["mr"] == pytest.approx((both["tail_mr"] + both["head_mr"]) / 2)


def test_texts_that_the_tokenizer_reads_alike_share_their_ranks(graft: Graft) -> None:
    entities = ["Animal", "ANIMAL", "the animal of the house in the stone"]
    plain = LinkPredictionEvaluator(["dog"], [RELATION], ["animal"])(load(graft.resized))
    twins = LinkPredictionEvaluator(["dog"], [RELATION], ["animal"], entities=entities[:2])(load(graft.resized))
    assert twins["tail_mr"] == plain["tail_mr"] + 1


def test_every_distinct_text_is_encoded_once(graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    model = load(graft.resized)
    model[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0]["input_ids"])))
    evaluator = LinkPredictionEvaluator(HEADS * 5, RELATIONS * 5, TAILS * 5, entities=["a dog", "A dog", "bird"])
    evaluator(model)
    assert sum(seen) == len({"a dog", "cat", "animal", "wood", "bird"}) + 2


def test_figures_are_appended_to_csv_files(graft: Graft, tmp_path: Path) -> None:
    evaluator = LinkPredictionEvaluator(HEADS, RELATIONS, TAILS, known=KNOWN, name="dev")
    model = load(graft.resized)
    figures = evaluator(model, str(tmp_path / "eval"), 1, 10)
    evaluator(model, str(tmp_path / "eval"), 2, 20)
    with (tmp_path / "eval/link_prediction_evaluation_dev_results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["epoch"], row["steps"]) for row in rows] == [("1", "10"), ("2", "20")]
    assert float(rows[0]["both_mrr"]) == figures["dev_mrr"]
    with (tmp_path / "eval/link_prediction_evaluation_dev_by_relation.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 2 * 3
    assert {row["direction"] for row in rows} == {"both", "tail", "head"}
    LinkPredictionEvaluator(HEADS, RELATIONS, TAILS, write_csv=False)(model, str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_the_figures_are_in_the_model_card_and_the_config_is_reported(graft: Graft) -> None:
    model = load(graft.resized)
    evaluator = LinkPredictionEvaluator(HEADS, RELATIONS, TAILS)
    evaluator(model, None, 0, 0)
    assert evaluator.description == "Link Prediction"
    assert evaluator.get_config_dict()["scoring"] == "translation"
    assert evaluator in model.model_card_data.eval_results_dict


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": []}, "have 0 heads, 3 relations and 3 tails"),
        ({"heads": [], "relations": [], "tails": []}, "has no triple to rank"),
        ({"known": {"head": ["a"]}}, "the known triples have 1 heads, 0 relations"),
        ({"scoring": "transe"}, "scoring is 'transe'; allowed: translation, text, closed_form"),
        ({"similarity": "l2"}, "similarity is 'l2'; allowed: euclidean"),
        ({"template": "{head}"}, r"template is '\{head\}'; it must hold \{head\} and \{relation\}"),
        ({"inverse_template": "{head} {relation}"}, r"inverse_template is .* must hold \{tail\} and \{relation\}"),
        ({"template": "{head} {relation"}, "template is"),
        ({"scoring": "closed_form", "relation_vectors": {"->": np.ones(3)}}, r"has none for <\|IsA\|>"),
    ],
)
def test_an_evaluator_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    given_options: dict[str, Any] = {"heads": HEADS, "relations": RELATIONS, "tails": TAILS} | options
    with pytest.raises(VocabgraftError, match=message):
        LinkPredictionEvaluator(**given_options)


MANY_ENTITIES = """
import resource
import numpy as np
from vocabgraft.triples.link_prediction import rank_triples
generator = np.random.default_rng(0)
entities = generator.standard_normal((100_000, 384), dtype=np.float32)
triples = generator.integers(0, 100_000, (300, 3))
known = generator.integers(0, 100_000, (100_000, 3))
rank_triples(entities[triples[:, 0]], entities, triples, known, "tail")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_a_hundred_thousand_entities_fit_in_two_gigabytes() -> None:
    done = subprocess.run([sys.executable, "-c", MANY_ENTITIES], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 2e9
