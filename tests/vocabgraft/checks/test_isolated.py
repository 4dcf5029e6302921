"""A model is read by a real process that has its folder alone."""

import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from tests.vocabgraft.conftest import Graft, load
from vocabgraft.checks.isolated import FreshProcess, Place
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import encode
from vocabgraft.storage.artifacts import read_json, write_json

LISTS = (("a nephrolith in the kidney", "dog <|IsA|> animal"), ("a dog", ""))


def others_of(graft: Graft) -> list[Path]:
    """What a service does not have."""
    return [graft.tokenizer, graft.resized, graft.adapters["tokens"]]


def test_a_merged_folder_is_all_that_another_process_needs(graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(graft.root)
    process = FreshProcess(graft.merged["tokens"].relative_to(graft.root), graft.base, others_of(graft), LISTS, 64)
    process.start()
    # The request holds absolute paths, so where this process goes meanwhile makes no difference.
    monkeypatch.chdir("/")
    models = {place: load(graft.base if place == "base" else graft.merged["tokens"]) for place in get_args(Place)}
    for place, model in models.items():
        for texts, found in zip(LISTS, process.encodings(place), strict=True):
            assert np.abs(found - encode(model, texts, 64)).max() <= 1e-6


@pytest.mark.usefixtures("isolated_forks")
def test_a_folder_that_needs_its_base_is_caught_where_the_base_is_absent(graft: Graft, tmp_path: Path) -> None:
    # As the sentence-transformers flavour of MLflow saves an adapter: its base is an absolute path of this machine.
    folder = tmp_path / "merged"
    shutil.copytree(graft.adapters["tokens"], folder)
    config = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", config | {"base_model_name_or_path": str(graft.resized)})
    process = FreshProcess(folder, graft.base, others_of(graft), LISTS, 64)
    expected = encode(load(graft.merged["tokens"]), LISTS[0], 64)
    for place in ("folder", "moved"):
        assert np.allclose(process.encodings(place)[0], expected, atol=1e-5)
    with pytest.raises(VocabgraftError, match="in a separate process the model does not work"):
        process.encodings("alone")


def test_a_process_that_dies_is_reported_with_its_last_words(
    graft: Graft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.exit('out of memory, say')\n", encoding="utf-8")
    monkeypatch.setattr("vocabgraft.checks.isolated.isolated_worker.__file__", str(script))
    process = FreshProcess(graft.merged["tokens"], graft.base, (), LISTS, 64)
    with pytest.raises(VocabgraftError, match="ended with code 1: out of memory, say"):
        process.encodings("folder")


def test_a_process_that_hangs_is_ended(graft: Graft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script.py"
    script.write_text("import time\ntime.sleep(600)\n", encoding="utf-8")
    monkeypatch.setattr("vocabgraft.checks.isolated.isolated_worker.__file__", str(script))
    monkeypatch.setattr("vocabgraft.checks.isolated.TIMEOUT_SECONDS", 0.2)
    process = FreshProcess(graft.merged["tokens"], graft.base, (), LISTS, 64)
    with pytest.raises(VocabgraftError, match=r"took longer than 0\.2 s and was stopped"):
        process.encodings("folder")


def test_nothing_to_encode_is_no_pass(graft: Graft) -> None:
    process = FreshProcess(graft.merged["tokens"], graft.base, (), (), 64)
    process.start()
    with pytest.raises(VocabgraftError, match="no probe texts of both kinds"):
        process.encodings("folder")


def test_the_program_imports_nothing_of_the_project() -> None:
    import ast

    from vocabgraft.checks import isolated_worker

    tree = ast.parse(Path(str(isolated_worker.__file__)).read_text(encoding="utf-8"))
    names: set[Any] = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} == {
        "json", "os", "sys", "pathlib", "typing", "numpy", "torch", "sentence_transformers"
    }  # fmt: skip
