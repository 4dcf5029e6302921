"""What a load reads is what is hashed; incomplete files and pickles are refused by name before anything is read."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vocabgraft as vg
from tasks.support.models import find_base, resolve_base
from tests.conftest import build_tiny_project
from tests.tasks.test_growth import run
from tests.vocabgraft.conftest import load
from vocabgraft.config.stages import BaseParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.model_files import check_files, read_file_hashes, weight_files
from vocabgraft.models.base import identify_base, locate_base
from vocabgraft.storage.artifacts import file_sha256, read_json, write_json

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90868376\n"
Change = Callable[[Path], None]


class Planted:
    """Leaves a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


@pytest.fixture(scope="module")
def dense_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a Dense after its pooling."""
    from sentence_transformers.sentence_transformer.modules import Dense

    folder = tmp_path_factory.mktemp("dense") / "base"
    model = load(tiny_base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.append(Dense(32, 8))
    model.save(str(folder), create_model_card=False)
    return folder


@pytest.fixture
def base(dense_base: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(dense_base, tmp_path / "base"))


def put(file: str, key: str, value: Any) -> Change:
    def change(folder: Path) -> None:
        write_json(folder / file, {**read_json(folder / file), key: value})

    return change


def without_normalize(folder: Path) -> None:
    modules = [entry for entry in read_json(folder / "modules.json") if "Normalize" not in entry["type"]]
    write_json(folder / "modules.json", modules)


def other_dense(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "3_Dense" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)


# What changes embeddings, and left the identity as it was when it was the weights' and tokenizer.json's alone.
UNSEEN: dict[str, tuple[str, Change]] = {
    "pooling": ("1_Pooling/config.json", put("1_Pooling/config.json", "pooling_mode", "cls")),
    "normalize": ("modules.json", without_normalize),
    "dense": ("3_Dense/model.safetensors", other_dense),
    "activation": (
        "3_Dense/config.json",
        put("3_Dense/config.json", "activation_function", "torch.nn.modules.linear.Identity"),
    ),
    "layers": ("config.json", put("config.json", "hidden_act", "relu")),
    "prompts": (
        "config_sentence_transformers.json",
        put("config_sentence_transformers.json", "prompts", {"document": "liver "}),
    ),
    "length": ("tokenizer_config.json", put("tokenizer_config.json", "model_max_length", 4)),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_a_change_of_any_file_that_a_load_reads_is_seen_and_named(base: Path, tmp_path: Path, name: str) -> None:
    file, change = UNSEEN[name]
    texts = ["the dog of the doctor is a patient with a stone in the kidney"]
    before, identity = load(base).encode_document(texts), resolve_base(BaseParams(model=str(base)))[1]
    write_json(tmp_path / "base.json", identity.as_json())
    write_json(tmp_path / "manifest.json", {})
    assert find_base(tmp_path / "base.json") == base
    change(base)
    assert not np.allclose(load(base).encode_document(texts), before, atol=1e-3)
    with pytest.raises(VocabgraftError, match=rf"changed since validate_data.*{file}"):
        find_base(tmp_path / "base.json")


def test_files_that_no_load_reads_do_not_count(base: Path) -> None:
    before = read_file_hashes(base)
    (base / "README.md").write_text("a card", encoding="utf-8")
    (base / "onnx").mkdir()
    (base / "onnx" / "config.json").write_text("{}", encoding="utf-8")
    write_json(base / "manifest.json", {})
    assert read_file_hashes(base) == before


@pytest.mark.parametrize("beside", ["", "decoy.safetensors"])
def test_pickled_weights_are_refused_beside_any_other_file(base: Path, tmp_path: Path, beside: str) -> None:
    trace = tmp_path / "ran"
    if beside:
        (base / "model.safetensors").rename(base / beside)
    else:
        (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(trace)))
    for read in (load, lambda folder: locate_base(str(folder)), weight_files):
        with pytest.raises(VocabgraftError, match=r"pytorch_model\.bin is a pickle.*safe_serialization"):
            read(base)
    assert not trace.exists()


def test_the_weights_of_the_identity_are_those_that_are_loaded(base: Path) -> None:
    shutil.copy(base / "3_Dense" / "model.safetensors", base / "a_decoy.safetensors")
    identity = identify_base(base, BaseParams(model="m"), "m")
    assert identity.sha256 == file_sha256(base / "model.safetensors")


@pytest.mark.parametrize("module", ["3_Dense", "3_Dense/inner"])
def test_a_pickled_module_is_refused_and_not_read(base: Path, tmp_path: Path, module: str) -> None:
    trace = tmp_path / "ran"
    (base / module).mkdir(exist_ok=True)
    (base / module / "model.safetensors").unlink(missing_ok=True)
    (base / module / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(trace)))
    for read in (load, check_files, lambda folder: vg.extend(folder, ["nephrolith"])):
        with pytest.raises(VocabgraftError, match=rf"{module}/pytorch_model\.bin is a pickle"):
            read(base)
    assert not trace.exists()


def test_a_pickle_beside_safetensors_of_the_same_weights_is_passed_over(base: Path, tmp_path: Path) -> None:
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    load(base)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "3_Dense/model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("fault", ["pointer", "truncated"])
def test_a_git_lfs_pointer_and_a_truncated_file_are_refused_by_name(
    base: Path, in_folder: Path, capsys: pytest.CaptureFixture[str], file: str, fault: str
) -> None:
    content = (base / file).read_bytes()
    (base / file).write_bytes(POINTER if fault == "pointer" else content[: len(content) // 2])
    told = rf"{file} is {'a Git LFS pointer' if fault == 'pointer' else 'damaged or incomplete'}"
    with pytest.raises(VocabgraftError, match=told):
        load(base)
    build_tiny_project(in_folder, base)
    assert run("validate_data") == 1
    errors = capsys.readouterr().err
    assert file in errors and "Traceback" not in errors
