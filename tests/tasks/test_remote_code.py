"""A base with code of its own: refused with nothing run, or through every stage to a model that needs no other file."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tasks.registry.champion import Candidate, load_champion
from tasks.support.stage import run_stage
from tests.coded_base import CONFIGURATION, HELPER, MODEL, RAN, SOURCES, change_config
from tests.conftest import ROOT, build_tiny_project
from tests.registered_models import build
from tests.tasks.test_check_consistency import LIMITS
from tests.vocabgraft.model_folder.test_remote_code import with_layer
from vocabgraft.config.params import load_params
from vocabgraft.config.stages import PromptParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import load_model
from vocabgraft.storage.artifacts import file_sha256, write_json

BEFORE_EVALUATION = (
    "validate_data",
    "extend_tokenizer",
    "resize_base",
    "train_adapter",
    "merge_adapter",
    "check_consistency",
)
AFTER = ("train_control", "evaluate_model", "register_model")
VALIDATED, MERGED = Path("data/validate_data"), Path("data/merge_adapter")
FRESH = """
import sys, numpy
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", trust_remote_code=True)
numpy.save(sys.argv[2], model.encode(["a nephrolith", "a dog"]))
"""


def run(*stages: str) -> int:
    """Run stages as dvc.yaml would, until one fails."""
    for name in stages:
        if code := run_stage(getattr(importlib.import_module(f"tasks.{name}"), name), []):
            return code
    return 0


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def put(section: str, **values: Any) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params[section] |= values
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def project_on(root: Path, base: Path, trust_remote_code: bool) -> None:
    """A tiny project as the working folder."""
    build_tiny_project(root, base)
    put("base", trust_remote_code=trust_remote_code)
    put("check_consistency", **LIMITS)
    few = {"epochs": 1, "least_steps": 2, "batch_size": 16, "contexts_per_token": 2}
    put("resize_base", distillation=load_params().resize_base.distillation.model_dump() | few)


@pytest.fixture(scope="module")
def trusted(coded_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project over a copy of the base with code, run up to the checks with base.trust_remote_code on."""
    root = tmp_path_factory.mktemp("trusted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        shutil.copytree(coded_base, root / "shift")
        project_on(root, Path("./shift"), trust_remote_code=True)
        assert run(*BEFORE_EVALUATION) == 0
    return root


@pytest.fixture
def project(trusted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that project as the working folder."""
    root = Path(shutil.copytree(trusted, tmp_path / "project"))
    monkeypatch.chdir(root)
    return root


def test_without_trust_the_first_stage_refuses_and_runs_nothing(
    coded_base: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project_on(in_folder, coded_base, trust_remote_code=False)
    monkeypatch.setenv(RAN, str(in_folder / "ran"))
    assert run("validate_data") == 1
    told = capsys.readouterr().err
    assert "set base.trust_remote_code to true" in told
    assert MODEL in told
    assert not (in_folder / "ran").exists()
    assert not VALIDATED.exists()


def test_with_trust_every_stage_up_to_the_checks_passes(trusted: Path) -> None:
    checks = {
        check["name"]: check["verdict"] for check in read(trusted / "data/check_consistency/checks.json")["checks"]
    }
    # The last three are of a process that knows the merged folder alone.
    names = ("reload", "merged_as_adapter", "fresh_process", "moved_folder", "base_absent")
    assert {name: checks.get(name) for name in names} == dict.fromkeys(names, "passed")


def test_the_base_is_identified_by_its_code_too(trusted: Path) -> None:
    code = read(trusted / VALIDATED / "base.json")["code"]
    assert code == {name: file_sha256(trusted / "shift" / name) for name in SOURCES}


@pytest.mark.slow
def test_the_merged_model_loads_alone_in_a_fresh_process(trusted: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(trusted / MERGED, tmp_path / "moved")
    (tmp_path / "empty").mkdir()
    variables = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "code"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", FRESH, str(moved), str(tmp_path / "vectors.npy")]
    subprocess.run(command, check=True, cwd=tmp_path / "empty", env=variables)
    here = load_model(trusted / MERGED, device="cpu", trust_remote_code=True)
    found = np.load(tmp_path / "vectors.npy")
    assert np.array_equal(found, here.encode(["a nephrolith", "a dog"]))


def test_stock_code_cannot_stand_in_for_the_merged_model(trusted: Path, tmp_path: Path) -> None:
    stock = Path(shutil.copytree(trusted / MERGED, tmp_path / "stock"))
    change_config(stock, model_type="bert", architectures=["BertModel"], auto_map={})
    found = load_model(trusted / MERGED, device="cpu", trust_remote_code=True).encode(["a dog"])
    assert np.abs(load_model(stock, device="cpu").encode(["a dog"]) - found).max() > 0.01


def test_code_that_changed_since_it_was_identified_is_not_run(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "shift" / HELPER).write_text(SOURCES[HELPER] + "# edited\n", encoding="utf-8")
    monkeypatch.setenv(RAN, str(project / "ran"))
    assert run("extend_tokenizer") == 1
    assert f"the code of shift has changed since validate_data ({HELPER})" in capsys.readouterr().err
    assert not (project / "ran").exists()


def test_code_that_was_not_identified_at_all_is_not_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    identity = project / VALIDATED / "base.json"
    write_json(identity, read(identity) | {"code": None})
    assert run("resize_base") == 1
    assert "has changed since validate_data" in capsys.readouterr().err


def test_what_was_made_with_trust_is_not_run_without(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put("base", trust_remote_code=False)
    monkeypatch.setenv(RAN, str(project / "ran"))
    for stage in ("resize_base", "train_adapter", "merge_adapter"):
        assert run(stage) == 1
        assert "base.trust_remote_code" in capsys.readouterr().err
    assert run("check_consistency") == 1
    assert not (project / "ran").exists()


def candidate_of(merged: Path, trust: bool) -> Candidate:
    """A new model of which only the folder and the trust in its code matter."""
    return Candidate(
        merged=merged,
        evaluation=merged,
        datasets=merged,
        tokens=merged,
        find_base=lambda: merged,
        prompts=PromptParams(),
        translations=frozenset(),
        tags={},
        batch_size=8,
        seed=0,
        trust_remote_code=trust,
    )


@pytest.mark.parametrize("trust", [False, True])
def test_a_champion_with_other_code_is_reported_and_not_run(
    trusted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: bool
) -> None:
    champion = Path(shutil.copytree(trusted / MERGED, tmp_path / "champion"))
    (champion / HELPER).write_text(SOURCES[HELPER] + "# of another base\n", encoding="utf-8")
    monkeypatch.setenv(RAN, str(tmp_path / "ran"))
    candidate = candidate_of(trusted / MERGED, trust)
    with pytest.raises(VocabgraftError, match=r"none of it was run.*base\.trust_remote_code"):
        load_champion(champion, candidate)
    assert not (tmp_path / "ran").exists()


def test_a_champion_with_the_same_code_is_run(trusted: Path, tmp_path: Path) -> None:
    candidate = candidate_of(trusted / MERGED, True)
    assert load_champion(trusted / MERGED, candidate).encode(["a dog"]).shape == (1, 32)


@pytest.mark.slow
def test_the_registered_version_says_what_ran_and_loads_by_mlflow(
    project: Path, monkeypatch: pytest.MonkeyPatch, new_store: Callable[[Path], str]
) -> None:
    import mlflow

    from tasks.registry.lookup import connect, find_by_digest

    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(project / "mlflow.db"))
    put("evaluate_model", control=True)
    assert run(*AFTER) == 0
    record = read(project / "data/register_model/registration.json")
    version = find_by_digest(connect(), record["name"], record["content_digest"])
    assert version is not None
    assert version.tags["remote_code"].startswith(f"on: {CONFIGURATION}, {MODEL}, {HELPER} (SHA-256 ")
    found = mlflow.sentence_transformers.load_model(f"models:/{version.name}/{version.version}")
    merged = load_model(project / MERGED, device="cpu", trust_remote_code=True)
    assert np.array_equal(found.encode(["a nephrolith"]), merged.encode(["a nephrolith"]))
    card = mlflow.artifacts.load_text(f"runs:/{version.run_id}/model_card.md")
    assert "SentenceTransformer(FOLDER, trust_remote_code=True)" in card
    assert f"Remote code: on: {CONFIGURATION}" in card


@pytest.mark.slow
def test_every_weight_trains_under_trusted_code_too(project: Path) -> None:
    put("train_adapter", method="full", learning_rate=1e-3)
    assert run("train_adapter", "merge_adapter", "check_consistency") == 0


@pytest.mark.slow
@pytest.mark.usefixtures("coded_base")
def test_a_module_class_of_the_folder_is_registered_with_its_file(
    tiny_base: Path, in_folder: Path, monkeypatch: pytest.MonkeyPatch, new_store: Callable[[Path], str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(in_folder / "mlflow.db"))
    shutil.copy(ROOT / "params.yaml", in_folder)
    base = with_layer(Path(shutil.copytree(tiny_base, in_folder / "layered")))
    made = build(in_folder / "made", base, "layered", "one")
    made.register(trust_remote_code=True)
    # Reading it back has compared its embeddings with those of the folder.
    assert made.digest_at("challenger") == made.digest
