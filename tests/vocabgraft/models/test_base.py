"""Finding and identifying the base, with nothing fetched and nothing executed."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.vocabgraft.conftest import Graft
from vocabgraft.config.stages import BaseParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.model_files import read_file_hashes
from vocabgraft.models.base import identify_base, load_model, locate_base, tokenizer_file
from vocabgraft.storage.artifacts import digest_of, file_sha256, write_json


def weights(folder: Path, *names: str) -> Path:
    """A folder with files of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())
    return folder


def test_a_folder_is_found_by_its_path(tiny_base: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate_base(str(tiny_base)) == tiny_base
    weights(in_folder / "models" / "mine", "model.safetensors")
    assert locate_base("models/mine") == Path("models/mine")
    assert locate_base("./models/mine") == Path("models/mine")
    monkeypatch.setenv("HOME", str(in_folder))
    assert locate_base("~/models/mine") == in_folder / "models" / "mine"


def test_a_package_gives_a_folder_and_is_not_executed(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights(in_folder / "planted_package" / "model", "model.safetensors")
    (in_folder / "planted_package" / "__init__.py").write_text("raise SystemExit('executed')", encoding="utf-8")
    monkeypatch.syspath_prepend(in_folder)
    found = locate_base("package:planted_package/model")
    assert found.resolve() == (in_folder / "planted_package" / "model").resolve()
    assert "planted_package" not in sys.modules


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("package:no_such_package/model", "no package 'no_such_package' is installed"),
        ("package:../model", "no package '..' is installed"),
        ("package:json/no_such_folder", "that folder is not there"),
        ("package:csv/model", "no package 'csv' is installed"),
        ("./not/there", "that folder is not there"),
        ("/not/there", "that folder is not there"),
    ],
)
def test_a_base_that_is_not_there_is_reported_by_its_name(in_folder: Path, model: str, told: str) -> None:
    with pytest.raises(VocabgraftError) as caught:
        locate_base(model)
    assert f"base.model is {model!r}" in str(caught.value)
    assert told in str(caught.value)


def test_a_folder_with_pickled_weights_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabgraftError, match=r"pytorch_model\.bin is a pickle.*only safetensors are loaded"):
        locate_base(str(weights(tmp_path / "old", "pytorch_model.bin", "config.json")))


def test_a_hub_id_is_fetched_at_its_revision_without_other_formats(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(model: str, **options: Any) -> str:
        asked.update(options, model=model)
        return str(weights(in_folder / "cache", "model.safetensors"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert locate_base("owner/name", "abc123") == in_folder / "cache"
    assert (asked["model"], asked["revision"]) == ("owner/name", "abc123")
    assert not [pattern for pattern in asked["allow_patterns"] if pattern.endswith((".bin", ".py", "*"))]


def test_a_model_of_the_hub_without_safetensors_is_refused(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its identity would otherwise be the hash of nothing.
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, **__: str(weights(in_folder / "cache", "config.json"))
    )
    with pytest.raises(VocabgraftError, match="'owner/name': no safetensors file"):
        locate_base("owner/name")


def test_an_unreachable_hub_is_reported_with_the_offline_switch(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot_download(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(VocabgraftError, match=r"'owner/name' at revision main: .*\(HF_HUB_OFFLINE is set\)"):
        locate_base("owner/name")


def test_what_can_be_no_hub_id_is_reported(in_folder: Path) -> None:
    with pytest.raises(VocabgraftError, match="neither a folder nor a Hub id"):
        locate_base("owner/name/too/deep")


def test_the_identity_names_content_and_no_path(tiny_base: Path) -> None:
    identity = identify_base(tiny_base, BaseParams(model="m"), "models:/m/3").as_json()
    assert identity == {
        "model": "models:/m/3",
        "revision": None,
        "sha256": file_sha256(tiny_base / "model.safetensors"),
        "tokenizer_sha256": file_sha256(tiny_base / "tokenizer.json"),
        "code": None,
        "files": read_file_hashes(tiny_base),
    }
    assert {"1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"} <= set(identity["files"])


def test_other_weights_than_those_asked_for_are_refused(tmp_path: Path) -> None:
    folder = weights(tmp_path / "m", "model.safetensors", "tokenizer.json")
    right = file_sha256(folder / "model.safetensors")
    assert identify_base(folder, BaseParams(model="m", sha256=right), "m").sha256 == right
    (folder / "model.safetensors").write_bytes(b"planted")
    with pytest.raises(VocabgraftError) as caught:
        identify_base(folder, BaseParams(model="m", sha256=right), "m")
    assert right in str(caught.value)
    assert file_sha256(folder / "model.safetensors") in str(caught.value)


def test_every_part_of_weights_in_several_files_counts(tmp_path: Path) -> None:
    names = ("model-1.safetensors", "model-2.safetensors")
    folder = weights(tmp_path / "m", *names, "tokenizer.json")
    write_json(folder / "model.safetensors.index.json", {"weight_map": {f"tensor {name}": name for name in names}})
    before = identify_base(folder, BaseParams(model="m"), "m").sha256
    assert before == digest_of({name: file_sha256(folder / name) for name in names})
    (folder / names[1]).write_bytes(b"planted")
    assert identify_base(folder, BaseParams(model="m"), "m").sha256 != before


def test_a_base_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabgraftError, match=r"has no tokenizer\.json; save the model once"):
        tokenizer_file(weights(tmp_path / "m", "model.safetensors", "vocab.txt"))


def test_a_model_is_loaded_for_use_and_not_for_training(graft: Graft) -> None:
    assert not load_model(graft.base, device="cpu").training


def test_a_damaged_folder_is_reported_and_nothing_is_fetched(tmp_path: Path) -> None:
    with pytest.raises(VocabgraftError, match="does not load as a sentence-transformers model"):
        save_file({"x": torch.ones(1)}, weights(tmp_path / "m") / "model.safetensors")
        load_model(tmp_path / "m", device="cpu")


def test_code_in_a_model_folder_is_not_run(graft: Graft, tmp_path: Path) -> None:
    import json
    import shutil

    folder = tmp_path / "m"
    shutil.copytree(graft.base, folder)
    (folder / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    modules[1]["type"] = "planted.Planted"
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises((VocabgraftError, ImportError)):
        load_model(folder, device="cpu")
    assert not (tmp_path / "ran").exists()
