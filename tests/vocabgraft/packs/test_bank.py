"""Vocabularies on one model: each reads as its own merged model does, and none leaves a trace when it is gone."""

import gc
import re
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.vocabgraft.conftest import Graft, WriteDataset, load, train_params
from tests.vocabgraft.pack_samples import BAD_PACKS, KIDNEY, LIVER, make_pack, random_rows, write_bad_packs
from vocabgraft.config.stages import DistillationParams, PromptParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.resize import write_resized
from vocabgraft.packs.bank import FOLDED_KEPT, VocabularyBank
from vocabgraft.packs.pack import PackAdapter, adapter_from
from vocabgraft.packs.shared_modules import AppendedRows
from vocabgraft.tokens.tokenizer import extend_tokenizer, load_tokenizer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

OLD = ["a dog and a cat", "pain in the liver", "the nephroliths", "wood"]
WITH_KIDNEY = ["a nephrolith in the kidney", "dog <|IsA|> animal", "thrombopenia"]
WITH_LIVER = ["the hepatoma of the patient", "wood => house"]
TEXTS = [*OLD, *WITH_KIDNEY, *WITH_LIVER, "a nephrolith and a hepatoma"]


@pytest.fixture
def model(tiny_base: Path) -> "SentenceTransformer":
    return load(tiny_base)


@pytest.fixture
def bank(model: "SentenceTransformer") -> VocabularyBank:
    """Two vocabularies over the tiny base."""
    bank = VocabularyBank(model)
    bank.put(make_pack(model, "kidney", KIDNEY, seed=1))
    bank.put(make_pack(model, "liver", LIVER, seed=2))
    return bank


def embed(model: "SentenceTransformer", texts: list[str] = TEXTS) -> Any:
    return model.encode(texts, show_progress_bar=False)


def same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other))


@pytest.fixture(scope="module")
def lora(graft: Graft) -> PackAdapter:
    """A LoRA adapter with random weights, apart from rows."""
    adapter = adapter_from(graft.adapters["lora_and_tokens"])
    assert adapter is not None
    return adapter


# What AdapterHub's tests of its embeddings ask, asked anew.


def test_an_added_vocabulary_has_a_row_for_each_token_and_is_read_as_tokens(model: "SentenceTransformer") -> None:
    bank = VocabularyBank(model)
    bank.add("kidney", KIDNEY)
    assert bank.names == ["kidney"] and bank.active == ()
    assert len(bank.pack("kidney").rows) == len(KIDNEY)
    bank.activate("kidney")
    assert bank.active == ("kidney",)
    assert "nephrolith" in model.tokenizer.tokenize("a nephrolith")
    assert len(model.tokenizer) == bank.base.tokens + len(KIDNEY)


def test_strings_are_words_and_start_from_their_pieces(model: "SentenceTransformer") -> None:
    bank = VocabularyBank(model)
    bank.add("x", ["hepatoma"])
    (token,) = bank.pack("x").tokens
    assert (token.kind, token.single_word) == ("word", True)
    ids = model.tokenizer("hepatoma", add_special_tokens=False)["input_ids"]
    weight = model[0].auto_model.get_input_embeddings().weight
    # The rows of the tiny base have nearly one length, so a mean of eight starts at their median length.
    assert torch.cosine_similarity(bank.pack("x").rows[0], weight[ids].mean(dim=0), dim=0).item() == pytest.approx(1)


def test_rows_come_from_a_reference_where_it_has_the_token(bank: VocabularyBank) -> None:
    bank.add("more", [*KIDNEY, "gastrodyn"], reference="kidney")
    rows = dict(zip(bank.pack("more").texts, bank.pack("more").rows, strict=True))
    for text, row in zip(bank.pack("kidney").texts, bank.pack("kidney").rows, strict=True):
        assert torch.equal(rows[text], row)
    assert same(bank.encode(WITH_KIDNEY, vocabulary="more"), bank.encode(WITH_KIDNEY, vocabulary="kidney"))
    with pytest.raises(VocabgraftError, match="no vocabulary 'lung'"):
        bank.add("other", ["gastrodyn"], reference="lung")


