"""What is cheap to check is refused before anything runs, all of it at once."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.engine.edit_params import edited
from tasks.support.preflight import check_project
from tasks.support.stage import run_stage
from tasks.validate_data import validate_data
from tests.conftest import write_lines
from tests.flows.invoke import cli
from vocabgraft.config.params import Params, parse_params_text
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import read_json, write_json

main = cli("run")
RAW = Path("data/raw")
OWN_LAYERS = """
from torch import nn
from sentence_transformers.sentence_transformer.modules import Module

class Half(Module):
    def __init__(self, share: float = 0.5) -> None:
        super().__init__()

    def forward(self, features):
        return features

    def save(self, output_path, *args, safe_serialization=True, **kwargs):
        pass

class Idle(nn.Module):
    def save(self, path):
        pass

    @staticmethod
    def load(path):
        pass

class Unsaved(nn.Module):
    def forward(self, features):
        return features
"""


def params_with(*settings: str) -> Params:
    """The parameters of the project in the working folder with settings."""
    return parse_params_text(edited(Path("params.yaml").read_text(encoding="utf-8"), settings, "params.yaml"), "p")


def refused(*settings: str) -> str:
    """What the check says of the project in the working folder with settings."""
    with pytest.raises(VocabgraftError) as caught:
        check_project(params_with(*settings), RAW, lambda _: None)
    return str(caught.value)


def test_a_sound_project_passes(tiny_project: Path) -> None:
    check_project(params_with(), RAW, lambda _: None)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["train_adapter.arguments={optim: adamm}"], ["optim is 'adamm'", "do you mean adamw_torch"]),
        (["train_adapter.arguments={max_steps: many}"], ["max_steps is 'many'", "a whole number"]),
        (
            ["train_adapter.best_metric=terms_cosine_mrr@10"],
            ["best_metric is 'terms_cosine_mrr@10'", "allowed: eval_loss, relations_loss, terms_loss"],
        ),
        (
            ["train_adapter.evaluators=[{dataset: terms}]", "train_adapter.best_metric=terms_cosine_mrr"],
            ["best_metric is 'terms_cosine_mrr'", "do you mean terms_cosine_mrr@10?"],
        ),
        (
            ["train_adapter.evaluators=[{dataset: terms, arguments: {mrr_at_k: ten}}]"],
            ["train_adapter.evaluators.0 cannot run"],
        ),
        (
            ["train_adapter.best_metric=eval_loss", "train_adapter.arguments={eval_strategy: NO}"],
            ["eval_strategy is 'NO'", "best_metric is 'eval_loss'"],
        ),
        (
            ["resize_base.modules=[{type: checked_layers.Missing, place: after_pooling}]"],
            ["'checked_layers.Missing' is nothing, not a class"],
        ),
        (["resize_base.modules=[{type: no_such.Layer, place: after_pooling}]"], ["'no_such.Layer' does not import"]),
        (
            ["resize_base.modules=[{type: checked_layers.Idle, place: after_pooling}]"],
            ["it lacks a method forward; "],
        ),
        (
            ["resize_base.modules=[{type: checked_layers.Unsaved, place: after_pooling}]"],
            ["it lacks a method save; "],
        ),
        (
            ["resize_base.modules=[{type: checked_layers.Half, place: after_pooling, arguments: {part: 0.3}}]"],
            ["resize_base.modules.0.arguments has part", "allowed: share"],
        ),
        (
            ["resize_base.modules=[{type: LayerNorm, place: before_pooling}]"],
            ["resize_base.modules.0: LayerNorm at before_pooling", "allowed: after_pooling"],
        ),
        (["base.model=package:not_installed/model"], ["no package 'not_installed' is installed"]),
        (["base.model=./nowhere"], ["base.model is './nowhere'", "not there"]),
        (["validate_data.vocabulary=words.csv"], ["data/raw/words.csv is missing"]),
        (["validate_data.contexts.0=contexts.csv"], ["contexts.csv is missing"]),
    ],
)
def test_a_setting_that_a_later_stage_would_refuse_is_refused(
    settings: list[str], told: list[str], tiny_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tiny_project / "checked_layers.py", [OWN_LAYERS])
    monkeypatch.syspath_prepend(str(tiny_project))
    monkeypatch.delitem(sys.modules, "checked_layers", raising=False)
    said = refused(*settings)
    for part in told:
        assert part in said
    assert "problems:" not in said


@pytest.mark.parametrize(
    "settings",
    [
        ["train_adapter.arguments={batch_sampler: NO_DUPLICATES, lr_scheduler_type: COSINE}"],
        ["train_adapter.evaluators=[{dataset: terms}]", "train_adapter.best_metric=eval_terms_cosine_mrr@10"],
        [
            "train_adapter.evaluators=[{dataset: relations, name: LinkPredictionEvaluator}]",
            "train_adapter.best_metric=relations_relation_IsA_mrr",
        ],
        ["train_adapter.best_metric=terms_loss"],
        ["resize_base.modules=[{type: Dense, place: before_pooling, arguments: {use_residual: true}}]"],
    ],
)
def test_what_the_libraries_take_passes(settings: list[str], tiny_project: Path) -> None:
    check_project(params_with(*settings), RAW, lambda _: None)


def test_the_name_of_a_metric_has_the_similarity_of_the_base(tiny_project: Path) -> None:
    base = Path(yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["base"]["model"])
    settings = ["train_adapter.evaluators=[{dataset: terms}]", "train_adapter.best_metric=terms_dot_mrr@10"]
    assert "which no evaluation gives" in refused(*settings)
    copy = tiny_project / "dot"
    copy.mkdir()
    for path in base.iterdir():
        (copy / path.name).symlink_to(path)
    name = "config_sentence_transformers.json"
    (copy / name).unlink()
    write_json(copy / name, read_json(base / name) | {"similarity_fn_name": "dot"})
    check_project(params_with(*settings, f"base.model={copy}"), RAW, lambda _: None)


def test_a_header_without_a_column_and_every_other_problem_are_reported_at_once(tiny_project: Path) -> None:
    (RAW / "terms.csv").write_text("anchor,positve\na,b\n", encoding="utf-8")
    (RAW / "relations.csv").unlink()
    said = refused("train_adapter.arguments={optim: adamm}", "base.model=./nowhere")
    assert said.startswith("4 problems:")
    for part in ("terms.csv: column positive is missing", "relations.csv is missing", "'adamm'", "'./nowhere'"):
        assert part in said


def test_a_hub_id_is_not_fetched(tiny_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    notes: list[str] = []

    def snapshot_download(model: str, **options: Any) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        asked.append(options["local_files_only"])
        raise LocalEntryNotFoundError("not here")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    check_project(params_with("base.model=owner/name"), RAW, notes.append)
    assert asked == [True] and "owner/name is not on this machine" in notes[0]


def test_a_plan_refuses_it_and_a_run_does_in_its_first_stage(
    tiny_project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tiny_project / ".dvc").mkdir()
    (tiny_project / ".dvc" / "config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    assert main(["--plan"]) == 0
    assert main(["--plan", "--set", "train_adapter.arguments={optim: adamm}"]) == 2
    assert "optim is 'adamm'" in capsys.readouterr().err
    path = Path("params.yaml")
    path.write_text(edited(path.read_text(encoding="utf-8"), ["train_adapter.arguments={optim: adamm}"], "p"), "utf-8")
    assert run_stage(validate_data, []) == 1
    assert "optim is 'adamm'" in capsys.readouterr().err
    assert sorted(entry.name for entry in Path("data").iterdir()) == ["raw"]


def test_a_plan_of_another_dag_checks_nothing_of_it(tiny_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny_project / ".dvc").mkdir()
    (tiny_project / ".dvc" / "config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    Path("dvc.yaml").write_text("stages: {one: {cmd: touch x, outs: [x]}}\n", encoding="utf-8")
    (RAW / "terms.csv").unlink()
    assert main(["--plan"]) == 0


def test_an_edit_of_an_own_layer_is_reported(tiny_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tiny_project))
    Path("edited_layers.py").write_text(OWN_LAYERS, encoding="utf-8")
    resized = Path("data/resize_base")
    resized.mkdir(parents=True)
    (resized / "modules.json").write_text('[{"path": "1", "type": "edited_layers.Half"}]', encoding="utf-8")
    (resized / "edited_layers.py").write_text(OWN_LAYERS, encoding="utf-8")

    def said() -> list[str]:
        found: list[str] = []
        check_project(params_with(), RAW, found.append, resized)
        return found

    assert said() == []
    Path("edited_layers.py").write_text(OWN_LAYERS + "# edited", encoding="utf-8")
    (told,) = said()
    assert told.startswith("edited_layers.py ") and "resize_base" in told and "--downstream resize_base" in told
