"""Evaluators: each on each format that it fits, best weights by a figure, and stopping early."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformerTrainer

from flows.sweep.grid import figures_of
from tests.vocabgraft.config.test_losses import rows, settings
from tests.vocabgraft.conftest import Graft, WriteDataset, load, train_params
from vocabgraft.config.datasets import COLUMNS
from vocabgraft.config.evaluators import EVALUATORS, check_evaluator, default_evaluator, evaluators_for
from vocabgraft.config.losses import DEFAULT_LOSS, FORMATS, Format
from vocabgraft.config.signatures import arguments_of
from vocabgraft.config.training import EvaluatorParams, Method
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.errors import VocabgraftError
from vocabgraft.training.adapters import adapter_parameters
from vocabgraft.training.evaluators import build_evaluator
from vocabgraft.training.fit import TrainingResult, train_adapter
from vocabgraft.training.trainer import AdapterTrainer, digest_of_trained

FIT = [(name, dataset_format) for name, entry in EVALUATORS.items() for dataset_format in entry.formats]
FIGURES = {
    "LinkPredictionEvaluator": "own_mrr",
    "InformationRetrievalEvaluator": "own_cosine_mrr@10",
    "TranslationEvaluator": "own_mean_accuracy",
    "TripletEvaluator": "own_cosine_accuracy",
    "RerankingEvaluator": "own_map",
    "EmbeddingSimilarityEvaluator": "own_spearman_cosine",
    "BinaryClassificationEvaluator": "own_cosine_ap",
    "LabelAccuracyEvaluator": "own_accuracy",
    "ParaphraseMiningEvaluator": "own_average_precision",
    "MSEEvaluator": "own_negative_mse",
}


def with_validation(write_dataset: WriteDataset, dataset_format: Format) -> AcceptedDataset:
    """A dataset whose rows are both splits."""
    given = rows(dataset_format)
    return write_dataset("own", dataset_format, COLUMNS[dataset_format], train=given, validation=given)


def train(
    graft: Graft, dataset: AcceptedDataset, evaluators: list[dict[str, Any]], loss: str | None = None, **changes: Any
) -> tuple[Any, TrainingResult]:
    """Train rows with evaluators."""
    model = load(graft.resized)
    params = train_params(evaluators=evaluators, **changes)
    return model, train_adapter(model, [dataset], graft.new_ids, params, 3, [settings("own", dataset.format, loss)])


@pytest.mark.parametrize(("name", "dataset_format"), FIT)
def test_every_evaluator_gives_its_figure_on_every_format_that_it_fits(
    graft: Graft, write_dataset: WriteDataset, name: str, dataset_format: Format
) -> None:
    dataset = with_validation(write_dataset, dataset_format)
    loss: Any = torch.nn.Identity()
    model = load(graft.resized)
    if name == "LabelAccuracyEvaluator":
        from sentence_transformers.sentence_transformer.losses import SoftmaxLoss

        loss = SoftmaxLoss(model, 32, 2)
    evaluator = build_evaluator(
        EvaluatorParams(dataset="own", name=name), dataset, DEFAULT_LOSS[dataset_format], loss, 8
    )
    figures = evaluator(model)
    assert FIGURES[name] in figures


def test_what_an_evaluator_cannot_be_given_are_arguments_of_its_class() -> None:
    for name, entry in EVALUATORS.items():
        assert set(entry.filled_in) < set(arguments_of(entry.module, name))


def test_a_format_has_its_evaluator_and_texts_have_none() -> None:
    found = {name: evaluators_for(name)[:1] for name in FORMATS}
    assert found["texts"] == []
    assert all(found[name] for name in FORMATS if name != "texts")
    assert default_evaluator("labelled_pairs", "SoftmaxLoss") == "LabelAccuracyEvaluator"
    with pytest.raises(ValueError, match="no evaluator fits the format texts; formats that have one: triples"):
        default_evaluator("texts", "ContrastiveTensionLoss")


@pytest.mark.parametrize(
    ("dataset_format", "name", "arguments", "told"),
    [
        ("pairs", "TripletEvaluator", {}, "does not fit the format pairs; evaluators that do: InformationRetrieval"),
        ("pairs", "Retrieval", {}, "there is no evaluator Retrieval; for pairs: InformationRetrievalEvaluator"),
        ("pairs", None, {"mrr_at": [3]}, "no argument mrr_at (do you mean mrr_at_k?)"),
        ("labelled_pairs", "LabelAccuracyEvaluator", {}, "needs the classifier of SoftmaxLoss"),
    ],
)
def test_an_evaluator_that_does_not_fit_is_refused(
    dataset_format: Format, name: str | None, arguments: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=r"Evaluator|Softmax") as caught:
        check_evaluator(dataset_format, DEFAULT_LOSS[dataset_format], name, arguments)
    assert told in str(caught.value)


def test_an_evaluator_without_data_is_reported(graft: Graft, write_dataset: WriteDataset) -> None:
    dataset = write_dataset("own", "pairs", COLUMNS["pairs"], train=rows("pairs"))
    with pytest.raises(VocabgraftError, match=r"InformationRetrievalEvaluator of own has no rows to evaluate on"):
        train(graft, dataset, [{"dataset": "own"}])


def test_the_best_weights_are_kept(graft: Graft, write_dataset: WriteDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    digests: list[str] = []
    original = AdapterTrainer._determine_best_metric

    def watched(self: AdapterTrainer, metrics: dict[str, float], trial: Any) -> bool:
        digests.append(digest_of_trained(self.model))
        # The second evaluation is made the best.
        metrics["eval_own_cosine_mrr@10"] = {2: 0.9}.get(len(digests), 0.1)
        return original(self, metrics, trial)

    monkeypatch.setattr(AdapterTrainer, "_determine_best_metric", watched)
    dataset = with_validation(write_dataset, "pairs")
    model, _ = train(graft, dataset, [{"dataset": "own"}], epochs=4, best_metric="own_cosine_mrr@10")
    assert len(set(digests)) == 4
    assert digest_of_trained(model) == digests[1]


def test_a_sweep_reports_the_loss_by_which_the_trainer_kept_its_weights(
    graft: Graft, write_dataset: WriteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, digests = iter([(1.0, 3.0), (1.5, 1.0)]), list[str]()

    def evaluated(self: AdapterTrainer, *given: Any, **options: Any) -> dict[str, float]:
        digests.append(digest_of_trained(self.model))
        found = dict(zip(("eval_large_loss", "eval_small_loss"), next(losses), strict=True))
        for name, value in found.items():
            self.log({name: value})
        return found

    monkeypatch.setattr(SentenceTransformerTrainer, "evaluate", evaluated)
    given = rows("pairs")
    datasets = [
        write_dataset(name, "pairs", COLUMNS["pairs"], train=given, validation=(given * count)[:count])
        for name, count in (("large", 900), ("small", 100))
    ]
    model = load(graft.resized)
    params = train_params(epochs=2, best_metric="eval_loss")
    result = train_adapter(model, datasets, graft.new_ids, params, 3)
    # By their rows 1.2 and 1.45, so the first is better; the plain means are 2.0 and 1.25.
    assert digest_of_trained(model) == digests[0] != digests[1]
    reported = figures_of(json.dumps({"log": result.curve}))
    assert reported == {"eval_large_loss": 1.0, "eval_small_loss": 3.0, "eval_loss": pytest.approx(1.2)}


@pytest.mark.parametrize("method", ["tokens", "lora_and_tokens"])
def test_the_best_weights_are_found_where_a_stage_runs(
    graft: Graft, write_dataset: WriteDataset, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A checkpoint names its base as the stage does, from the project's root.
    monkeypatch.chdir(graft.root)
    model, dataset = load(Path("data/resize_base")), with_validation(write_dataset, "pairs")
    train_adapter(model, [dataset], graft.new_ids, train_params(method=method, best_metric="eval_loss"), 3)


def test_best_weights_that_do_not_load_are_an_error(
    graft: Graft, write_dataset: WriteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = with_validation(write_dataset, "pairs")
    # The library would log the first, and not see the second.
    monkeypatch.setattr(AdapterTrainer, "_load_from_checkpoint", lambda self, path: 1 / 0)
    with pytest.raises(VocabgraftError, match=r"the best checkpoint, checkpoint-\d+, does not load"):
        train(graft, dataset, [], best_metric="eval_loss")

    def damaged(self: AdapterTrainer, path: str) -> None:
        with torch.no_grad():
            next(iter(adapter_parameters(self.model).values())).add_(1)

    monkeypatch.setattr(AdapterTrainer, "_load_from_checkpoint", damaged)
    with pytest.raises(VocabgraftError, match="was loaded, but the weights differ"):
        train(graft, dataset, [], best_metric="eval_loss")


def test_a_metric_that_is_not_measured_is_reported_with_those_that_are(
    graft: Graft, write_dataset: WriteDataset
) -> None:
    with pytest.raises(VocabgraftError, match=r"'mrr', which no evaluation gives; allowed: eval_loss, .*own_loss"):
        train(graft, with_validation(write_dataset, "pairs"), [], best_metric="mrr")


def test_training_stops_early_without_a_gain(graft: Graft, write_dataset: WriteDataset) -> None:
    stopping = {"patience": 1, "threshold": 100.0}
    dataset = with_validation(write_dataset, "pairs")
    _, result = train(graft, dataset, [], epochs=8, best_metric="eval_loss", early_stopping=stopping)
    # The first evaluation is a gain over nothing, the second none.
    assert max(entry["epoch"] for entry in result.curve) == 2


def test_arguments_reach_the_trainer_and_those_it_refuses_are_reported(
    graft: Graft, write_dataset: WriteDataset
) -> None:
    dataset = with_validation(write_dataset, "pairs")
    arguments = {"max_steps": 3, "eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1}
    _, result = train(graft, dataset, [], arguments=arguments)
    assert [entry["step"] for entry in result.curve if "eval_own_loss" in entry] == [1, 2, 3]
    with pytest.raises(VocabgraftError, match=r"eval_strategy is 'sometimes'"):
        train(graft, dataset, [], arguments={"eval_strategy": "sometimes"})


def test_a_batch_that_memory_does_not_hold_is_reported_with_the_ways_out(
    graft: Graft, write_dataset: WriteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **options: Any) -> Any:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(AdapterTrainer, "training_step", full)
    with pytest.raises(VocabgraftError, match=r"batch_size 8 .*auto_find_batch_size.*CachedMultipleNegativesRanking"):
        train(graft, with_validation(write_dataset, "pairs"), [])


def test_a_batch_size_that_memory_holds_is_found(
    graft: Graft, write_dataset: WriteDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, sizes = AdapterTrainer.training_step, list[int]()

    def step(self: AdapterTrainer, model: Any, inputs: dict[str, Any], *given: Any) -> Any:
        sizes.append(len(next(value for name, value in inputs.items() if name.endswith("input_ids"))))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB")
        return own(self, model, inputs, *given)

    monkeypatch.setattr(AdapterTrainer, "training_step", step)
    dataset = with_validation(write_dataset, "pairs")
    _, result = train(graft, dataset, [], batch_size=4, arguments={"auto_find_batch_size": True})
    fitting = sizes[next(place for place, size in enumerate(sizes) if size <= 2) :]
    assert sizes[0] > 2
    assert max(fitting) <= 2
    assert sum(fitting) >= dataset.rows("train")
    assert any("loss" in entry for entry in result.curve)