def test_deleting_the_active_vocabulary_falls_back_to_the_base(bank: VocabularyBank, tiny_base: Path) -> None:
    bank.activate("kidney")
    bank.delete("kidney")
    assert (bank.active, bank.names) == ((), ["liver"])
    assert same(embed(bank.model), embed(load(tiny_base)))
    with pytest.raises(VocabgraftError, match="no vocabulary 'kidney'; there is: liver"):
        bank.activate("kidney")


def test_deleting_another_vocabulary_leaves_the_active_one(bank: VocabularyBank) -> None:
    bank.activate("liver")
    before = embed(bank.model)
    bank.delete("kidney")
    assert bank.active == ("liver",) and same(embed(bank.model), before)


def test_a_deleted_name_is_free_for_another_vocabulary(bank: VocabularyBank) -> None:
    bank.activate(["kidney", "liver"])
    before = bank.encode(WITH_KIDNEY, vocabulary="kidney")
    bank.delete("kidney")
    bank.put(make_pack(bank.model, "kidney", KIDNEY, seed=9, base=bank.base))
    assert not same(bank.encode(WITH_KIDNEY, vocabulary="kidney"), before)


def test_a_saved_vocabulary_loads_into_another_bank_with_the_same_embeddings(
    bank: VocabularyBank, tiny_base: Path, tmp_path: Path
) -> None:
    bank.save("kidney", tmp_path / "pack")
    other = VocabularyBank(load(tiny_base))
    assert other.load(tmp_path / "pack") == "kidney"
    assert other.load(tmp_path / "pack", "again") == "again"
    for name in other.names:
        other.activate(name)
        assert same(embed(other.model), bank.encode(TEXTS, vocabulary="kidney"))


