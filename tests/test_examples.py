"""The examples run as they are, on the tiny models, where the store that they use is installed."""

import importlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tasks.support.stage import run_stage
from tests.conftest import ROOT
from vocabgraft.storage.artifacts import read_json


@pytest.mark.parametrize(
    ("package", "example", "verb"), [("faiss", "faiss_index.py", "replaced"), ("duckdb", "duckdb_table.py", "updated")]
)
def test_an_example_replaces_the_vectors_of_new_words_alone(
    package: str, example: str, verb: str, tiny_base: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; pip install -e '.[test]' has it")
    new = add_word(tiny_base, tmp_path / "new", "nephrolithiasis")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example), str(tiny_base), str(new)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first = "[11, 13]" if package == "faiss" else "[1, 3]"
    assert done.stdout.splitlines()[0] == f"2 of 4 vectors {verb}: {first}"
    assert all("nephrolithiasis" in line for line in done.stdout.splitlines()[1:3])


def add_word(base: Path, folder: Path, word: str) -> Path:
    """The model with one more word, whose row is far from all others."""
    import torch
    from tokenizers import AddedToken

    from vocabgraft.models.base import load_model
    from vocabgraft.models.saving import save_model

    model = load_model(base, device="cpu")
    model.tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True)])
    embeddings = model[0].auto_model.resize_token_embeddings(len(model.tokenizer))
    with torch.no_grad():
        embeddings.weight[-1] = 3 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    save_model(model, folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_one_relation_trained_alone_ends_in_a_verdict(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(ROOT / "examples" / "relations", in_folder, dirs_exist_ok=True)
    shutil.copy(ROOT / "dvc.yaml", in_folder)
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name, defined in stages.items():
        stage = getattr(importlib.import_module(f"tasks.{name}"), name)
        assert run_stage(stage, shlex.split(defined["cmd"])[3:]) == 0, name
    splits = read_json(Path("data/validate_data/report.json"))["datasets"]["relations"]
    assert splits["train"] + splits["test"] == 304
    log = [entry["loss"] for entry in read_json(Path("data/train_adapter/report.json"))["log"] if "loss" in entry]
    assert sum(log[-5:]) / 5 < 0.95 * log[0]
    checks = {check["name"]: check for check in read_json(Path("data/check_consistency/checks.json"))["checks"]}
    assert checks["new_rows_trained"]["verdict"] == checks["untouched_texts"]["verdict"] == "passed"
    # Ranks among relations take two of them, and one relation is still judged by its triples.
    assert checks["relations_told_apart"]["verdict"] == "too few to judge"
    comparison = read_json(Path("data/evaluate_model/comparison.json"))
    (row,) = comparison["relations"]
    whole = next(item for item in comparison["items"] if (item["subset"], item["metric"]) == ("all", "link_mrr"))
    assert (row["relation"], row["queries"]) == ("AtLocation", splits["test"])
    assert [row[name] for name in ("base", "merged", "gain")] == [whole[name] for name in ("base", "merged", "gain")]
    assert row["verdict"] == whole["verdict"]
    assert "relation AtLocation, link_mrr" in capsys.readouterr().out
    assert read_json(Path("data/register_model/registration.json"))["name"] == "relations-minilm"
