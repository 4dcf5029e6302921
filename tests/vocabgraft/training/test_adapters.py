"""Adapters: what moves, what is frozen, and that a merge is the adapter."""

import contextlib

import numpy as np
import pytest
import torch

from tests.vocabgraft.conftest import ADAPTERS, METHODS, PEFT, WITH_ROWS, Graft, load, lora_params, rows_of
from vocabgraft.config.training import LoraParams, Method
from vocabgraft.errors import VocabgraftError
from vocabgraft.training.adapters import (
    Part,
    adapter_parameters,
    add_adapter,
    embedding_name,
    fold_behind_gate,
    remove_adapter,
    train_only,
    trainable_parameters,
)

TEXTS = ["a nephrolith in the kidney", "dog <|IsA|> animal", "a dog", "x -> y", "the Thrombopenia"]
ROWS_ONLY = 4 * 32


@pytest.mark.parametrize("method", ADAPTERS)
def test_only_the_adapter_can_be_trained(graft: Graft, method: Method) -> None:
    model = load(graft.resized)
    add_adapter(model, method, graft.new_ids, lora_params(), PEFT.get(method))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert trainable == set(adapter_parameters(model))


def test_without_an_adapter_every_weight_is_trained_that_an_embedding_depends_on(graft: Graft) -> None:
    model = load(graft.resized)
    add_adapter(model, "full", graft.new_ids, lora_params())
    model.requires_grad_(False)
    count = train_only(model, "all")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    unused = {name for name, _ in model.named_parameters() if ".pooler." in name}
    assert len(unused) == 2
    assert trained == {name for name, _ in model.named_parameters()} - unused
    assert count == sum(parameter.numel() for name, parameter in model.named_parameters() if name in trained)
    assert adapter_parameters(model) == {}
    assert list(trainable_parameters(model)) == [name for name, _ in model.named_parameters()]


def test_an_adapter_of_what_no_embedding_depends_on_is_frozen(graft: Graft) -> None:
    model = load(graft.resized)
    add_adapter(model, "lora", graft.new_ids, LoraParams(r=2, target_modules=["query", "dense"]))
    train_only(model, "all")
    frozen = {name for name in adapter_parameters(model) if not model.get_parameter(name).requires_grad}
    assert {name.partition(".model.")[2].partition(".")[0] for name in frozen} <= {"pooler", ""}
    assert len(frozen) == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_fresh_adapter_changes_nothing(graft: Graft, method: Method) -> None:
    model, resized = load(graft.resized), load(graft.resized)
    add_adapter(model, method, graft.new_ids, lora_params(), PEFT.get(method))
    assert np.allclose(model.eval().encode(TEXTS), resized.encode(TEXTS), atol=1e-6)


def test_the_rows_are_exactly_those_of_the_new_tokens(graft: Graft) -> None:
    model = load(graft.resized)
    add_adapter(model, "tokens", graft.new_ids, lora_params())
    assert sum(parameter.numel() for parameter in adapter_parameters(model).values()) == ROWS_ONLY


@pytest.mark.parametrize(
    ("method", "part", "rows", "adapter"),
    [
        ("tokens", "all", True, False),
        ("tokens", "rows", True, False),
        ("lora", "adapter", False, True),
        ("lora_and_tokens", "rows", True, False),
        ("lora_and_tokens", "adapter", False, True),
        ("lora_and_tokens", "all", True, True),
        ("peft", "adapter", False, True),
        ("peft", "all", False, True),
        ("peft_and_tokens", "rows", True, False),
        ("peft_and_tokens", "adapter", False, True),
        ("peft_and_tokens", "all", True, True),
    ],
)
def test_a_part_is_trained_and_the_other_is_frozen(
    graft: Graft, method: Method, part: Part, rows: bool, adapter: bool
) -> None:
    model = load(graft.resized)
    add_adapter(model, method, graft.new_ids, lora_params(), PEFT.get(method))
    count = train_only(model, part)
    moving = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("trainable_tokens_delta" in name for name in moving) == rows
    assert any(".lora_" in name or ".hada_" in name for name in moving) == adapter
    assert count == sum(parameter.numel() for parameter in moving.values())
    assert (count == ROWS_ONLY) == (not adapter)