def test_the_base_is_itself_again_bit_for_bit(bank: VocabularyBank, tiny_base: Path) -> None:
    before = dict(bank.model.named_parameters())
    first = bank.model[0]
    for names in ("kidney", ["kidney", "liver"], "liver"):
        bank.activate(names)
        assert not same(embed(bank.model), embed(load(tiny_base)))
    bank.activate(None)
    assert bank.active == () and bank.model[0] is first
    after = dict(bank.model.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
    assert same(embed(bank.model), embed(load(tiny_base)))
    assert len(bank.model.tokenizer) == bank.base.tokens


def test_training_moves_the_rows_of_one_vocabulary_and_nothing_else(
    bank: VocabularyBank, tiny_base: Path, write_dataset: WriteDataset
) -> None:
    pairs = [(f"a {text}", f"the {text} of {word}") for text in ("nephrolith", "thrombopenia") for word in "abcdefgh"]
    dataset = write_dataset("terms", "pairs", ("anchor", "positive"), train=pairs)
    old, liver = embed(bank.model, OLD), bank.encode(WITH_LIVER, vocabulary="liver")
    flags = {name: parameter.requires_grad for name, parameter in bank.model.named_parameters()}
    rows = bank.pack("kidney").rows.clone()
    bank.activate("kidney")
    before = embed(bank.model, WITH_KIDNEY)
    result = bank.train("kidney", [dataset], train_params(epochs=2), seed=1)
    assert result.trainable_parameters == rows.numel()
    after = bank.pack("kidney").rows
    # The relation is in no example.
    assert not torch.equal(after[0], rows[0]) and not torch.equal(after[1], rows[1]) and torch.equal(after[2], rows[2])
    assert bank.active == ("kidney",) and not same(embed(bank.model, WITH_KIDNEY), before)
    assert same(embed(bank.model, OLD), old) and same(bank.encode(WITH_LIVER, vocabulary="liver"), liver)
    bank.activate(None)
    assert {name: parameter.requires_grad for name, parameter in bank.model.named_parameters()} == flags
    untouched = load(tiny_base).state_dict()
    assert all(torch.equal(value, untouched[name]) for name, value in bank.model.state_dict().items())


def test_only_rows_are_trained_in_a_bank(bank: VocabularyBank, lora: PackAdapter) -> None:
    with pytest.raises(VocabgraftError, match="method is lora"):
        bank.train("kidney", [], train_params(method="lora"), seed=1)
    bank.put(replace(bank.pack("kidney"), adapter=lora), "adapted")
    with pytest.raises(VocabgraftError, match="has an adapter"):
        bank.train("adapted", [], train_params(), seed=1)


# What those leave out.


def test_a_view_is_the_resized_model_of_the_pipeline_bit_for_bit(
    bank: VocabularyBank, tiny_base: Path, base_tokenizer: "Tokenizer", tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_base)
    extend_tokenizer(tokenizer, base_tokenizer, KIDNEY, 64)
    write_resized(tiny_base, tokenizer, bank.pack("kidney").rows, PromptParams(), None, tmp_path)
    resized = load(tmp_path)
    assert same(bank.encode(TEXTS, vocabulary="kidney"), embed(resized))
    merged = bank.merge("kidney")
    assert same(embed(merged), embed(resized))
    assert merged.state_dict().keys() == resized.state_dict().keys()
    assert all(torch.equal(value, resized.state_dict()[name]) for name, value in merged.state_dict().items())
    assert merged.tokenizer.backend_tokenizer.to_str() == resized.tokenizer.backend_tokenizer.to_str()


def test_no_view_copies_the_matrix(bank: VocabularyBank) -> None:
    weight = bank.model[0].auto_model.get_input_embeddings().weight
    for names in ("kidney", ("kidney", "liver")):
        embedding = bank.view(names)[0].auto_model.get_input_embeddings()
        assert isinstance(embedding, AppendedRows)
        assert embedding.weight is weight


def test_a_merged_model_is_apart_from_the_bank(bank: VocabularyBank) -> None:
    merged = bank.merge(["kidney", "liver"])
    before = bank.encode(TEXTS, vocabulary="kidney")
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    assert same(bank.encode(TEXTS, vocabulary="kidney"), before)


def test_combined_vocabularies_give_each_what_it_gave_alone(bank: VocabularyBank) -> None:
    for names in (("kidney", "liver"), ("liver", "kidney")):
        assert same(bank.encode(WITH_KIDNEY, vocabulary=names), bank.encode(WITH_KIDNEY, vocabulary="kidney"))
        assert same(bank.encode(WITH_LIVER, vocabulary=names), bank.encode(WITH_LIVER, vocabulary="liver"))
        assert same(bank.encode(OLD, vocabulary=names), bank.encode(OLD, vocabulary=None))
        assert same(embed(bank.merge(list(names))), bank.encode(TEXTS, vocabulary=names))


def test_one_vocabulary_a_text_in_shared_batches(bank: VocabularyBank) -> None:
    choices = [None, "kidney", "liver", ("kidney", "liver"), "kidney"] * 2
    batches: list[int] = []
    first = bank.model[0].auto_model.encoder
    handle = first.register_forward_hook(lambda _, inputs, output: batches.append(len(output[0])))
    mixed = bank.encode(TEXTS, vocabulary=choices, batch_size=64)
    handle.remove()
    assert batches == [len(TEXTS)]
    for text, choice, embedding in zip(TEXTS, choices, mixed, strict=True):
        assert np.abs(embedding - bank.encode([text], vocabulary=choice)[0]).max() < 1e-6
    # The vocabularies are told apart: the last text has a word of each.
    assert len({row.tobytes() for row in bank.encode(TEXTS[-1:] * 4, vocabulary=choices[:4])}) == 4


def test_mixed_texts_follow_prompts_padding_side_and_length(bank: VocabularyBank) -> None:
    bank.model.prompts = {"query": "query: "}
    bank.model.max_seq_length = 5
    texts = ["a nephrolith of the kidney is in the dog", "hepatoma"]
    for side in ("left", "right"):
        bank.model.tokenizer.padding_side = side
        fresh = VocabularyBank(bank.model)
        for name in bank.names:
            fresh.put(bank.pack(name))
        mixed = fresh.encode(texts, vocabulary=["kidney", "liver"], prompt_name="query")
        for text, name, embedding in zip(texts, bank.names, mixed, strict=True):
            alone = embed_query(fresh.view(name), text)
            assert np.abs(embedding - alone).max() < 1e-6
        assert same(embed_query(fresh.view("kidney"), texts[0]), embed_query(fresh.view("kidney"), texts[0][:30]))


def embed_query(model: "SentenceTransformer", text: str) -> Any:
    return model.encode([text], prompt_name="query", show_progress_bar=False)[0]


def test_a_list_of_another_length_than_the_texts_is_refused(bank: VocabularyBank) -> None:
    with pytest.raises(VocabgraftError, match=r"1 vocabularies for 2 texts.*tuple"):
        bank.encode(["a", "b"], vocabulary=["kidney"])
    assert bank.encode([], vocabulary=[]).shape == (0, 32)
    assert bank.encode([], vocabulary="kidney").shape == (0, 32)


def test_an_adapter_acts_as_its_merged_model_and_is_gone_after_a_switch(
    bank: VocabularyBank, lora: PackAdapter, tiny_base: Path
) -> None:
    bank.put(replace(bank.pack("kidney"), adapter=lora), "adapted")
    for _ in range(2):
        bank.activate("adapted")
        adapted = embed(bank.model)
        assert same(adapted, embed(bank.merge("adapted")))
        # An adapter moves texts without a new word too.
        assert np.abs(adapted - embed(load(tiny_base)))[: len(OLD)].max(axis=1).min() > 1e-3
        bank.activate("liver")
        assert same(embed(bank.model), bank.encode(TEXTS, vocabulary="liver"))
        bank.activate(None)
        assert same(embed(bank.model), embed(load(tiny_base)))
    assert all(parameter.requires_grad for parameter in bank.model.parameters())


def test_one_adapter_combines_with_rows_and_two_are_refused(bank: VocabularyBank, lora: PackAdapter) -> None:
    bank.put(replace(bank.pack("kidney"), adapter=lora), "adapted")
    bank.put(replace(bank.pack("liver"), adapter=lora), "also")
    both = bank.encode(TEXTS, vocabulary=("liver", "adapted"))
    assert same(both, embed(bank.merge(["liver", "adapted"])))
    assert same(
        bank.encode(WITH_KIDNEY, vocabulary=("liver", "adapted")), bank.encode(WITH_KIDNEY, vocabulary="adapted")
    )
    bank.activate("kidney")
    with pytest.raises(VocabgraftError, match="adapted and also have an adapter each"):
        bank.activate(["adapted", "also"])
    assert bank.active == ("kidney",) and same(embed(bank.model), bank.encode(TEXTS, vocabulary="kidney"))
    mixed = bank.encode(TEXTS[:3] * 2, vocabulary=["adapted", "also", None, "liver", "kidney", None])
    assert np.abs(mixed[0] - bank.encode(TEXTS[:1], vocabulary="adapted")[0]).max() < 1e-6
    assert np.abs(mixed[5] - bank.encode(TEXTS[2:3], vocabulary=None)[0]).max() < 1e-6


def test_an_adapter_costs_copies_of_the_weights_below_it_and_no_layer_more(
    bank: VocabularyBank, lora: PackAdapter
) -> None:
    bank.put(replace(bank.pack("kidney"), adapter=lora), "adapted")
    base = {name: value.data_ptr() for name, value in bank.model[0].auto_model.named_parameters()}
    view = bank.view("adapted")[0].auto_model
    seen = {name: value.data_ptr() for name, value in view.named_parameters()}
    below = {name.removeprefix("base_model.model.").split(".lora_")[0] + ".weight" for name in lora.weights}
    assert seen.keys() == base.keys() and {name for name in base if seen[name] != base[name]} == below
    assert bank.view("adapted")[0] is bank.view("adapted")[0]


def test_of_many_adapters_those_used_last_alone_hold_copies_of_weights(bank: VocabularyBank, lora: PackAdapter) -> None:
    names = [f"adapted{number}" for number in range(FOLDED_KEPT + 2)]
    held = []
    for number, name in enumerate(names):
        own = {key: value * (1 + number) for key, value in lora.weights.items()}
        bank.put(replace(bank.pack("kidney"), adapter=replace(lora, weights=own)), name)
        held.append(weakref.ref(bank.view(name)[0]))
    gc.collect()
    assert [view() is not None for view in held] == [False] * 2 + [True] * FOLDED_KEPT
    for name in names:
        assert same(bank.encode(TEXTS, vocabulary=name), embed(bank.merge(name)))
    # What is active is kept by the model itself.
    bank.activate(names[0])
    before = embed(bank.model)
    for name in names:
        bank.encode(TEXTS[:1], vocabulary=name)
    assert same(embed(bank.model), before)


@pytest.mark.parametrize("config", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"bias": "all"}])
def test_an_adapter_that_changes_the_weights_below_it_leaves_the_base_alone(
    config: dict[str, str], bank: VocabularyBank, lora: PackAdapter, tiny_base: Path
) -> None:
    weights = dict(lora.weights)
    if "bias" in config:
        below = {name.split(".lora_")[0] for name in weights}
        for name, value in bank.model[0].auto_model.named_parameters():
            layer, _, kind = f"base_model.model.{name}".rpartition(".")
            if kind == "bias":
                weights[f"{layer}.base_layer.bias" if layer in below else f"{layer}.bias"] = torch.ones_like(value)
    changed = PackAdapter({**lora.config, **config}, weights)
    bank.put(replace(bank.pack("kidney"), adapter=changed), "changed")
    bank.activate("changed")
    embed(bank.model)
    bank.activate(None)
    untouched = load(tiny_base).state_dict()
    assert all(torch.equal(value, untouched[name]) for name, value in bank.model.state_dict().items())


