"""Texts without a trained token are embedded once while rows are trained."""

import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.vocabgraft.conftest import Graft, load
from vocabgraft.training.embedding_cache import ConstantTable, constant_texts

TEXTS = [
    "a dog",
    "the nephrolith of the dog is in the kidney",
    "the dog and the cat",
    "a nephrolith",
    "a dog",
    "thrombopenia <|IsA|> blood",
]


def embed(graft: Graft, model: object, texts: list[str]) -> torch.Tensor:
    """Embeddings as a loss gets them."""
    features = model.preprocess(texts)  # type: ignore[attr-defined]
    embedded: torch.Tensor = model(features)["sentence_embedding"]  # type: ignore[operator]
    return embedded


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], TEXTS[1:2], TEXTS * 20])
def test_embeddings_are_those_of_the_model_in_order(graft: Graft, texts: list[str]) -> None:
    model = load(graft.resized)
    expected = embed(graft, model, texts)
    with constant_texts(model, graft.new_ids):
        torch.testing.assert_close(embed(graft, model, texts), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(embed(graft, model, texts), expected, atol=1e-6, rtol=0)


def test_gradients_of_the_rows_are_those_of_the_plain_model(graft: Graft) -> None:
    gradients = []
    for constant in (False, True):
        model = load(graft.resized)
        weight = model[0].auto_model.get_input_embeddings().weight
        generator = torch.Generator().manual_seed(0)
        target = torch.randn(len(TEXTS), 32, generator=generator)
        if constant:
            with constant_texts(model, graft.new_ids):
                (embed(graft, model, TEXTS) * target).sum().backward()
        else:
            (embed(graft, model, TEXTS) * target).sum().backward()
        gradients.append(weight.grad[graft.new_ids])
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_a_text_without_a_trained_token_is_computed_once_and_one_with_it_every_time(
    graft: Graft, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(graft.resized)
    seen: list[int] = []
    model[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0]["input_ids"])))
    with constant_texts(model, graft.new_ids):
        embed(graft, model, TEXTS)
        assert sum(seen) == 3 + 2
        seen.clear()
        embed(graft, model, TEXTS)
        assert sum(seen) == 3
    seen.clear()
    embed(graft, model, TEXTS)
    assert sum(seen) == len(TEXTS)


def test_constants_are_made_without_dropout_and_the_mode_is_put_back(graft: Graft) -> None:
    model = load(graft.resized).train()
    with constant_texts(model, graft.new_ids):
        first, again = embed(graft, model, TEXTS), embed(graft, model, TEXTS)
    assert model.training
    assert torch.equal(first[[0, 2, 4]], again[[0, 2, 4]])
    assert not torch.equal(first[[1, 3, 5]], again[[1, 3, 5]])


def test_a_prompt_makes_another_text(graft: Graft) -> None:
    model = load(graft.resized)
    with constant_texts(model, graft.new_ids):
        plain = embed(graft, model, ["a dog"])
        prompted = model(model.preprocess(["a dog"], prompt="query "))["sentence_embedding"]
    assert not torch.allclose(plain, prompted)


def test_the_models_own_forward_is_back_after_an_error(graft: Graft) -> None:
    model = load(graft.resized)
    with pytest.raises(RuntimeError, match="stop"), constant_texts(model, graft.new_ids):
        raise RuntimeError("stop")
    assert "forward" not in vars(model)


def test_a_batch_without_a_trained_token_can_be_differentiated_and_moves_nothing(graft: Graft) -> None:
    model = load(graft.resized)
    weight = model[0].auto_model.get_input_embeddings().weight
    with constant_texts(model, graft.new_ids):
        embed(graft, model, ["a dog", "the cat"]).sum().backward()
        assert weight.grad is None or not weight.grad.any()
        with torch.no_grad():
            assert not embed(graft, model, ["a dog"]).requires_grad


def test_a_full_table_takes_no_more_and_the_embeddings_are_right(graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(graft.resized)
    expected = embed(graft, model, TEXTS)
    seen: list[int] = []
    model[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0]["input_ids"])))
    table = ConstantTable(most_bytes=4 * 32)
    with constant_texts(model, graft.new_ids, table):
        for _ in range(3):
            torch.testing.assert_close(embed(graft, model, TEXTS), expected, atol=1e-6, rtol=0)
    assert len(table) == 1
    # Three texts hold a new token, and of the two that do not one finds no room.
    assert sum(seen) == 3 * 3 + 2 + 1 + 1


@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=8), st.integers(0, 20), st.integers(1, 4))
def test_a_table_gives_back_what_came_first(added: list[list[int]], room: int, width: int) -> None:
    table, expected = ConstantTable(most_bytes=4 * width * room), dict[bytes, list[float]]()
    for number, names in enumerate(added):
        keys = [bytes([name]) for name in names]
        rows = torch.arange(len(keys) * width, dtype=torch.float32).reshape(len(keys), width) + 1000 * number
        table.add(keys, rows)
        for key, row in zip(reversed(keys), reversed(rows.tolist()), strict=True):
            # Of a key that comes twice in one call, either row would do; the last is taken.
            if key not in expected:
                expected[key] = row
    kept = table.keys_from(0)
    assert kept == list(dict.fromkeys(bytes([name]) for names in added for name in names))[:room]
    assert len(table) == len(kept)
    assert table.take(kept).tolist() == [expected[key] for key in kept]
    assert table.keys_from(2) == kept[2:]
    assert all(key in table for key in kept)


def test_a_table_holds_bfloat16_as_it_is_and_little_in_memory() -> None:
    table = ConstantTable()
    rows = torch.randn(2, 8, dtype=torch.bfloat16)
    table.add([b"a", b"b"], rows)
    assert torch.equal(table.take([b"b", b"a"]), rows[[1, 0]].float())
    tracemalloc.start()
    try:
        for start in range(0, 20_000, 1_000):
            keys = [number.to_bytes(16, "big") for number in range(start, start + 1_000)]
            table.add(keys, torch.zeros(1_000, 8))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200 * 20_000
