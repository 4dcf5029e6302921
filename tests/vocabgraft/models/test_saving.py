"""Saved folders: complete, the same for equal models, and without a trace of this machine."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.vocabgraft.conftest import METHODS, Graft, load
from vocabgraft.config.training import Method
from vocabgraft.models.saving import save_model
from vocabgraft.storage.artifacts import hash_files, read_json, write_json


def texts_of(folder: Path) -> str:
    """All JSON of a folder in one text."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.json")))


def test_a_model_saved_again_gives_the_same_bytes(graft: Graft, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    save_model(load(graft.resized), tmp_path / "a")
    save_model(load(tmp_path / "a"), tmp_path / "b")
    assert hash_files(tmp_path / "a") == hash_files(tmp_path / "b")


@pytest.mark.parametrize("method", METHODS)
def test_no_path_of_this_machine_is_saved(graft: Graft, method: Method) -> None:
    for folder in (graft.resized, graft.adapters[method], graft.merged[method]):
        saved = texts_of(folder)
        assert str(graft.root) not in saved
        assert str(graft.base) not in saved
        assert not {"is_local", "local_files_only", "name_or_path"} & read_json(folder / "tokenizer_config.json").keys()


def test_only_safetensors_are_saved_and_no_readme(graft: Graft) -> None:
    names = {path.name for path in graft.resized.rglob("*") if path.is_file()}
    assert "model.safetensors" in names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".md"))]


@pytest.mark.parametrize("method", [method for method in METHODS if method != "full"])
def test_an_adapter_is_saved_alone_and_names_its_base(graft: Graft, method: Method) -> None:
    folder = graft.adapters[method]
    assert (folder / "adapter_model.safetensors").is_file()
    assert not (folder / "model.safetensors").exists()
    assert read_json(folder / "adapter_config.json")["base_model_name_or_path"] == "data/resize_base"


def test_names_of_modules_are_in_order_whatever_the_hash_seed(graft: Graft, tmp_path: Path) -> None:
    # PEFT writes them in the order of a set, which would give another digest in every process.
    class Shuffled:
        def save(self, folder: str, **_: object) -> None:
            write_json(Path(folder) / "tokenizer_config.json", {})
            names = {"target_modules": ["value", "dense", "query"], "token_indices": [3, 1], "layers": None}
            (Path(folder) / "adapter_config.json").write_text(json.dumps(names), encoding="utf-8")
            save_file({"row": torch.zeros(1)}, Path(folder) / "adapter_model.safetensors")

    save_model(Shuffled(), tmp_path, adapter_base="base")  # type: ignore[arg-type]
    saved = read_json(tmp_path / "adapter_config.json")
    assert saved["target_modules"] == ["dense", "query", "value"]
    assert (saved["token_indices"], saved["layers"]) == ([3, 1], None)


def test_a_merged_folder_loads_without_its_base_and_without_peft(graft: Graft, tmp_path: Path) -> None:
    folder = graft.merged["lora_and_tokens"]
    assert not list(folder.glob("adapter*"))
    model = load(folder)
    assert not [name for name in model.state_dict() if "lora" in name or "trainable_tokens" in name]
    assert np.isfinite(model.encode(["a nephrolith"])).all()