def drop_weight(adapter: PackAdapter) -> PackAdapter:
    return replace(adapter, weights=dict(list(adapter.weights.items())[1:]))


def rename_weight(adapter: PackAdapter) -> PackAdapter:
    (name, value), *rest = adapter.weights.items()
    return replace(adapter, weights={name.replace("layer.0", "layer.7"): value, **dict(rest)})


def unknown_kind(adapter: PackAdapter) -> PackAdapter:
    return replace(adapter, config={**adapter.config, "peft_type": "WARP"})


@pytest.mark.parametrize("damage", [drop_weight, rename_weight, unknown_kind])
def test_an_adapter_that_does_not_fit_is_refused_and_not_silently_the_base(
    damage: Callable[[PackAdapter], PackAdapter], bank: VocabularyBank, lora: PackAdapter
) -> None:
    with pytest.raises(VocabgraftError, match="adapter of"):
        bank.put(replace(bank.pack("kidney"), adapter=damage(lora)), "broken")
    assert bank.names == ["kidney", "liver"]


def refused(bank: VocabularyBank, do: Callable[[], object], told: str) -> None:
    """It is refused, and nothing is changed."""
    bank.activate("liver")
    names, before = bank.names, embed(bank.model)
    with pytest.raises(VocabgraftError, match=told):
        do()
    assert (bank.names, bank.active) == (names, ("liver",)) and same(embed(bank.model), before)


