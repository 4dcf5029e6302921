"""The resized base, as a folder and in memory."""

from pathlib import Path

import pytest
import torch

from tests.vocabgraft.conftest import Graft, load, mean_rows, rows_of
from vocabgraft.config.stages import PromptParams
from vocabgraft.models.base import prompts_of
from vocabgraft.models.resize import extended_copy, write_resized
from vocabgraft.storage.artifacts import read_json, write_json
from vocabgraft.tokens.tokenizer import load_tokenizer


def resized(graft: Graft, folder: Path, prompts: PromptParams | None = None, multiple: int | None = None) -> Path:
    """The graft's base with mean rows, in a folder."""
    folder.mkdir()
    rows = mean_rows(graft.base, graft.tokens)
    write_resized(graft.base, load_tokenizer(graft.tokenizer), rows, prompts or PromptParams(), multiple, folder)
    return folder


def test_old_rows_are_not_touched_and_new_rows_are_those_given(graft: Graft) -> None:
    old, new = rows_of(load(graft.base)), rows_of(load(graft.resized))
    assert torch.equal(new[: len(old)], old)
    assert torch.equal(new[graft.new_ids], mean_rows(graft.base, graft.tokens))
    assert len(new) == len(old) + len(graft.tokens)


def test_no_other_weight_is_touched(graft: Graft) -> None:
    base, changed_model = load(graft.base).state_dict(), load(graft.resized).state_dict()
    assert base.keys() == changed_model.keys()
    changed = [name for name in base if not torch.equal(base[name], changed_model[name])]
    assert [name.split(".")[-2] for name in changed] == ["word_embeddings"]


def test_the_saved_folder_needs_nothing_else_and_reads_new_tokens(graft: Graft) -> None:
    model = load(graft.resized)
    assert model.tokenizer(["nephrolith"], add_special_tokens=False)["input_ids"] == [[graft.tokens[0].id]]
    assert model[0].auto_model.config.vocab_size == len(model.tokenizer) == len(rows_of(model))
    assert model.max_seq_length == load(graft.base).max_seq_length


@pytest.mark.parametrize("multiple", [8, 64])
def test_padding_makes_the_matrix_a_multiple_and_its_rows_belong_to_no_token(
    graft: Graft, tmp_path: Path, multiple: int
) -> None:
    model = load(resized(graft, tmp_path / "padded", multiple=multiple))
    rows, tokens = rows_of(model), len(model.tokenizer)
    assert len(rows) % multiple == 0 and 0 < len(rows) - tokens < multiple
    assert not rows[tokens:].any()
    texts = ["the nephrolith of a dog", "a cat"]
    assert (model.encode(texts) == load(graft.resized).encode(texts)).all()


def test_a_copy_in_memory_is_the_folder_and_shares_every_other_weight_with_the_base(graft: Graft) -> None:
    base = load(graft.base)
    before = base.encode(["a nephrolith", "a dog"])
    copied = extended_copy(base, load_tokenizer(graft.tokenizer), mean_rows(graft.base, graft.tokens))
    texts = ["the nephrolith <|IsA|> a stone -> dog", "a cat"]
    assert (copied.encode(texts) == load(graft.resized).encode(texts)).all()
    assert (base.encode(["a nephrolith", "a dog"]) == before).all()
    own = {id(parameter) for parameter in base.parameters()}
    assert [name for name, parameter in copied.named_parameters() if id(parameter) not in own] == [
        name for name, _ in copied.named_parameters() if "word_embeddings" in name
    ]


@pytest.mark.parametrize("padding", [2, 4, 9])
def test_a_copy_reuses_rows_of_padding_and_leaves_those_of_the_base(graft: Graft, padding: int) -> None:
    model = load(graft.base)
    tokens = len(model.tokenizer)
    model[0].auto_model.resize_token_embeddings(tokens + padding, mean_resizing=False)
    before = rows_of(model).clone()
    rows = mean_rows(graft.base, graft.tokens)
    after = rows_of(extended_copy(model, load_tokenizer(graft.tokenizer), rows))
    assert len(after) == max(tokens + padding, tokens + len(graft.tokens))
    assert torch.equal(after[:tokens], before[:tokens])
    assert torch.equal(after[graft.new_ids], rows)
    assert torch.equal(after[tokens + len(rows) :], before[tokens + len(rows) :])
    assert torch.equal(rows_of(model), before)


def test_a_long_text_is_still_cut_to_what_the_model_takes(graft: Graft) -> None:
    model = load(graft.base)
    model.max_seq_length = 20
    copied = extended_copy(model, load_tokenizer(graft.tokenizer), mean_rows(graft.base, graft.tokens))
    assert copied.max_seq_length == 20
    assert copied.encode("dog " * 200).shape == (32,)
    assert copied.preprocess(["dog " * 200])["input_ids"].shape == (1, 20)


def test_prompts_of_the_base_stay_unless_others_are_given() -> None:
    stored = {"query": "q: ", "document": "d: ", "clustering": "c: "}
    assert prompts_of(stored, PromptParams()) == stored
    assert prompts_of(stored, PromptParams(query="find: ", document="")) == {
        "query": "find: ",
        "document": "",
        "clustering": "c: ",
    }


def test_prompts_are_saved_with_the_model(graft: Graft, tmp_path: Path) -> None:
    folder = resized(graft, tmp_path / "saved", PromptParams(query="query: "))
    assert load(folder).prompts["query"] == "query: "


def test_a_base_that_states_no_prompts_gets_them(graft: Graft, tmp_path: Path) -> None:
    import shutil
    from dataclasses import replace

    base = shutil.copytree(graft.base, tmp_path / "base")
    settings = read_json(base / "config_sentence_transformers.json")
    write_json(base / "config_sentence_transformers.json", {"__version__": settings["__version__"]})
    folder = resized(replace(graft, base=base), tmp_path / "saved", PromptParams(document="passage: "))
    assert load(folder).prompts == {"query": "", "document": "passage: "}
