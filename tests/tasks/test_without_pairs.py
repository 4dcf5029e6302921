"""Words without pairs: every stage runs without a dataset, and its figures say what there is to say."""

import importlib
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.support.stage import run_stage
from tests.conftest import ROOT
from vocabgraft.config.losses import losses_for
from vocabgraft.storage.artifacts import read_json

from .test_bad_input import append, setting, write

pytestmark = pytest.mark.usefixtures("isolated_forks", "without_data_docs")


def run(*stages: str) -> int:
    """Run stages as dvc.yaml would, until one fails."""
    defined = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name in stages:
        stage = getattr(importlib.import_module(f"tasks.{name}"), name)
        if code := run_stage(stage, shlex.split(defined[name]["cmd"])[3:]):
            return code
    return 0


def read(stage: str, name: str = "report.json") -> Any:
    return read_json(Path("data") / stage / name)


CHAIN = ("validate_data", "extend_tokenizer", "resize_base", "train_adapter", "merge_adapter")
JUDGED = ("check_consistency", "train_control", "evaluate_model", "register_model")


@pytest.fixture
def corpus_project(tiny_project: Path, new_store: Callable[[Path], str]) -> Path:
    """The tiny project without examples and without retention pairs of its own."""
    new_store(tiny_project / "mlflow.db")
    for name in ("terms.csv", "relations.csv", "retention.csv"):
        (Path("data/raw") / name).unlink()
    setting("validate_data.datasets", [])()
    setting("validate_data.retention", None)()
    setting("validate_data.min_uses", 1)()
    # The rows of the tiny base were drawn at random, so all have nearly one norm; a mean of them is far shorter.
    setting("check_consistency.max_norm_ratio", 3.0)()
    setting("register_model.gates.benefit", "fidelity")()
    setting("register_model.gates.min_fidelity", 0.0)()
    return tiny_project


def test_a_corpus_alone_goes_through_every_stage(corpus_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*CHAIN, *JUDGED) == 0
    assert read("validate_data")["datasets"] == {}
    assert read("validate_data")["retention"] > 800
    assert (read("train_adapter")["examples"], read("train_adapter")["final_loss"]) == (0, None)
    checks = {check["name"]: check["verdict"] for check in read("check_consistency", "checks.json")["checks"]}
    for name in ("new_rows_trained", "trained_differs", "adapter_moved"):
        assert checks[name] == "does not apply"
    assert checks["untouched_texts"] == checks["adapter_switch"] == "passed"
    metrics = read("evaluate_model", "metrics.json")
    assert metrics["merged"]["tokens_per_text"] < metrics["base"]["tokens_per_text"]
    assert metrics["merged"]["fidelity"] == metrics["resized"]["fidelity"]
    assert read("evaluate_model", "comparison.json")["items"] == []
    retention = read("evaluate_model", "retention.json")
    assert retention["drift"]["no_new_word"]["valid_share"] == 100
    assert "fidelity to the base" in capsys.readouterr().out
    assert read("register_model", "registration.json")["name"]


def test_what_is_not_trained_merges_to_the_distilled_rows(corpus_project: Path) -> None:
    import torch
    from safetensors.torch import load_file

    assert run(*CHAIN) == 0
    weights = [
        load_file(next(Path("data", name).rglob("model.safetensors"))) for name in ("resize_base", "merge_adapter")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert (Path("data/merge_adapter/pack") / "manifest.json").is_file()


@pytest.mark.parametrize("method", ["tokens", "lora", "full"])
def test_no_epochs_train_nothing_whatever_the_method(method: str, tiny_project: Path) -> None:
    setting("train_adapter.epochs", 0)()
    setting("train_adapter.method", method)()
    assert run(*CHAIN[:4]) == 0
    report = read("train_adapter")
    assert (report["examples"], report["log"], report["method"]) == (0, [], "tokens")
    assert read("train_adapter", "curve.json") == []


def test_words_alone_are_enough(corpus_project: Path) -> None:
    (Path("data/raw") / "contexts.txt").unlink()
    setting("validate_data.contexts", [])()
    setting("register_model.gates.benefit", None)()
    # The tiny base was never trained, so what it reads in a description is not what it reads in a word.
    setting("check_consistency.max_meaning_rank", 0.5)()
    assert run(*CHAIN, *JUDGED) == 0
    report = read("resize_base")["distillation"]
    assert [(row["to"], row["tokens"]) for row in report["by_texts"]] == [(0, 6)]


@pytest.mark.parametrize("loss", losses_for("texts"))
def test_texts_alone_with_each_of_their_losses_are_a_complete_run(loss: str, corpus_project: Path) -> None:
    arguments = {"tie_encoder_decoder": False} if loss == "DenoisingAutoEncoderLoss" else {}
    texts = (Path("data/raw") / "contexts.txt").read_text(encoding="utf-8").splitlines()
    write("texts.csv", "\n".join(["text", *texts]) + "\n")()
    dataset = {"name": "raw", "format": "texts", "files": {"train": "texts.csv"}, "held_out": {"validation": 0.1}}
    setting("validate_data.datasets", [dataset | {"loss": {"name": loss, "arguments": arguments}}])()
    setting("check_consistency.waived.meaning_kept", "the tiny base was never trained, so meaning is chance")()
    # The registration asks nothing about the loss; one with layers of its own goes through it too.
    assert run(*CHAIN, *(JUDGED if arguments else JUDGED[:-1])) == 0
    report = read("train_adapter")
    assert report["examples"] == read("validate_data")["datasets"]["raw"]["train"] > 30
    assert report["final_loss"] > 0
    checks = {check["name"]: check["verdict"] for check in read("check_consistency", "checks.json")["checks"]}
    assert checks["new_rows_trained"] == checks["untouched_texts"] == "passed"
    # Raw text asks no question, so there is no retrieval to measure, and fidelity is measured all the same.
    assert read("evaluate_model", "comparison.json")["items"] == []
    assert read("evaluate_model", "metrics.json")["merged"]["fidelity"] is not None


REFUSED: dict[str, tuple[list[tuple[str, Any]], tuple[str, ...]]] = {
    "benefit": (
        [("register_model.gates.benefit", "terms.new_word.mrr")],
        ("register_model.gates.benefit", "null; fidelity; tokens_per_text; retention"),
    ),
    "control": ([("evaluate_model.control", True)], ("evaluate_model.control", "validate_data.datasets is empty")),
    "evaluator": (
        [("train_adapter.evaluators", [{"dataset": "terms"}])],
        ("train_adapter.evaluators.0", "allowed: none, since validate_data.datasets is empty"),
    ),
    "phase": (
        [("train_adapter.epochs", 0), ("train_adapter.phases", [{"train": "rows"}])],
        ("epochs is 0 and phase 1 sets none",),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_needs_examples_is_refused_with_what_is_allowed(
    case: str, corpus_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, told = REFUSED[case]
    for key, value in settings:
        setting(key, value)()
    assert run("validate_data") == 1
    message = capsys.readouterr().err
    for part in told:
        assert part in message


def test_the_general_pairs_are_taken_whatever_the_longest_text(corpus_project: Path) -> None:
    setting("validate_data.max_text_characters", 60)()
    write("contexts.txt", "the nephrolith of the dog\n")()
    append("contexts.txt", "the nephrolith of the dog")()
    assert run("validate_data") == 0
    assert read("validate_data")["rejected"] == 0
    assert read("validate_data")["repeated"] == {"contexts": 1}