def test_bad_input_is_refused_with_nothing_changed(bank: VocabularyBank, tmp_path: Path) -> None:
    kidney = bank.pack("kidney")
    write_bad_packs(kidney, tmp_path)
    again = make_pack(bank.model, "again", KIDNEY, seed=9, base=bank.base)
    bank.put(again)
    for name, told in BAD_PACKS.items():
        refused(bank, lambda name=name: bank.load(tmp_path / name, "x"), re.escape(told))
    refused(bank, lambda: bank.load(tmp_path / "foreign", "x"), "vocabgraft pack transfer")
    refused(
        bank,
        lambda: bank.activate(["kidney", "again"]),
        "(?s)3 tokens conflict.*'nephrolith' of",
    )
    refused(bank, lambda: bank.encode(TEXTS, vocabulary=("kidney", "again")), "conflict")
    refused(bank, lambda: bank.merge(["kidney", "again"]), "conflict")
    refused(bank, lambda: bank.load(tmp_path / "nothing"), "is not a folder")
    refused(bank, lambda: bank.load("models:/x@champion"), "fetch=")
    refused(bank, lambda: bank.save("kidney", "models:/x"), "register_model")
    refused(bank, lambda: bank.save("lung", tmp_path / "lung"), "no vocabulary 'lung'")
    refused(bank, lambda: bank.put(kidney), "'kidney' is taken")
    refused(bank, lambda: bank.add("kidney", ["gastrodyn"]), "'kidney' is taken")
    refused(bank, lambda: bank.add("@active", ["gastrodyn"]), "cannot name")
    refused(bank, lambda: bank.add("x", ["dog"]), "one token in the base already")
    refused(bank, lambda: bank.add("x", ["gastrodyn"], initialisation="magic"), "no initialisation 'magic'")
    refused(bank, lambda: bank.activate(["kidney", "lung"]), "no vocabulary 'lung'")
    refused(bank, lambda: bank.delete("lung"), "no vocabulary 'lung'")
    refused(bank, lambda: bank.combine([]), "at least one")


