"""`precision: auto` is decided by a measurement on this machine, which changes nothing of the model."""

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from vocabgraft.config.training import Precision
from vocabgraft.models.precision import ChosenPrecision, faster_precision, resolve_precision


@pytest.fixture
def model(tiny_base: Path) -> SentenceTransformer:
    return SentenceTransformer(str(tiny_base), device="cpu")


def test_the_faster_precision_is_taken_whatever_the_processor_says() -> None:
    assert faster_precision({"float32": 680.0, "bfloat16": 490.0}).name == "float32"
    assert faster_precision({"float32": 490.0, "bfloat16": 680.0}).name == "bfloat16"
    assert faster_precision({"float32": 490.0, "bfloat16": 490.0}).name == "float32"


def test_auto_reports_the_speed_of_both_and_leaves_the_model_as_it_was(model: SentenceTransformer) -> None:
    model.train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.get_rng_state()
    chosen = resolve_precision("auto", model)
    assert chosen.texts_per_second is not None
    assert chosen.name == max(("float32", "bfloat16"), key=chosen.texts_per_second.__getitem__)
    assert set(chosen.measured["texts_per_second"]) == {"float32", "bfloat16"}
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("setting", ["float32", "bfloat16"])
def test_a_precision_by_name_is_not_timed(model: SentenceTransformer, setting: Precision) -> None:
    assert resolve_precision(setting, model) == ChosenPrecision(setting)
    assert resolve_precision(setting, model).measured == {}


def test_processes_that_train_together_agree_without_timing(model: SentenceTransformer) -> None:
    assert resolve_precision("auto", model, processes=2) == ChosenPrecision("float32")