@pytest.mark.parametrize("method", ["lora_and_tokens", "peft_and_tokens"])
def test_a_part_can_be_trained_again_after_it_was_frozen(graft: Graft, method: Method) -> None:
    model = load(graft.resized)
    add_adapter(model, method, graft.new_ids, lora_params(), PEFT.get(method))
    everything = train_only(model, "all")
    assert train_only(model, "rows") + train_only(model, "adapter") == everything
    assert train_only(model, "all") == everything


@pytest.mark.parametrize(("method", "part"), [("tokens", "adapter"), ("lora", "rows"), ("peft", "rows")])
def test_a_part_that_the_method_lacks_is_refused(graft: Graft, method: Method, part: Part) -> None:
    model = load(graft.resized)
    add_adapter(model, method, graft.new_ids, lora_params(), PEFT.get(method))
    with pytest.raises(VocabgraftError, match=f"nothing to train for the part '{part}'"):
        train_only(model, part)


def test_a_module_that_is_not_there_is_named_with_those_that_are(graft: Graft) -> None:
    with pytest.raises(VocabgraftError, match=r"names q_proj, which .* allowed: dense, key, query, value"):
        add_adapter(load(graft.resized), "lora", graft.new_ids, LoraParams(target_modules=["query", "q_proj"]))


def test_the_embeddings_are_found_by_their_name(graft: Graft) -> None:
    assert embedding_name(load(graft.base)) == "word_embeddings"


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_model_encodes_as_the_adapter_and_not_as_the_base(graft: Graft, method: Method) -> None:
    # No other text passes an adapter behind a gate.
    texts = [text for text in TEXTS if text != "a dog"] if method == "gated" else TEXTS
    with contextlib.chdir(graft.root):
        adapter = load(graft.adapters[method]).encode(texts)
    merged = load(graft.merged[method]).encode(texts)
    assert np.allclose(adapter, merged, atol=1e-5)
    assert np.abs(merged - load(graft.resized).encode(texts)).max() > 1e-2


@pytest.mark.parametrize("method", ADAPTERS)
def test_a_merge_leaves_the_rows_that_the_method_does_not_train(graft: Graft, method: Method) -> None:
    resized, merged = rows_of(load(graft.resized)), rows_of(load(graft.merged[method]))
    changed = (resized != merged).any(dim=1).nonzero().flatten().tolist()
    assert changed == (graft.new_ids if method in WITH_ROWS else [])


def test_a_merge_of_rows_leaves_every_other_weight(graft: Graft) -> None:
    resized, merged = load(graft.resized).state_dict(), load(graft.merged["tokens"]).state_dict()
    changed = [name for name in resized if not torch.equal(resized[name], merged[name])]
    assert [name.split(".")[-2] for name in changed] == ["word_embeddings"]


@pytest.mark.parametrize("method", ADAPTERS)
def test_merging_in_memory_gives_the_weights_of_the_merged_folder(graft: Graft, method: Method) -> None:
    with contextlib.chdir(graft.root):
        model = load(graft.adapters[method])
    if method == "gated":
        fold_behind_gate(model, graft.new_ids)
    else:
        remove_adapter(model, merge=True)
    expected, found = load(graft.merged[method]).state_dict(), model.state_dict()
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("method", ADAPTERS)
def test_an_adapter_that_is_removed_leaves_the_resized_base(graft: Graft, method: Method) -> None:
    with contextlib.chdir(graft.root):
        model = load(graft.adapters[method])
    remove_adapter(model, merge=False)
    expected, found = load(graft.resized).state_dict(), model.state_dict()
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    with pytest.raises(VocabgraftError, match="no PEFT adapter"):
        remove_adapter(model, merge=False)
