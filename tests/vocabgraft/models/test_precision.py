"""A 16-bit model is float32 while it trains, and afterwards what it was."""

import pytest
import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.models.precision import in_float32

HALVES = [torch.float16, torch.bfloat16]


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
