"""Names of metrics are told before a training as its evaluations give them."""

import re
from typing import Any

import pytest

from tasks.support.trainer_log import losses_of, metrics_of
from tests.vocabgraft.config.test_evaluators import FIT, with_validation
from tests.vocabgraft.config.test_losses import settings
from tests.vocabgraft.conftest import Graft, WriteDataset, load, train_params
from vocabgraft.config.datasets import DatasetParams
from vocabgraft.config.losses import DEFAULT_LOSS, Format
from vocabgraft.config.training import EvaluatorParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.training.evaluators import build_evaluator
from vocabgraft.training.fit import train_adapter


def dataset_of(name: str, dataset_format: Format, **changes: Any) -> DatasetParams:
    """A dataset of params.yaml with a validation split."""
    files = {"train": "own.csv", "validation": "held_out.csv"}
    return DatasetParams.model_validate({"name": name, "format": dataset_format, "files": files} | changes)


@pytest.mark.parametrize(("name", "dataset_format"), FIT)
def test_names_are_those_of_the_real_evaluator(
    graft: Graft, write_dataset: WriteDataset, name: str, dataset_format: Format
) -> None:
    model, loss_name = load(graft.resized), DEFAULT_LOSS[dataset_format]
    loss: Any = None
    if name == "LabelAccuracyEvaluator":
        from sentence_transformers.sentence_transformer.losses import SoftmaxLoss

        loss, loss_name = SoftmaxLoss(model, 32, 2), "SoftmaxLoss"
    entry = EvaluatorParams(dataset="own", name=name)
    real = build_evaluator(entry, with_validation(write_dataset, dataset_format), loss_name, loss, 8)(model)
    told = metrics_of([entry], [dataset_of("own", dataset_format, loss=loss_name)])
    given = {re.sub("relation_.+_", "relation_*_", f"eval_{key}") for key in real}
    assert set(told) == given | {"eval_sequential_score"}


def test_names_follow_arguments_and_the_similarity_of_the_base() -> None:
    entry = EvaluatorParams(dataset="own", arguments={"mrr_at_k": [3], "query_prompt_name": "asked"})
    assert "eval_own_dot_mrr@3" in metrics_of([entry], [dataset_of("own", "pairs")], "dot")


def test_an_argument_with_a_value_that_the_class_refuses_is_named() -> None:
    entry = EvaluatorParams(dataset="own", arguments={"mrr_at_k": "ten"})
    with pytest.raises(VocabgraftError, match=r"train_adapter\.evaluators"):
        metrics_of([entry], [dataset_of("own", "pairs")])


def test_every_metric_of_a_training_has_a_name_that_was_reported(graft: Graft, write_dataset: WriteDataset) -> None:
    model = load(graft.resized)
    evaluators = [{"dataset": "own"}, {"dataset": "own", "name": "TranslationEvaluator"}]
    params = train_params(evaluators=evaluators)
    datasets = [with_validation(write_dataset, "pairs")]
    result = train_adapter(model, datasets, graft.new_ids, params, 3, [settings("own", "pairs", None)])
    given = [dataset_of("own", "pairs")]
    told = {*losses_of(given), *metrics_of(params.evaluators, given)}
    logged = {name for entry in result.curve for name in entry if name.startswith("eval_")}
    assert logged == told


def test_a_dataset_without_a_validation_split_has_no_loss() -> None:
    alone = DatasetParams.model_validate({"name": "own", "format": "pairs", "files": {"train": "own.csv"}})
    assert losses_of([alone]) == []
    assert losses_of([alone, dataset_of("other", "pairs")]) == ["eval_loss", "eval_other_loss"]
