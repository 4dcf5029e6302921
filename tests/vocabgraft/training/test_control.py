"""The control: the same budget, and relations read as their descriptions."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vocabgraft.conftest import Graft, WriteDataset, load, train_params
from vocabgraft.tokens.new_token import NewToken, read_with_descriptions, reading_descriptions
from vocabgraft.tokens.tokenizer import load_tokenizer
from vocabgraft.training.fit import train_adapter

TOKENS = [NewToken("<|IsA|>", "special", "is a kind of"), NewToken("nephrolith", "word", "stone in the kidney")]


def test_the_control_has_the_epochs_of_all_phases_and_no_rows() -> None:
    phases = [{"train": "rows", "epochs": 3}, {"train": "all"}]
    found = train_params(method="lora_and_tokens", phases=phases, epochs=2, batch_size=16).for_control()
    assert (found.method, found.phases, found.epochs, found.batch_size) == ("lora", [], 5, 16)
    assert train_params(epochs=2).for_control().epochs == 2


def test_a_relation_is_read_as_its_description_within_the_block_alone(graft: Graft) -> None:
    model = load(graft.base)
    token, described = "dog <|IsA|> animal", "dog is a kind of animal"
    own = model.tokenizer(token)["input_ids"]
    with reading_descriptions(model, TOKENS):
        assert model.tokenizer(token)["input_ids"] == model.tokenizer(described)["input_ids"]
        # A word stays what it is to the base.
        assert model.tokenizer("nephrolith")["input_ids"] != model.tokenizer("stone in the kidney")["input_ids"]
    assert model.tokenizer(token)["input_ids"] == own != model.tokenizer(described)["input_ids"]


@pytest.fixture(scope="module")
def reader(graft: Graft) -> Any:
    """What has the base's tokenizer."""
    return SimpleNamespace(tokenizer=load_tokenizer(graft.base))


@settings(deadline=None)
@given(parts=st.lists(st.sampled_from(["dog", " ", "<|IsA|>", "<|isa|>", "IsA", "<", "|>"]), max_size=8))
def test_whatever_a_relation_stands_in_is_read_as_in_the_evaluation(reader: Any, parts: list[str]) -> None:
    text = "".join(parts)
    expected = reader.tokenizer(read_with_descriptions(text, TOKENS))["input_ids"]
    with reading_descriptions(reader, TOKENS):
        assert reader.tokenizer(text)["input_ids"] == expected


def test_a_control_trains_on_triples_without_their_tokens(graft: Graft, write_dataset: WriteDataset) -> None:
    words = ("dog", "cat", "bird", "fish", "heart", "liver", "kidney", "sugar", "water", "house")
    rows = [(word, "IsA", f"{other} stone") for word in words for other in words[:2]]
    dataset = write_dataset("relations", "triples", ("head", "relation", "tail"), train=rows)
    model = load(graft.base)
    size = len(model.tokenizer)
    with reading_descriptions(model, TOKENS):
        result = train_adapter(model, [dataset], [], train_params().for_control(), 17)
    assert result.examples == len(rows)
    assert len(model.tokenizer) == size == model[0].auto_model.get_input_embeddings().weight.shape[0]
    trained = [name for name, parameter in model.named_parameters() if "lora_B" in name and parameter.any()]
    assert trained
