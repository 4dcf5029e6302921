"""The stage writes every check, whether or not it holds, and names what broke those that failed."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

import tasks.check_consistency as module
from tasks.check_consistency import check_consistency
from tasks.extend_tokenizer import extend_tokenizer
from tasks.merge_adapter import merge_adapter
from tasks.resize_base import resize_base
from tasks.support.stage import read_failure, run_stage
from tasks.train_adapter import train_adapter
from tasks.validate_data import validate_data
from vocabgraft.checks import encodings
from vocabgraft.checks.result import describe_counts
from vocabgraft.checks.runner import CHECKS
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import load_model
from vocabgraft.packs.bank import VocabularyBank

from ..conftest import build_tiny_project
from ..vocabgraft.stored_encodings import stored

pytestmark = pytest.mark.usefixtures("isolated_forks")

WEIGHTS, CHECKED = Path("data/merge_adapter/model.safetensors"), Path("data/check_consistency/checks.json")
# A mean of random rows is shorter than each of them.
LIMITS = {"max_norm_ratio": 2.0}


def change(**values: Any) -> None:
    """Set keys of the section check_consistency of params.yaml."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["resize_base"]["initialisation"] = "subword_mean"
    params["check_consistency"] |= values
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


@pytest.fixture(scope="module")
def merged(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny project up to the merged model."""
    root = tmp_path_factory.mktemp("merged")
    build_tiny_project(root, tiny_base)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        change(**LIMITS)
        stages: tuple[Callable[..., None], ...] = (
            validate_data,
            extend_tokenizer,
            resize_base,
            train_adapter,
            merge_adapter,
        )
        for stage in stages:
            assert run_stage(stage, []) == 0
    return root


def test_a_trained_model_passes_with_a_line_for_each_check(
    merged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(merged)
    code = run_stage(check_consistency, [])
    said = capsys.readouterr()
    assert code == 0, said.err
    written = json.loads(CHECKED.read_text(encoding="utf-8"))
    assert written["passed"]
    assert [check["name"] for check in written["checks"]] == [entry.name for entry in CHECKS]
    verdicts = {check["name"]: check["verdict"] for check in written["checks"] if check["verdict"] != "passed"}
    # A handful of tokens and relations is too few for checks that need a whole vocabulary.
    few = dict.fromkeys(("descriptions_told_apart", "relations_told_apart"), "too few to judge")
    # Random weights tell no meanings apart, and make no first token unlike the others.
    untold = {"attention_sinks": "does not apply", "meaning_kept": "too few to judge"}
    assert verdicts == {"onnx_export": "waived", **few, **untold}
    lines = said.out.splitlines()
    assert describe_counts(written["counts"]) in lines
    for entry in CHECKS:
        assert any(line.startswith(f"{entry.name} ") and line.endswith(" s") for line in lines)


def test_the_pack_beside_the_merged_model_makes_the_base_read_as_it(merged: Path, tiny_base: Path) -> None:
    folder = merged / "data" / "merge_adapter"
    bank = VocabularyBank(load_model(tiny_base, device="cpu"))
    assert bank.load(folder / "pack") == "clinical"
    pack = bank.pack("clinical")
    assert pack.licence is None and pack.figures["training"]["method"] == "tokens"
    assert {text for text in pack.texts if not any(text in context for context in pack.contexts)} == set()
    texts = ["a nephrolith", "dog <|IsA|> animal", "the dog", *pack.contexts]
    expected = load_model(folder, device="cpu").encode(texts, show_progress_bar=False)
    assert np.array_equal(bank.encode(texts, vocabulary="clinical"), expected)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert {name for name in manifest["files"] if name.startswith("pack/")} == {
        f"pack/{name}" for name in ("contexts.json", "manifest.json", "rows.safetensors", "tokens.json")
    }


def test_a_failed_check_is_written_and_its_details_are_said(
    merged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(merged)
    own = module.gather_evidence
    monkeypatch.setattr(module, "gather_evidence", lambda **given: stored(own(**given)))
    good = WEIGHTS.read_bytes()
    weights = load_file(WEIGHTS)
    weights["embeddings.word_embeddings.weight"][7] += 0.5
    save_file(weights, WEIGHTS, metadata={"format": "pt"})
    try:
        assert run_stage(check_consistency, []) == 1
    finally:
        WEIGHTS.write_bytes(good)
    written = json.loads(CHECKED.read_text(encoding="utf-8"))
    failed = [check["name"] for check in written["checks"] if check["verdict"] == "failed"]
    assert not written["passed"]
    assert "old_rows_merged" in failed
    said = capsys.readouterr().err
    counted = describe_counts(written["counts"])
    assert written["counts"]["failed"] == len(failed) and sum(written["counts"].values()) == len(CHECKS)
    assert f"{counted}: {', '.join(failed)}. " in said
    assert "old_rows_merged: 1, allowed: at most 0" in said
    assert "(7): by up to 0.5" in said
    (check,) = [check for check in written["checks"] if check["name"] == "old_rows_merged"]
    assert f"remedy: {check['remedy']}" in said
    reason = read_failure(Path(), "check_consistency")
    assert reason is not None and f"check_consistency: {reason}\n" in said


def _refuse(*_: Any) -> None:
    raise VocabgraftError("no exporter here")


@pytest.mark.parametrize("works", [True, False])
def test_the_export_is_checked_unless_it_is_waived_and_what_cannot_run_has_failed(
    merged: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, works: bool
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(merged)
    own = module.gather_evidence
    monkeypatch.setattr(module, "gather_evidence", lambda **given: stored(own(**given)))
    if not works:
        monkeypatch.setattr(encodings, "write_onnx_folder", _refuse)
    params = Path("params.yaml").read_text(encoding="utf-8")
    change(waived={})
    try:
        with caplog.at_level(logging.INFO):
            assert run_stage(check_consistency, []) == (0 if works else 1)
    finally:
        Path("params.yaml").write_text(params, encoding="utf-8")
    written = json.loads(CHECKED.read_text(encoding="utf-8"))
    (check,) = [check for check in written["checks"] if check["name"] == "onnx_export"]
    if works:
        assert check["verdict"] == "passed" and 0 < check["figure"] <= 1e-5
    else:
        assert (check["verdict"], check["figure"]) == ("failed", None)
        assert check["reason"] == "could not run: no exporter here"
