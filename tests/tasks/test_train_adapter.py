"""The stage train_adapter: what it leaves behind, and what it says while it runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tasks._registry import EXPERIMENT, connect, metric_name
from tasks._stage import run_stage
from tasks.extend_tokenizer import extend_tokenizer
from tasks.resize_base import resize_base
from tasks.train_adapter import CHECKPOINTS, CURVE_PLOT, train_adapter
from tasks.validate_data import validate_data
from vocabgraft.trainer import AdapterTrainer

OUT = Path("data/train_adapter")


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.fixture
def resized(tiny_project: Path) -> Path:
    """The tiny project up to the resized base."""
    change("resize_base", initialisation="subword_mean")
    stages: tuple[Callable[..., None], ...] = (validate_data, extend_tokenizer, resize_base)
    for stage in stages:
        assert run_stage(stage, []) == 0
    return tiny_project


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


def test_live_metrics_go_to_a_run_of_their_own(resized: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{resized}/live.db")
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
