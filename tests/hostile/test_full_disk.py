"""A disk that is full while the flow itself writes: one message, the hook told, and nothing half-written."""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.engine.run_record import RUN_RECORD
from tests.flows.conftest import prefect_server
from tests.flows.invoke import cli
from tests.flows.projects import Trivial, write_project
from tests.flows.reporting.test_webhook import Hook, hook, set_hook
from vocabgraft.storage.artifacts import read_json

__all__ = ["hook", "prefect_server"]

main = cli("run")
Fill = Callable[[Callable[[Path], bool]], None]


@pytest.fixture(scope="module")
def ran_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages after their first run; never changed."""
    stages = {"first": Trivial(), "second": Trivial(["first"])}
    root = write_project(tmp_path_factory.mktemp("full_disk") / "project", stages)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["--no-server"]) == 0
    return root


@pytest.fixture
def project(ran_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: Hook) -> Path:
    """A copy of the project as the working folder, with a hook that runs when a run fails."""
    root = Path(shutil.copytree(ran_once, tmp_path / "project"))
    monkeypatch.chdir(root)
    set_hook(root, hook.url)
    return root


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Let writes to the chosen files find the disk full, in the flow's own process."""

    def fill(chosen: Callable[[Path], bool]) -> None:
        write = Path.write_text

        def full(self: Path, text: str, *given: Any, **named: Any) -> int:
            if chosen(self):
                write(self, text[: len(text) // 2], *given, **named)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
            return write(self, text, *given, **named)

        monkeypatch.setattr(Path, "write_text", full)

    return fill


def files_of(root: Path) -> dict[str, bytes]:
    """What the user and DVC know the project by."""
    return {name: (root / name).read_bytes() for name in ("params.yaml", "dvc.yaml", "dvc.lock")}


def left_over(root: Path) -> list[Path]:
    return [path for folder in (root, root / ".dvc" / "tmp", root / "reports") for path in folder.glob("*.partial")]


@pytest.mark.parametrize(
    ("name", "options"),
    [("build_model.order.json", ["--force"]), ("params.yaml", ["--set", "seed=18"]), ("", ["--set", "seed=18"])],
    ids=["the order of dvc.lock", "--set", "everything"],
)
def test_the_run_ends_with_one_message_and_the_hook_gets_it(
    name: str, options: list[str], project: Path, hook: Hook, fill: Fill, capsys: pytest.CaptureFixture[str]
) -> None:
    check_one_message(name, ["--no-server", *options], project, hook, fill, capsys)


def test_a_run_under_prefect_ends_with_the_same_message(
    prefect_server: None,
    project: Path,
    hook: Hook,
    fill: Fill,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Prefect's handler may still write to the captured stream of an earlier test, which is closed.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    check_one_message("build_model.order.json", ["--force"], project, hook, fill, capsys)


def check_one_message(
    name: str, options: list[str], project: Path, hook: Hook, fill: Fill, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_of(project)
    capsys.readouterr()
    fill(lambda path: name in path.name)
    assert main(options) == 2
    said = capsys.readouterr().err
    assert said.count("vocabgraft: the disk is full while writing") == 1 and "Traceback" not in said
    (told,) = hook.told
    assert "the disk is full while writing" in told["failure"]
    assert files_of(project) == before
    assert left_over(project) == []


def test_a_disk_that_is_full_when_dvc_lock_is_put_in_order_is_reported_and_the_next_run_mends_it(
    project: Path, hook: Hook, fill: Fill, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (project / "dvc.lock").read_text(encoding="utf-8")
    stages = whole.index("  first:"), whole.index("  second:")
    # As stages that run side by side may leave it.
    reordered = whole[: stages[0]] + whole[stages[1] :] + whole[stages[0] : stages[1]]

    def reorder(*_: object) -> None:
        (project / "dvc.lock").write_bytes(reordered.encode())

    monkeypatch.setattr("flows.engine.scheduler.keep_seconds", reorder)
    fill(lambda path: path.name.startswith(".dvc.lock"))
    assert main(["--no-server", "--force"]) == 2
    said = capsys.readouterr().err
    assert said.count("the disk is full while writing") == 1 and "Traceback" not in said
    (told,) = hook.told
    assert "dvc.lock" in told["failure"]
    assert [stage["outcome"] for stage in read_json(project / RUN_RECORD)["stages"]] == ["Completed", "Completed"]
    assert (project / "dvc.lock").read_text(encoding="utf-8") == reordered, "whole, in the other order"
    monkeypatch.undo()
    monkeypatch.chdir(project)
    assert main(["--no-server"]) == 0
    assert (project / "dvc.lock").read_text(encoding="utf-8") == whole
    assert left_over(project) == []


def test_a_forecast_that_cannot_be_written_fails_no_stage(project: Path, fill: Fill) -> None:
    fill(lambda path: "seconds" in path.name)
    assert main(["--no-server", "--force"]) == 0


def test_a_report_that_cannot_be_written_is_one_message(
    project: Path, fill: Fill, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(lambda path: "report.html" in path.name or "run.json" in path.name)
    assert main(["--no-server", "--force"]) == 3
    said = capsys.readouterr().err
    assert "the report was not written" in said and "Traceback" not in said
    assert not (project / "reports" / "report.html").exists()
