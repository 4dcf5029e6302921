"""`precision: auto` is decided by a measurement, which changes nothing; a 16-bit model is float32 while it trains."""

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from vocabgraft.config.training import Precision
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.precision import ChosenPrecision, faster_precision, in_float32, resolve_precision

HALVES = [torch.float16, torch.bfloat16]


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


def linear(dtype: torch.dtype) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 4).to(dtype)


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_are_float32_within_and_the_same_bits_afterwards(dtype: torch.dtype) -> None:
    model = linear(dtype)
    before, weight = model.weight.detach().clone(), model.weight
    with in_float32(model):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert torch.equal(model.weight, before.float())
    assert model.weight is weight and model.weight.dtype == dtype
    assert torch.equal(model.weight, before)


def test_weights_that_two_models_share_are_converted_once() -> None:
    first, second = linear(torch.float16), linear(torch.float16)
    second.weight = first.weight
    with in_float32(first, second):
        assert second.weight is first.weight and second.bias.dtype == torch.float32
    assert first.weight.dtype == second.bias.dtype == torch.float16


def test_a_parameter_that_was_replaced_has_the_type_of_the_old_one() -> None:
    model = linear(torch.float16)
    with in_float32(model):
        model.weight = torch.nn.Parameter(model.weight.detach() + 1)
    assert model.weight.dtype == torch.float16


def test_what_is_float32_or_was_added_stays_float32() -> None:
    model = linear(torch.float32)
    model.register_buffer("halves", torch.ones(2, dtype=torch.float16))
    with in_float32(model):
        model.register_parameter("added", torch.nn.Parameter(torch.ones(2)))
    assert (model.weight.dtype, model.get_parameter("added").dtype) == (torch.float32, torch.float32)
    assert model.get_buffer("halves").dtype == torch.float16


def test_a_weight_that_float16_cannot_hold_is_refused_by_name_and_value() -> None:
    model = linear(torch.float16)
    with pytest.raises(VocabgraftError, match=r"weight reached 7e\+04.*float16"), in_float32(model):
        model.weight.data[0, 0] = 70_000
    assert model.weight.dtype == torch.float16


def test_an_error_within_is_not_replaced() -> None:
    model = linear(torch.float16)
    with pytest.raises(KeyError), in_float32(model):
        model.weight.data[0, 0] = 70_000
        raise KeyError
    assert model.weight.dtype == torch.float16
