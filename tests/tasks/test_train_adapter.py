"""The stage train_adapter: what it leaves behind, and what it says while it runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks.check_consistency import check_consistency
from tasks.extend_tokenizer import extend_tokenizer
from tasks.merge_adapter import merge_adapter
from tasks.registry.lookup import EXPERIMENT, connect, metric_name
from tasks.resize_base import resize_base
from tasks.support.stage import run_stage
from tasks.train_adapter import CHECKPOINTS, CURVE_PLOT, train_adapter
from tasks.validate_data import validate_data
from tests.conftest import build_tiny_project
from vocabgraft.data.accepted import read_general_texts, read_retention
from vocabgraft.training.trainer import AdapterTrainer

pytestmark = pytest.mark.usefixtures("isolated_forks")

OUT = Path("data/train_adapter")


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def resized_once(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project up to the resized base; never changed."""
    root = tmp_path_factory.mktemp("resized") / "project"
    build_tiny_project(root, tiny_base)
    stages: tuple[Callable[..., None], ...] = (validate_data, extend_tokenizer, resize_base)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        change("resize_base", initialisation="subword_mean")
        for stage in stages:
            assert run_stage(stage, []) == 0
    return root


@pytest.fixture
def resized(resized_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that project as the working folder."""
    root = Path(shutil.copytree(resized_once, tmp_path / "project"))
    monkeypatch.chdir(root)
    return root


def change(section: str, **values: Any) -> None:
    """Set keys of a section of params.yaml."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params[section] |= values
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def weights() -> bytes:
    """The adapter."""
    return (OUT / "adapter_model.safetensors").read_bytes()


def test_the_stage_goes_on_where_it_was_killed_and_leaves_no_checkpoint(
    resized: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change("train_adapter", checkpoint_every=2)
    assert run_stage(train_adapter, []) == 0
    expected = weights()
    assert not list(CHECKPOINTS.iterdir())
    assert CURVE_PLOT.read_text(encoding="utf-8").startswith("<?xml")
    own, seen = AdapterTrainer.training_step, list[int]()

    def step(self: AdapterTrainer, *args: Any) -> Any:
        seen.append(self.state.global_step)
        if len(seen) == 6:
            raise Killed
        return own(self, *args)

    monkeypatch.setattr(AdapterTrainer, "training_step", step)
    with pytest.raises(Killed):
        run_stage(train_adapter, [])
    (kept,) = CHECKPOINTS.iterdir()
    # With another setting it is another training, which takes nothing of this one.
    change("train_adapter", scale=21.0)
    assert run_stage(train_adapter, []) == 0
    assert seen[6] == 0
    assert list(CHECKPOINTS.iterdir()) == [kept]
    started = len(seen)
    change("train_adapter", scale=20.0)
    assert run_stage(train_adapter, []) == 0
    assert seen[started] == 4
    assert weights() == expected
    assert not list(CHECKPOINTS.iterdir())


# What a tiny random model cannot be asked: it knows no meaning, and its rows have no size of their own.
MEANT = {
    "meaning_kept",
    "new_row_norms",
    "description_cosine",
    "descriptions_told_apart",
    "relations_told_apart",
    "swapped_relations",
    "swapped_tokens",
}
LOHA = {"config": "LoHaConfig", "arguments": {"r": 2, "target_modules": ["query", "dense"]}}
DORA = {"config": "LoraConfig", "arguments": {"r": 2, "use_dora": True, "target_modules": ["query", "dense"]}}


@pytest.mark.parametrize(
    ("settings", "skipped"),
    [
        ({"method": "peft", "peft": LOHA}, {"new_rows_trained", "other_weights", "untouched_texts"}),
        ({"method": "peft_and_tokens", "peft": DORA}, {"other_weights", "untouched_texts"}),
        ({"method": "gated"}, {"other_weights", "onnx_export"}),
        (
            {"method": "full"},
            {
                "old_rows_adapter",
                "old_rows_merged",
                "other_weights",
                "untouched_texts",
                "adapter_switch",
                "adapter_names_base",
                "adapter_moved",
            },
        ),
    ],
)
def test_a_method_goes_through_to_checks_that_pass(settings: dict[str, Any], skipped: set[str], resized: Path) -> None:
    change("train_adapter", epochs=3, learning_rate=0.01, **settings)
    for stage in (train_adapter, merge_adapter):
        assert run_stage(stage, []) == 0
    run_stage(check_consistency, [])
    checks = json.loads(Path("data/check_consistency/checks.json").read_text(encoding="utf-8"))["checks"]
    judged = [check for check in checks if check["name"] not in MEANT]
    # Random weights make no first token unlike the others.
    assert {check["name"] for check in judged if check["verdict"] == "does not apply"} == skipped | {"attention_sinks"}
    assert [check for check in judged if check["verdict"] == "failed"] == []
    has_adapter = settings["method"] != "full"
    assert (OUT / "adapter_model.safetensors").is_file() == has_adapter
    assert (OUT / "model.safetensors").is_file() != has_adapter
    # Two runs give the same bytes.
    first = {name: (OUT / name).read_bytes() for name in files()}
    assert run_stage(train_adapter, []) == 0
    assert {name: (OUT / name).read_bytes() for name in files()} == first


def files() -> list[str]:
    """Those of the stage's folder."""
    return sorted(path.relative_to(OUT).as_posix() for path in OUT.rglob("*") if path.is_file())


def test_a_merged_model_that_is_not_the_trained_one_fails_the_check(resized: Path) -> None:
    from safetensors.torch import load_file, save_file

    change("train_adapter", method="full", learning_rate=0.01)
    for stage in (train_adapter, merge_adapter):
        assert run_stage(stage, []) == 0
    path = Path("data/merge_adapter/model.safetensors")
    weights = load_file(path)
    weights["encoder.layer.1.output.dense.bias"][0] += 0.1
    save_file(weights, path, {"format": "pt"})
    assert run_stage(check_consistency, []) == 1
    checks = json.loads(Path("data/check_consistency/checks.json").read_text(encoding="utf-8"))["checks"]
    failed = {check["name"] for check in checks if check["verdict"] == "failed"}
    assert failed - MEANT == {"reload", "merged_as_adapter"}


def test_an_adapter_that_does_not_come_back_is_not_written(
    resized: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As peft 0.21 names DoRA's magnitudes, transformers 5.23 does not find them.
    monkeypatch.setattr("vocabgraft.models.saving._name_magnitudes", lambda path: None)
    change("train_adapter", method="peft", peft=DORA, epochs=3, learning_rate=0.01)
    assert run_stage(train_adapter, []) == 1
    assert "the adapter was trained, saved and loaded, and its embeddings then differ by" in capsys.readouterr().err
    assert not OUT.exists()


def test_live_metrics_go_to_a_run_of_their_own(
    resized: Path, monkeypatch: pytest.MonkeyPatch, new_store: Callable[[Path], str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(resized / "live.db"))
    change("train_adapter", arguments={"report_to": ["mlflow"]}, evaluators=[{"dataset": "relations"}])
    change("train_adapter", method="lora_and_tokens", phases=[{"train": "rows"}, {"train": "all"}])
    assert run_stage(train_adapter, []) == 0
    client = connect()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["method"] == "lora_and_tokens"
    assert {"loss", "learning_rate_rows", "learning_rate_adapter", "eval_relations_loss"} <= set(run.data.metrics)
    assert "eval_relations_cosine_recall_at_10" in run.data.metrics
    curve = json.loads((OUT / "curve.json").read_text(encoding="utf-8"))
    logged = client.get_metric_history(run.info.run_id, "loss")
    assert [entry.value for entry in sorted(logged, key=lambda entry: entry.step)] == [e["loss"] for e in curve]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_is_recorded(precision: str, resized: Path) -> None:
    change("train_adapter", precision=precision)
    assert run_stage(train_adapter, []) == 0
    assert json.loads((OUT / "report.json").read_text(encoding="utf-8"))["precision"] == precision


def test_names_that_mlflow_refuses_are_changed() -> None:
    assert metric_name("eval_terms_cosine_mrr@10") == "eval_terms_cosine_mrr_at_10"
    assert metric_name("a loss/of:x(y)-1.5") == "a loss/of:x_y_-1.5"


def general_and_evaluated() -> tuple[set[str], set[str]]:
    """The general texts that train, and the sentences of the retention pairs that are evaluated."""
    first, second, _ = read_retention(Path("data/validate_data/retention.parquet"))
    return set(read_general_texts(Path("data/validate_data/general_texts.parquet"))), {*first, *second}


def test_retention_pairs_that_train_are_not_evaluated(resized: Path) -> None:
    nothing, every = general_and_evaluated()
    assert nothing == set()
    change("train_adapter", method="lora", retain={"weight": 1.0})
    assert run_stage(validate_data, []) == 0
    trained, evaluated = general_and_evaluated()
    assert trained and evaluated
    assert trained.isdisjoint(evaluated)
    assert trained | evaluated == every
    assert run_stage(train_adapter, []) == 0


def test_general_texts_from_a_file_leave_the_retention_pairs_whole(resized: Path) -> None:
    _, every = general_and_evaluated()
    lines = ["a plain sentence", sorted(every)[0], "another plain sentence", "a plain sentence"]
    Path("data/raw/general.txt").write_text("\n".join(lines), encoding="utf-8")
    change("train_adapter", method="lora", retain={"weight": 1.0, "texts": "general.txt"})
    assert run_stage(validate_data, []) == 0
    assert general_and_evaluated() == ({"a plain sentence", "another plain sentence"}, every)


def test_a_missing_file_of_general_texts_and_a_method_that_moves_none_are_refused(
    resized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change("train_adapter", method="lora", retain={"weight": 1.0, "texts": "general.txt"})
    assert run_stage(validate_data, []) == 1
    assert "general.txt is missing" in capsys.readouterr().err
    change("train_adapter", method="tokens", retain={"weight": 1.0})
    assert run_stage(validate_data, []) == 1
    assert "retain" in capsys.readouterr().err
