"""A masked language model as the base: its file has no pooler, so each load draws one, and no save may hold it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import vocabgraft as vg
from tests.conftest import build_tiny_project, build_wordpiece, tiny_bert
from tests.tasks.test_growth import run
from tests.vocabgraft.api.test_check import LIMITS, names
from tests.vocabgraft.conftest import load
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.absent_weights import absent_weights
from vocabgraft.models.saving import save_model

pytestmark = pytest.mark.usefixtures("isolated_forks")

POOLER = {"0.model.pooler.dense.weight", "0.model.pooler.dense.bias"}
NEEDED = "bert.encoder.layer.1.output.dense.weight"


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers alone, as masked language models are published."""
    from transformers import BertForMaskedLM, BertTokenizerFast

    folder = tmp_path_factory.mktemp("masked") / "base"
    tokenizer = BertTokenizerFast(tokenizer_object=build_wordpiece(), model_max_length=64)
    config = tiny_bert(len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def damaged(masked: Path, tmp_path: Path) -> Path:
    """The same without one weight of a layer."""
    folder = Path(shutil.copytree(masked, tmp_path / "damaged"))
    weights = load_file(folder / "model.safetensors")
    del weights[NEEDED]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_what_each_load_draws_is_in_no_save(masked: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    first, second = load(masked), load(masked)
    name = "0.model.pooler.dense.weight"
    assert not torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert absent_weights(first) == POOLER
    for model, folder in ((first, tmp_path / "first"), (second, tmp_path / "second")):
        folder.mkdir()
        save_model(model, folder)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")]
    assert files[0] == files[1]
    assert not any("pooler" in name for name in load_file(tmp_path / "first" / "model.safetensors"))
    np.testing.assert_array_equal(load(tmp_path / "first").encode(["a dog"]), first.encode(["a dog"]))


def test_a_pooler_that_the_file_holds_is_kept(tiny_base: Path, tmp_path: Path) -> None:
    model = load(tiny_base)
    assert absent_weights(model) == set()
    save_model(model, tmp_path)
    assert any("pooler" in name for name in load_file(tmp_path / "model.safetensors"))


def test_a_drawn_pooler_is_no_changed_weight_and_a_changed_layer_is(masked: Path) -> None:
    model = vg.extend(masked, ["nephrolith"], initialization="subword_mean")
    report = vg.check(model, base=masked, params=LIMITS)
    assert names(report.failed) == set(), report
    with torch.no_grad():
        model[0].auto_model.encoder.layer[1].output.dense.weight[0, 0] += 1
    assert "other_weights" in names(vg.check(model, base=masked, params=LIMITS).failed)


def test_a_file_without_a_weight_that_embeddings_need_is_refused_by_name(damaged: Path) -> None:
    with pytest.raises(VocabgraftError, match=r"encoder\.layer\.1\.output\.dense\.weight.*depend"):
        load(damaged)


def test_validate_data_refuses_it(in_folder: Path, damaged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_tiny_project(in_folder, damaged)
    assert run("validate_data") == 1
    assert "encoder.layer.1.output.dense.weight" in capsys.readouterr().err


def test_the_stages_give_the_same_merged_folder_twice(in_folder: Path, masked: Path) -> None:
    stages = ("validate_data", "extend_tokenizer", "resize_base", "train_adapter", "merge_adapter")
    build_tiny_project(in_folder, masked)
    found = []
    for seed in (1, 2):
        # What is drawn in a load must not depend on what this process drew before.
        torch.manual_seed(seed)
        assert run(*stages) == 0
        found.append(Path("data/merge_adapter/model.safetensors").read_bytes())
        shutil.rmtree("data/train_adapter")
        shutil.rmtree("data/merge_adapter")
        stages = ("train_adapter", "merge_adapter")
    assert found[0] == found[1]
