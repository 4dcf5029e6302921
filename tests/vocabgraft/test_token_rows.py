"""Trainable rows beside frozen ones."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from tests.vocabgraft.conftest import Graft, load, lora_params, rows_of
from vocabgraft.adapters import adapter_parameters, add_adapter
from vocabgraft.errors import VocabgraftError
from vocabgraft.params import Method
from vocabgraft.token_rows import TokenRows, fast_peft_rows, token_rows

TRAINED = [7, 3]


@pytest.fixture
def embedding() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(9, 4, padding_idx=0).requires_grad_(False)


def test_trained_rows_stand_in_for_the_frozen_ones_and_only_for_them(embedding: nn.Embedding) -> None:
    rows = torch.randn(2, 4)
    ids = torch.tensor([[0, 3, 7], [8, 3, 1]])
    expected = embedding.weight.clone()
    expected[TRAINED] = rows
    assert torch.equal(TokenRows(embedding, TRAINED, rows)(ids), expected[ids])


def test_gradients_are_those_of_a_whole_trainable_matrix(embedding: nn.Embedding) -> None:
    ids, seen = torch.tensor([[3, 3, 7], [8, 0, 1]]), torch.randn(2, 3, 4)
    layer = TokenRows(embedding, TRAINED, embedding.weight[TRAINED])
    (layer(ids) * seen).sum().backward()
    whole = embedding.weight.clone().requires_grad_()
    (nn.functional.embedding(ids, whole) * seen).sum().backward()
    assert whole.grad is not None
    torch.testing.assert_close(layer.rows.grad, whole.grad[TRAINED])
    assert embedding.weight.grad is None


def test_an_embedding_that_does_more_than_look_up_is_refused() -> None:
    class Scaled(nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(ids)

    with pytest.raises(VocabgraftError, match="are a Scaled; only a plain"):
        TokenRows(Scaled(9, 4), TRAINED, torch.zeros(2, 4))


def test_rows_are_written_back_and_the_model_is_otherwise_as_it_was(graft: Graft) -> None:
    model, before = load(graft.resized), rows_of(load(graft.resized))
    with token_rows(model, graft.new_ids) as layer:
        assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
            name for name, _ in model.named_parameters() if name.endswith(".rows")
        ]
        with torch.no_grad():
            layer.rows += 1
    after = rows_of(model)
    torch.testing.assert_close(after[graft.new_ids], before[graft.new_ids] + 1)
    old = [row for row in range(len(before)) if row not in graft.new_ids]
    assert torch.equal(after[old], before[old])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_failure_leaves_the_old_rows(graft: Graft) -> None:
    model, before = load(graft.resized), rows_of(load(graft.resized)).clone()
    with pytest.raises(RuntimeError), token_rows(model, graft.new_ids) as layer:
        with torch.no_grad():
            layer.rows += 1
        raise RuntimeError
    assert torch.equal(rows_of(model), before)


@pytest.mark.parametrize("method", ["tokens", "lora_and_tokens"])
def test_pefts_rows_give_the_same_values_and_gradients_when_looked_up(graft: Graft, method: Method) -> None:
    results = []
    for fast in (False, True):
        model = load(graft.resized)
        add_adapter(model, method, graft.new_ids, lora_params())
        torch.manual_seed(0)
        for parameter in adapter_parameters(model).values():
            parameter.data = torch.randn(parameter.shape)
        model.eval()
        with fast_peft_rows(model) if fast else nullcontext(0) as layers:
            assert layers == fast
            features = model.preprocess(["the nephrolith <|IsA|> a stone", "a dog"])
            embedded = model(features)["sentence_embedding"]
            embedded[:, 0].sum().backward()
        gradients = {name: parameter.grad for name, parameter in adapter_parameters(model).items()}
        results.append((embedded.detach(), gradients, model[0].auto_model.state_dict()))
    (slow_values, slow_gradients, slow_state), (fast_values, fast_gradients, fast_state) = results
    assert torch.equal(slow_values, fast_values)
    assert slow_gradients.keys() == fast_gradients.keys()
    for name, gradient in slow_gradients.items():
        torch.testing.assert_close(fast_gradients[name], gradient)
    assert slow_state.keys() == fast_state.keys()


def test_pefts_own_forward_is_back_afterwards_and_serves_a_disabled_adapter(graft: Graft) -> None:
    model = load(graft.resized)
    plain = model.encode(["a nephrolith"])
    add_adapter(model, "tokens", graft.new_ids, lora_params())
    for parameter in adapter_parameters(model).values():
        parameter.data += 1
    with fast_peft_rows(model):
        trained = model.encode(["a nephrolith"])
        model.disable_adapters()
        assert (model.encode(["a nephrolith"]) == plain).all()
        model.enable_adapters()
    assert (model.encode(["a nephrolith"]) == trained).all()
    assert not (trained == plain).all()
    assert not any("forward_adapters" in vars(module) for module in model.modules())