def test_a_registry_is_asked_where_the_bank_was_given_one(bank: VocabularyBank, tmp_path: Path) -> None:
    bank.save("kidney", tmp_path / "pack")
    asked = []
    other = VocabularyBank(bank.view(None), fetch=lambda uri: asked.append(uri) or tmp_path / "pack")
    assert other.load("models:/x@champion") == "kidney"
    assert asked == ["models:/x@champion"]


def test_a_model_with_an_active_vocabulary_does_not_lose_it_in_saving(bank: VocabularyBank, tmp_path: Path) -> None:
    bank.activate("kidney")
    with pytest.raises(VocabgraftError, match=r"bank\.merge"):
        bank.model.save(str(tmp_path / "x"))


def test_a_model_that_takes_no_vocabulary_is_refused_at_once(model: "SentenceTransformer") -> None:
    model[0].auto_model.get_input_embeddings().max_norm = 1.0
    with pytest.raises(VocabgraftError, match="max_norm"):
        VocabularyBank(model)


def test_a_wrapped_model_is_refused_since_a_copy_would_run_the_original(model: "SentenceTransformer") -> None:
    inner = model[0].auto_model
    inner.forward = inner.forward
    with pytest.raises(VocabgraftError, match="was replaced"):
        VocabularyBank(model)


def test_a_base_in_another_precision_takes_packs_when_told_what_it_is(bank: VocabularyBank, tiny_base: Path) -> None:
    half = load(tiny_base).bfloat16()
    with pytest.raises(VocabgraftError, match=r"in bfloat16\), another model"):
        VocabularyBank(half).put(bank.pack("kidney"))
    told = VocabularyBank(half, base=bank.base)
    told.put(bank.pack("kidney"))
    assert same(told.encode(WITH_KIDNEY, vocabulary="kidney"), embed(told.merge("kidney"), WITH_KIDNEY))


def test_distilled_rows_are_nearer_to_the_base_than_those_they_start_from(model: "SentenceTransformer") -> None:
    texts = [f"{word} the nephrolith of {word}" for word in ("dog", "cat", "blood", "liver", "fish", "wood")]
    bank = VocabularyBank(model)
    settings = DistillationParams(epochs=4, batch_size=4, held_out=0.0)
    bank.add("start", ["nephrolith"])
    bank.add("distilled", ["nephrolith"], initialisation="distillation", texts=texts, distillation=settings)
    base = embed(model, texts)

    def fidelity(name: str) -> float:
        return float((bank.encode(texts, vocabulary=name) * base).sum(axis=1).mean())

    assert fidelity("distilled") > fidelity("start")
    assert bank.pack("distilled").contexts == tuple(texts[:4])
    assert all(parameter.requires_grad for parameter in model.parameters())


CHOICES: tuple[Any, ...] = (None, "kidney", "liver", ("kidney", "liver"), ("liver", "kidney"), "adapted")


@pytest.fixture(scope="module")
def shared(tiny_base: Path, lora: PackAdapter) -> tuple[VocabularyBank, dict[Any, Any]]:
    """A bank with what each of its choices gives, from models of their own."""
    model = load(tiny_base)
    bank = VocabularyBank(model)
    bank.put(make_pack(model, "kidney", KIDNEY, seed=1))
    bank.put(make_pack(model, "liver", LIVER, seed=2))
    bank.put(make_pack(model, "adapted", KIDNEY, seed=3, adapter=lora))
    return bank, {choice: embed(bank.merge(choice)) for choice in CHOICES}


