"""The resized base."""

from pathlib import Path

import pytest
import torch

from tests.vocabgraft.conftest import Graft, load, rows_of
from vocabgraft.initialisation import subword_mean
from vocabgraft.params import PromptParams
from vocabgraft.resizing import prompts_of, resize_model
from vocabgraft.tokenizer import load_tokenizer


def test_old_rows_are_not_touched_and_new_rows_start_at_their_mean(graft: Graft) -> None:
    old, new = rows_of(load(graft.base)), rows_of(load(graft.resized))
    assert torch.equal(new[: len(old)], old)
    assert torch.equal(new[graft.new_ids], subword_mean(old, graft.tokens, load_tokenizer(graft.base).unk_token_id))
    assert len(new) == len(old) + len(graft.tokens)


def test_no_other_weight_is_touched(graft: Graft) -> None:
    base, resized = load(graft.base).state_dict(), load(graft.resized).state_dict()
    assert base.keys() == resized.keys()
    changed = [name for name in base if not torch.equal(base[name], resized[name])]
    assert [name.split(".")[-2] for name in changed] == ["word_embeddings"]


def test_the_saved_folder_needs_nothing_else_and_reads_new_tokens(graft: Graft) -> None:
    model = load(graft.resized)
    assert model.tokenizer(["nephrolith"], add_special_tokens=False)["input_ids"] == [[graft.tokens[0].id]]
    assert model[0].auto_model.config.vocab_size == len(model.tokenizer) == len(rows_of(model))
    assert model.max_seq_length == load(graft.base).max_seq_length


@pytest.mark.parametrize("padding", [2, 4, 9])
def test_rows_of_padding_are_reused_and_kept(graft: Graft, tmp_path: Path, padding: int) -> None:
    model = load(graft.base)
    tokens = len(model.tokenizer)
    model[0].auto_model.resize_token_embeddings(tokens + padding, mean_resizing=False)
    before = rows_of(model).clone()
    resize_model(model, load_tokenizer(graft.tokenizer), graft.tokens, PromptParams())
    after = rows_of(model)
    assert len(after) == max(tokens + padding, tokens + len(graft.tokens))
    assert torch.equal(after[:tokens], before[:tokens])
    assert torch.equal(after[graft.new_ids], rows_of(load(graft.resized))[graft.new_ids])
    beyond = tokens + len(graft.tokens)
    assert torch.equal(after[beyond:], before[beyond:])


def test_a_long_text_is_still_cut_to_what_the_model_takes(graft: Graft) -> None:
    model = load(graft.base)
    model.max_seq_length = 20
    resize_model(model, load_tokenizer(graft.tokenizer), graft.tokens, PromptParams())
    assert model.max_seq_length == 20
    assert model.encode("dog " * 200).shape == (32,)
    assert model.preprocess(["dog " * 200])["input_ids"].shape == (1, 20)


def test_prompts_of_the_base_stay_unless_others_are_given(graft: Graft) -> None:
    model = load(graft.base)
    model.prompts = {"query": "q: ", "document": "d: ", "clustering": "c: "}
    assert prompts_of(model, PromptParams()) == model.prompts
    assert prompts_of(model, PromptParams(query="find: ", document="")) == {
        "query": "find: ",
        "document": "",
        "clustering": "c: ",
    }


def test_prompts_are_saved_with_the_model(graft: Graft, tmp_path: Path) -> None:
    model = load(graft.base)
    resize_model(model, load_tokenizer(graft.tokenizer), graft.tokens, PromptParams(query="query: "))
    model.save(str(tmp_path / "saved"))
    assert load(tmp_path / "saved").prompts["query"] == "query: "
