"""Trainable rows beside frozen ones."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.vocabgraft.conftest import Graft, load, lora_params, rows_of
from vocabgraft.config.training import Method
from vocabgraft.errors import VocabgraftError
from vocabgraft.token_embeddings.trainable import TokenRows, fast_peft_rows, token_rows
from vocabgraft.training.adapters import adapter_parameters, add_adapter

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


class Scaled(nn.Embedding):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(ids)


@pytest.mark.parametrize(
    ("layer", "shown"),
    [
        (Scaled(9, 4), r"Scaled\(9, 4\)"),
        (nn.Embedding(9, 4, max_norm=1.0), r"Embedding\(9, 4, max_norm=1.0\)"),
        (nn.Embedding(9, 4, scale_grad_by_freq=True), r"Embedding\(9, 4, scale_grad_by_freq=True\)"),
        (nn.Embedding(9, 4, sparse=True), r"Embedding\(9, 4, sparse=True\)"),
    ],
)
def test_an_embedding_that_does_more_than_look_up_is_refused(layer: nn.Embedding, shown: str) -> None:
    with pytest.raises(VocabgraftError, match=f"are a {shown}; only a plain nn.Embedding without max_norm"):
        TokenRows(layer, TRAINED, torch.zeros(2, 4))


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


class Embedder(nn.Module):
    """An embedding alone, as PEFT wants a model."""

    def __init__(self, vocabulary: int, width: int, **options: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, **options)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.embedding(ids)
        return embedded


def peft_rows(token_ids: list[int], model: nn.Module, target: str = "embedding") -> nn.Module:
    from peft import TrainableTokensConfig, get_peft_model

    return randomised(get_peft_model(model, TrainableTokensConfig(token_indices=token_ids, target_modules=[target])))


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in trained(model).values():
        parameter.data = torch.randn(parameter.shape, dtype=parameter.dtype)
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def pass_through(model: nn.Module, ids: torch.Tensor, seen: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
    """What the model gives, and the gradients of its parameters when `seen` comes back."""
    model.zero_grad()
    embedded = model(ids)
    embedded.backward(seen)
    return embedded.detach(), [parameter.grad for parameter in model.parameters()]


def require_the_same_both_ways(model: nn.Module, ids: torch.Tensor, width: int) -> None:
    seen = torch.randn(*ids.shape, width, generator=torch.Generator().manual_seed(2))
    slow_values, slow_gradients = pass_through(model, ids, seen)
    with fast_peft_rows(model) as layers:
        assert layers == 1
        values, gradients = pass_through(model, ids, seen)
    assert torch.equal(values, slow_values)
    for gradient, slow in zip(gradients, slow_gradients, strict=True):
        assert gradient is slow is None or torch.equal(gradient, slow)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_values_and_gradients_are_pefts_to_the_last_bit(data: st.DataObject) -> None:
    vocabulary = data.draw(st.integers(1, 12))
    known = st.integers(0, vocabulary - 1)
    token_ids = data.draw(st.lists(known, min_size=1, unique=True))
    # The padding token may be one of the trained, which takes its gradient away.
    padding = data.draw(st.none() | known)
    shape = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
    count = shape[0] * shape[1]
    ids = torch.tensor(data.draw(st.lists(known, min_size=count, max_size=count))).view(shape)
    require_the_same_both_ways(peft_rows(token_ids, Embedder(vocabulary, 3, padding_idx=padding)), ids, 3)


def test_many_positions_of_one_token_are_summed_as_peft_sums_them() -> None:
    ids = torch.randint(0, 50, (64, 40), generator=torch.Generator().manual_seed(0))
    require_the_same_both_ways(peft_rows([7, 3, 49], Embedder(50, 16)), ids, 16)


def test_a_matrix_that_is_trained_as_well_keeps_its_gradient() -> None:
    model = peft_rows(TRAINED, Embedder(9, 4))
    model.requires_grad_(True)
    require_the_same_both_ways(model, torch.tensor([[0, 3, 7], [8, 3, 1]]), 4)
    assert sum(parameter.grad is not None for parameter in model.parameters()) == 2


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_a_layer_that_does_more_than_look_up_keeps_pefts_forward(options: dict[str, Any]) -> None:
    with fast_peft_rows(peft_rows(TRAINED, Embedder(9, 4, **options))) as layers:
        assert layers == 0


def test_rows_of_float32_over_a_matrix_of_bfloat16_are_rounded_where_peft_rounds_them() -> None:
    model = peft_rows(TRAINED, Embedder(9, 4).bfloat16())
    assert {parameter.dtype for parameter in trained(model).values()} == {torch.float32}
    ids, seen = torch.tensor([[0, 3, 7], [8, 3, 1]]), torch.randn(2, 3, 4).bfloat16()
    slow_values, _ = pass_through(model, ids, seen)
    with fast_peft_rows(model):
        values, _ = pass_through(model, ids, seen)
    (gradient,) = (parameter.grad for parameter in trained(model).values())
    assert torch.equal(values, slow_values)
    assert values.dtype == torch.bfloat16
    # PEFT sums in bfloat16; here the sum is that of the rows' own type.
    assert gradient is not None
    assert torch.equal(gradient, torch.stack([seen[0, 2].float(), seen[0, 1].float() + seen[1, 1].float()]))


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor has that an operation within the block gave."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


def test_nothing_of_the_size_of_the_matrix_is_made() -> None:
    model, ids, seen = peft_rows(TRAINED, Embedder(1_000, 4)), torch.tensor([[0, 3, 7]]), torch.randn(1, 3, 4)
    with Largest() as slow:
        pass_through(model, ids, seen)
    with fast_peft_rows(model), Largest() as fast:
        pass_through(model, ids, seen)
    assert (slow.numbers, fast.numbers) == (4_000, 12)


def test_one_graph_without_a_break_serves_batches_of_any_shape() -> None:
    """A graph that holds a data-dependent shape is refused with fullgraph=True."""
    from torch._dynamo.testing import CompileCounterWithBackend

    model = peft_rows(TRAINED, Embedder(9, 4))
    alone = TokenRows(nn.Embedding(9, 4).requires_grad_(False), TRAINED, torch.randn(2, 4))
    with fast_peft_rows(model):
        for layer in (model, alone):
            graphs = CompileCounterWithBackend("aot_eager")
            compiled = torch.compile(layer, fullgraph=True, backend=graphs, dynamic=True)
            for shape in ((2, 3), (4, 5)):
                ids, seen = torch.randint(0, 9, shape), torch.randn(*shape, 4)
                ids[0, :2] = torch.tensor(TRAINED)
                values, gradients = pass_through(layer, ids, seen)
                compiled_values, compiled_gradients = pass_through(compiled, ids, seen)
                assert torch.equal(values, compiled_values)
                for gradient, other in zip(gradients, compiled_gradients, strict=True):
                    assert gradient is other is None or torch.allclose(gradient, other)
            assert graphs.frame_count == 1


def masked_language_model() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    return BertForMaskedLM(BertConfig(vocab_size=20, tie_word_embeddings=True, max_position_embeddings=8, **sizes))


def encoder_and_decoder() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(
        T5Config(vocab_size=20, tie_word_embeddings=True, decoder_start_token_id=0, pad_token_id=0, **sizes)
    )


# The output matrix keeps PEFT's forward; the decoder's and the encoder's embeddings are two layers over one matrix,
# and PEFT wraps the module that they share as well.
@pytest.mark.parametrize(
    ("make", "target", "projection", "layers"),
    [(masked_language_model, "word_embeddings", "query", 1), (encoder_and_decoder, "shared", "q", 3)],
)
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.filterwarnings("ignore:You have requested .ensure_weight_tying., but no tied modules are added")
def test_tied_models_give_pefts_values_and_gradients(
    make: Any, target: str, projection: str, layers: int, lora: bool
) -> None:
    from peft import LoraConfig, get_peft_model

    results = []
    ids = torch.tensor([[3, 7, 5, 7], [1, 2, 9, 3]])
    for fast in (False, True):
        torch.manual_seed(0)
        model = make().eval()
        if lora:
            rows = {target: TRAINED}
            config = LoraConfig(
                r=2, target_modules=[projection], trainable_token_indices=rows, ensure_weight_tying=True
            )
            wrapped = randomised(get_peft_model(model, config))
        else:
            wrapped = peft_rows(TRAINED, model, target)
        with fast_peft_rows(wrapped) if fast else nullcontext(layers) as patched:
            assert patched == layers
            result = wrapped(input_ids=ids, labels=ids)
            result.loss.backward()
        gradients = {name: parameter.grad for name, parameter in trained(wrapped).items()}
        results.append((result.logits.detach(), gradients))
    (slow_values, slow_gradients), (values, gradients) = results
    assert torch.equal(values, slow_values)
    assert gradients.keys() == slow_gradients.keys()
    assert any("trainable_tokens" in name for name in gradients)
    for name, gradient in slow_gradients.items():
        assert gradient is not None
        assert torch.equal(gradients[name], gradient), name
