"""The evaluation as a whole: what is said of a model that got worse, of drift, of what could not be measured."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import ROOT, WORDS
from tests.vocabgraft.conftest import Graft, WriteDataset, load, rows_of
from vocabgraft.config.benefits import BENCHMARK_METRICS, LINK_METRICS, WITHOUT_LABELS, metrics_of
from vocabgraft.config.params import load_params
from vocabgraft.config.stages import EvaluateModelParams
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.data.beir import Benchmark
from vocabgraft.evaluation.evaluate import Evaluation, Questions, evaluate, gains_for_plots, item_columns

PARAMS = EvaluateModelParams(batch_size=8, recall_at=2, smoke_under=10, reference_texts=60)
RETENTION = (
    ["a dog", "the cat", "water", "a house", "the nephrolith", "a nephrolith", "nephrolith"],
    ["a cat", "the bird", "fish", "a wood house", "a stone", "the dog", "kidney"],
    [0.9, 0.4, 0.6, 0.8, 0.7, 0.1, 0.5],
)


@pytest.fixture
def datasets(write_dataset: WriteDataset) -> list[AcceptedDataset]:
    """Triples, pairs that ask for their own text, and scored pairs without a test row."""
    triples = [(word, "IsA", f"{word} stone") for word in ("nephrolith", "dog", "cat")]
    pairs = [(f"the nephrolith of {word}", f"the nephrolith of {word}") for word in WORDS[:24]]
    return [
        write_dataset("relations", "triples", ("head", "relation", "tail"), train=[("bird", "IsA", "x")], test=triples),
        write_dataset("terms", "pairs", ("anchor", "positive"), train=[("house", "wood")], test=pairs),
        write_dataset("sts", "scored_pairs", ("sentence1", "sentence2", "score"), train=[("a", "b", 0.5)]),
    ]


def run(graft: Graft, questions: Questions, **models: Any) -> Evaluation:
    """Evaluate models beside the base, the resized one without a change."""
    standing = {"base": load(graft.base), "resized": load(graft.resized)}
    return evaluate({**standing, **models}, questions, graft.tokens, PARAMS, 17)


def verdicts(found: Evaluation, subset: str) -> dict[tuple[str, str], str]:
    """What is said of each figure of a subset."""
    return {
        (item["dataset"], item["metric"]): item["verdict"]
        for item in found.comparison["items"]
        if item["subset"] == subset
    }


def test_every_model_has_every_figure_and_the_base_reads_descriptions(
    graft: Graft, datasets: list[AcceptedDataset]
) -> None:
    found = run(graft, Questions(datasets, RETENTION), merged=load(graft.merged["tokens"]))
    assert found.metrics.keys() == {"base", "resized", "merged"}
    for figures in found.metrics.values():
        assert figures.keys() == {"relations", "terms", "retention", "tokens_per_text", "fidelity"}
        assert figures["relations"]["all"].keys() >= {"mrr", "recall@2", "link_mrr", "link_hits@10", "queries"}
        assert figures["relations"]["new_word"]["queries"] == 3
        assert figures["retention"]["no_new_word"].keys() == {"spearman", "pairs"}
    # "dog <|IsA|>" is two tokens, and "dog is a kind of" five.
    assert found.metrics["base"]["tokens_per_text"] > found.metrics["merged"]["tokens_per_text"]
    assert found.comparison["control"] == {"trained": False}
    assert {item["metric"] for item in found.comparison["items"]} == {"mrr", "recall@2", *LINK_METRICS}


def test_exactly_the_metrics_that_a_benefit_may_name_are_measured(
    graft: Graft, datasets: list[AcceptedDataset], write_dataset: WriteDataset
) -> None:
    scored = [(f"the {word}", f"a {word} stone", place / 10) for place, word in enumerate(WORDS[:8])]
    sts = write_dataset("scores", "scored_pairs", ("sentence1", "sentence2", "score"), test=scored)
    own = Benchmark("cases", ["the nephrolith", "a dog"], ["a stone", "the nephrolith", "a dog"], [{1: 1}, {2: 1}])
    questions = Questions([*datasets, sts], RETENTION, benchmarks=[own])
    found = run(graft, questions, merged=load(graft.merged["tokens"]))
    measured: dict[str, set[str]] = {}
    for item in found.comparison["items"]:
        measured.setdefault(item["dataset"], set()).add(item["metric"])
    formats = {"relations": "triples", "terms": "pairs", "scores": "scored_pairs"}
    assert measured.pop("cases") == set(BENCHMARK_METRICS)
    assert measured == {name: set(metrics_of(kind, 2)) for name, kind in formats.items()}  # type: ignore[arg-type]
    # A champion is compared by the items of any of them.
    columns = item_columns(found.measurements)
    kept = set(zip(columns["dataset"], columns["metric"], strict=True))
    assert kept >= {(item["dataset"], item["metric"]) for item in found.comparison["items"]}
    assert kept >= {(benefit.dataset, benefit.metric) for benefit in WITHOUT_LABELS.values()}


def test_a_model_that_forgot_its_words_is_called_worse(
    graft: Graft, datasets: list[AcceptedDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vocabgraft.evaluation.evaluated_model import Subject

    own = Subject.encode

    def forgetful(self: Subject, texts: Any, role: Any = None) -> Any:
        found = own(self, texts, role)
        # What is asked with a new word is turned to its opposite.
        return np.where(
            self.new_words.held(texts)[:, None] & (self.name == "merged") & (role == "query"), -found, found
        )

    monkeypatch.setattr(Subject, "encode", forgetful)
    found = run(graft, Questions(datasets, RETENTION), merged=load(graft.merged["tokens"]))
    assert verdicts(found, "new_word")["terms", "mrr"] == "worse"
    assert found.metrics["base"]["terms"]["all"]["mrr"] == 100


def test_a_model_that_is_the_base_gains_nothing_and_that_could_be_chance(
    graft: Graft, datasets: list[AcceptedDataset]
) -> None:
    found = run(graft, Questions(datasets, RETENTION), merged=load(graft.resized))
    assert verdicts(found, "all")["terms", "mrr"] == "could be chance"
    assert verdicts(found, "all")["relations", "mrr"] == "smoke figure"


def test_what_was_not_measured_is_listed(graft: Graft, datasets: list[AcceptedDataset]) -> None:
    retention = (RETENTION[0], RETENTION[1], [0.5] * 7)
    found = run(graft, Questions(datasets, retention), merged=load(graft.merged["tokens"]))
    assert found.comparison["problems"] == ["sts has no test row, so it is not measured; raise its held_out.test"]
    assert "retention: no spearman, because all 7 pairs have the score 0.5" in found.retention["problems"]
    assert found.retention["spearman"] == {}
    assert found.metrics["merged"]["retention"]["all"] == {"pairs": 7}
    assert set(found.problems) == {*found.comparison["problems"], *found.retention["problems"]}


def test_the_reference_corpus_is_of_every_split_the_retention_pairs_and_the_contexts(
    graft: Graft, datasets: list[AcceptedDataset]
) -> None:
    questions = Questions(datasets, RETENTION, contexts=["the dog barks", "the dog barks"])
    texts = set(questions.texts())
    assert {"bird <|IsA|>", "wood", "a", "fish", "the dog barks", "dog <|IsA|>"} <= texts
    found = run(graft, questions, merged=load(graft.merged["tokens"]))
    assert found.retention["corpus"] == len(texts) <= PARAMS.reference_texts
    assert found.retention["drift"]["no_new_word"]["valid_share"] == 100.0


def test_a_benchmark_of_the_users_is_scored_beside_the_rest(graft: Graft, datasets: list[AcceptedDataset]) -> None:
    own = Benchmark("cases", ["the nephrolith", "a dog"], ["a stone", "the nephrolith", "a dog"], [{1: 1}, {2: 1}])
    found = run(graft, Questions(datasets, RETENTION, benchmarks=[own]), merged=load(graft.merged["tokens"]))
    for figures in found.metrics.values():
        assert figures["cases"]["all"] == {"ndcg@10": 100.0, "mrr@10": 100.0, "recall@100": 100.0, "queries": 2}
    assert verdicts(found, "all")["cases", "ndcg@10"] == "smoke figure"


def test_a_control_is_scored_and_judged_and_reads_relations_as_the_base_does(
    graft: Graft, datasets: list[AcceptedDataset]
) -> None:
    control = load(graft.base)
    rows = rows_of(control)
    rows += torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)) / 10
    questions = Questions(datasets, RETENTION)
    found = run(graft, questions, merged=load(graft.merged["tokens"]), control=control)
    assert found.metrics["control"]["tokens_per_text"] == found.metrics["base"]["tokens_per_text"]
    judged = found.comparison["control"]
    assert judged["trained"] is True
    assert judged["recompute"]["merged"] == pytest.approx(100 - found.retention["valid_share"])
    assert judged["recompute"]["control"] == 100
    assert {item["dataset"] for item in judged["items"]} == {"relations", "terms"}
    assert all(item["control"] is not None for item in found.comparison["items"])


def test_every_item_is_written_with_a_number_for_each_model(graft: Graft, datasets: list[AcceptedDataset]) -> None:
    found = run(graft, Questions(datasets, RETENTION), merged=load(graft.merged["tokens"]))
    columns = item_columns(found.measurements)
    assert len({len(values) for values in columns.values()}) == 1
    assert columns.keys() >= {"dataset", "item", "answer", "group", "new_word", "score", "base", "resized", "merged"}
    named = list(zip(columns["dataset"], columns["metric"], strict=True))
    of_terms = [place for place, name in enumerate(named) if name == ("terms", "mrr")]
    mean = np.mean([columns["merged"][place] for place in of_terms])
    assert round(100 * float(mean), 2) == round(found.metrics["merged"]["terms"]["all"]["mrr"], 2)
    scored = [place for place, score in enumerate(columns["score"]) if score is not None]
    assert [columns["item"][place] for place in scored] == RETENTION[0]
    assert columns["answer"][columns["item"].index("dog <|IsA|>")] == "dog stone"


def test_two_runs_give_one_result(graft: Graft, datasets: list[AcceptedDataset]) -> None:
    questions = Questions(datasets, RETENTION)
    first, second = (run(graft, questions, merged=load(graft.merged["tokens"])) for _ in range(2))
    for name in ("metrics", "comparison", "retention", "tokens", "searches"):
        assert getattr(first, name) == getattr(second, name)
    assert item_columns(first.measurements) == item_columns(second.measurements)


def test_the_plot_has_a_row_for_each_gain_but_the_hits_of_link_prediction() -> None:
    item = {"dataset": "terms", "subset": "all", "metric": "mrr", "gain": 2.0, "low": 1.0, "high": 3.0}
    item |= {"verdict": "better", "base": 50.0}
    (row,) = gains_for_plots({"items": [item, item | {"metric": "link_hits@3"}]})
    assert row == {"figure": "terms, all: mrr", "gain": 2.0, "low": 1.0, "high": 3.0, "verdict": "better"}


def test_the_shipped_example_is_under_the_limit_of_smoke_figures() -> None:
    assert load_params(ROOT / "params.yaml").evaluate_model.smoke_under == 200
