"""Figures of a training reach every place that `report_to` names."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.support import live_metrics as module
from tasks.support.live_metrics import Log, live_metrics


class Run:
    """As far as a run of Weights & Biases is used here."""

    def __init__(self, breaks: bool = False) -> None:
        self.breaks = breaks
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.code: int | None = None

    def log(self, figures: dict[str, float], step: int) -> None:
        if self.breaks:
            raise ConnectionError("gone")
        self.logged.append((step, figures))

    def finish(self, exit_code: int) -> None:
        self.code = exit_code


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    made = Run()
    given: list[dict[str, Any]] = []

    def init(**options: Any) -> Run:
        given.append(options)
        assert options["name"] == "mine" and options["config"] == {"epochs": 2}
        return made

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    return made


ARGUMENTS: dict[str, Any] = {"report_to": ["wandb", "mlflow"], "run_name": "mine"}


def test_every_place_gets_every_figure(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, dict[str, float]]] = []

    @contextmanager
    def opened(name: str, params: Any) -> Iterator[Log]:
        yield lambda step, figures: seen.append((step, dict(figures)))

    monkeypatch.setitem(module.OPENED, "mlflow", opened)
    with live_metrics(ARGUMENTS, {"epochs": 2}) as log:
        assert log is not None
        log(1, {"loss": 0.5})
        log(2, {"loss": 0.25})
    assert run.logged == seen == [(1, {"loss": 0.5}), (2, {"loss": 0.25})]
    assert run.code == 0


def test_nothing_is_opened_where_no_place_is_named() -> None:
    for arguments in ({}, {"report_to": "none"}, {"report_to": []}):
        with live_metrics(arguments, {}) as log:
            assert log is None


def test_a_server_that_fails_does_not_stop_the_training_and_is_reported_once(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    run.breaks = True
    with live_metrics(ARGUMENTS | {"report_to": ["wandb"]}, {"epochs": 2}) as log:
        assert log is not None
        log(1, {"loss": 0.5})
        log(2, {"loss": 0.5})
    (message,) = (record.message for record in caplog.records)
    assert message.startswith("wandb") and message.endswith(": gone")


def test_a_training_that_failed_is_recorded_as_failed(run: Run) -> None:
    with pytest.raises(RuntimeError), live_metrics(ARGUMENTS | {"report_to": ["wandb"]}, {"epochs": 2}):
        raise RuntimeError
    assert run.code == 1


def test_tensorboard_has_a_folder_for_each_start(in_folder: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for loss in (0.5, 0.25):
        with live_metrics({"report_to": ["tensorboard"]}, {"epochs": 2}) as log:
            assert log is not None
            log(3, {"loss": loss})
    found = {}
    for folder in sorted(Path("reports/tensorboard").iterdir()):
        events = EventAccumulator(str(folder))
        events.Reload()
        found[folder.name] = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == {"train_adapter-1": [(3, 0.5)], "train_adapter-2": [(3, 0.25)]}