def agrees(choice: Any, seen: Any, expected: dict[Any, Any]) -> bool:
    return same(seen, expected[choice])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["activate", "encode", "mixed", "add and delete"]), st.sampled_from(CHOICES)),
        min_size=1,
        max_size=6,
    )
)
def test_switching_in_any_order_leaves_no_trace(
    steps: list[tuple[str, Any]], shared: tuple[VocabularyBank, dict[Any, Any]]
) -> None:
    bank, expected = shared
    bank.activate(None)
    active: Any = None
    for verb, choice in steps:
        if verb == "activate":
            bank.activate(choice)
            active = choice
        elif verb == "encode":
            assert agrees(choice, bank.encode(TEXTS, vocabulary=choice), expected)
        elif verb == "mixed":
            bank.encode(TEXTS[:2], vocabulary=[choice, "liver"])
        else:
            bank.add("passing", ["gastrodyn"])
            bank.activate("passing")
            bank.delete("passing")
            active = None
        assert agrees(active, embed(bank.model), expected)


@pytest.mark.slow
def test_many_threads_with_different_vocabularies_get_their_own_answers_for_long(
    shared: tuple[VocabularyBank, dict[Any, Any]],
) -> None:
    hammer(*shared, rounds=60)


def test_threads_with_different_vocabularies_get_their_own_answers(
    shared: tuple[VocabularyBank, dict[Any, Any]],
) -> None:
    hammer(*shared, rounds=6)


def hammer(bank: VocabularyBank, expected: dict[Any, Any], rounds: int) -> None:
    """Threads encode with each choice, while one switches the active vocabulary and one adds and deletes."""
    bank.activate(None)
    stop = threading.Event()

    def encode(choice: Any) -> bool:
        return all(agrees(choice, bank.encode(TEXTS, vocabulary=choice), expected) for _ in range(rounds))

    def active() -> bool:
        return all(
            any(agrees(choice, seen, expected) for choice in CHOICES)
            for seen in (bank.encode(TEXTS) for _ in range(rounds))
        )

    def disturb() -> None:
        number = 0
        while not stop.is_set():
            bank.activate(CHOICES[number % len(CHOICES)])
            bank.put(replace(bank.pack("kidney"), rows=bank.pack("kidney").rows + 1), f"passing{number}")
            bank.delete(f"passing{number}")
            number += 1

    with ThreadPoolExecutor(len(CHOICES) + 2) as pool:
        disturbing = pool.submit(disturb)
        results = [pool.submit(encode, choice) for choice in CHOICES] + [pool.submit(active)]
        try:
            assert all(result.result() for result in results)
        finally:
            stop.set()
        disturbing.result()
    bank.activate(None)


def test_rows_beyond_the_tokenizer_of_a_padded_base_are_not_mistaken_for_the_packs(
    tiny_base: Path, tmp_path: Path
) -> None:
    write_resized(
        tiny_base,
        load_tokenizer(tiny_base),
        torch.zeros(0, 32),
        PromptParams(),
        pad_to_multiple_of=64,
        destination=tmp_path,
    )
    padded = load(tmp_path)
    assert padded[0].auto_model.get_input_embeddings().num_embeddings > len(padded.tokenizer)
    bank = VocabularyBank(padded)
    bank.put(make_pack(padded, "kidney", KIDNEY))
    rows = random_rows(padded, KIDNEY, 0)
    assert torch.equal(bank.pack("kidney").rows, rows)
    assert same(bank.encode(TEXTS, vocabulary="kidney"), embed(bank.merge("kidney")))


def test_the_tokens_of_a_pack_need_not_be_in_the_order_of_ids(bank: VocabularyBank) -> None:
    kidney = bank.pack("kidney")
    turned = replace(kidney, tokens=kidney.tokens[::-1], rows=kidney.rows.flip(0))
    bank.put(turned, "turned")
    assert same(bank.encode(TEXTS, vocabulary="turned"), bank.encode(TEXTS, vocabulary="kidney"))
