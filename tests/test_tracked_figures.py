"""`dvc metrics diff` and `dvc plots diff` between two commits, with the sections of the project's own dvc.yaml."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.flows.projects import run_dvc
from vocabgraft.storage.artifacts import write_json

EVALUATION = "data/evaluate_model"


def figures(mrr: float, valid: float) -> dict[str, Any]:
    """What the evaluation of a commit found."""
    drift = {"new_word": {"mean": 0.25, "worst": [{"text": "a", "cosine": 0.5}]}}
    gain = {"figure": "terms, all: mrr", "gain": mrr - 50, "low": mrr - 52, "high": mrr - 48, "verdict": "better"}
    return {
        "key_metrics.json": {"terms_mrr": mrr, "valid_share": valid},
        "metrics.json": {"merged": {"terms": {"all": {"mrr": mrr, "queries": 300}}}},
        "retention.json": {"corpus": 9, "valid_share": valid, "drift": drift, "problems": []},
        "gains.json": [gain],
    }


def git(root: Path, *arguments: str) -> None:
    """Run Git, which must succeed."""
    name = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *name, *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture(scope="module")
def two_commits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose evaluation differs between its two commits."""
    root = tmp_path_factory.mktemp("figures")
    (root / ".dvc").mkdir()
    for name in (".dvc/config", ".dvc/plots"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, root / name)
    own = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    evaluation = {"cmd": f"mkdir -p {EVALUATION} && cp made/* {EVALUATION}/", "deps": ["made"], "outs": [EVALUATION]}
    curve = "data/train_adapter"
    training = {"cmd": f"mkdir -p {curve} && cp made/../curve.json {curve}/", "deps": ["curve.json"], "outs": [curve]}
    stages = {"stages": {"evaluate_model": evaluation, "train_adapter": training}}
    (root / "dvc.yaml").write_text(
        yaml.safe_dump(stages | {key: own[key] for key in ("metrics", "plots")}, sort_keys=False), encoding="utf-8"
    )
    write_json(root / "curve.json", [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    (root / "made").mkdir()
    git(root, "init", "--quiet")
    for mrr, valid in ((55.0, 100.0), (60.0, 40.0)):
        for name, content in figures(mrr, valid).items():
            write_json(root / "made" / name, content)
        run_dvc(root, "repro", "--quiet")
        git(root, "add", "--all")
        git(root, "commit", "--quiet", "--message", f"mrr {mrr}")
    return root


def test_metrics_diff_shows_the_key_metrics_and_any_other_file_by_its_name(two_commits: Path) -> None:
    changed = json.loads(run_dvc(two_commits, "metrics", "diff", "HEAD~1", "HEAD", "--json"))
    assert changed.keys() == {f"{EVALUATION}/key_metrics.json"}
    metrics = changed[f"{EVALUATION}/key_metrics.json"]
    assert metrics["terms_mrr"] == {"old": 55.0, "new": 60.0, "diff": 5.0}
    assert metrics["valid_share"] == {"old": 100.0, "new": 40.0, "diff": -60.0}
    rest = f"{EVALUATION}/metrics.json"
    changed = json.loads(run_dvc(two_commits, "metrics", "diff", "HEAD~1", "HEAD", "--targets", rest, "--json"))
    assert changed[rest]["merged.terms.all.mrr"]["new"] == 60.0
    shown = json.loads(run_dvc(two_commits, "metrics", "show", rest, "--json"))
    assert shown[""]["data"][rest]["data"]["merged"]["terms"]["all"]["mrr"] == 60.0


def test_plots_diff_draws_the_gains_of_both_commits_with_their_intervals(two_commits: Path) -> None:
    shown = json.loads(run_dvc(two_commits, "plots", "diff", "HEAD~1", "HEAD", "--json"))
    assert not shown.get("errors")
    plots = shown["data"]
    (name,) = (name for name in plots if "gain over the base" in name)
    content = plots[name][0]["content"]
    rows = content["data"]["values"]
    assert sorted((row["gain"], row["low"], row["high"]) for row in rows) == [(5.0, 3.0, 7.0), (10.0, 8.0, 12.0)]
    assert {layer["mark"]["type"] for layer in content["layer"]} == {"rule", "point"}
    assert "<DVC_METRIC" not in json.dumps(content)
