"""reports/run.json."""

import os
import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from flows.engine.dag import Stage
from flows.engine.run_record import FlowRun
from flows.engine.stage_outcome import Outcome, StageResult
from tests.conftest import ROOT
from tests.flows.projects import Trivial, run_dvc, write_project
from tests.flows.reporting.report_samples import (
    STARTED,
    broken,
    flow_run,
    outputs,
    results,
    write_outputs,
    write_run_record,
)
from vocabgraft.storage.artifacts import read_json

CHAIN = {"first": Trivial(), "second": Trivial(["first"], ["train_adapter.epochs"])}
STAGES = [Stage("first", (), (Path("first.txt"),)), Stage("second", ("first",), (Path("second.txt"),))]


def record_of(root: Path, *names: str) -> Any:
    """The record of a run in which these stages succeeded."""
    done = [StageResult(name, Outcome.COMPLETED, 1.0, "") for name in names]
    return write_run_record(FlowRun(STARTED, STAGES, done), root)


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after `dvc repro`."""
    root = write_project(tmp_path_factory.mktemp("record") / "project", CHAIN)
    run_dvc(root, "repro")
    return root


def test_a_record_has_times_states_and_versions(tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    write_outputs(tmp_path, outputs())
    record = write_run_record(flow_run(results(), prefect_run="abc"), tmp_path)
    assert record == read_json(tmp_path / "reports" / "run.json")
    assert datetime.fromisoformat(record["started"]) == STARTED
    assert datetime.fromisoformat(record["finished"]) > STARTED
    assert record["stages"][0] == {
        "name": "validate_data",
        "outcome": "Completed",
        "seconds": 12.34,
        "reason": "",
        "log": "",
    }
    assert record["failed"] is None and record["prefect_run"] == "abc"
    assert {"python", "torch", "sentence-transformers", "peft", "mlflow"} <= set(record["versions"])
    assert record["params"]["train_adapter"]["epochs"] == 2
    assert sorted(record["outputs"]) == sorted(outputs())
    assert record["checks"] == {
        "passed": 4,
        "failed": 0,
        "waived": 1,
        "too few to judge": 1,
        "does not apply": 1,
    }


def test_a_record_of_a_failed_run_has_what_the_stage_said(tmp_path: Path) -> None:
    record = write_run_record(flow_run(broken("merge_adapter", "no such luck")), tmp_path)
    assert record["failed"].splitlines()[0] == "merge_adapter: no such luck"
    assert record["params"] is None, "there is no params.yaml"
    assert "merge_adapter" not in record["inputs"]["stages"]


@pytest.mark.parametrize(("failing", "counted"), [("check_consistency", True), ("train_adapter", False)])
def test_checks_are_counted_where_this_run_wrote_them(tmp_path: Path, failing: str, counted: bool) -> None:
    write_outputs(tmp_path, outputs())
    run = flow_run(broken(failing, "no such luck"))
    assert (write_run_record(run, tmp_path)["checks"] is not None) == counted
    # What an earlier run left says nothing of this one.
    os.utime(tmp_path / "made" / "check_consistency" / "checks.json", (1, 1))
    assert write_run_record(run, tmp_path)["checks"] is None


def test_the_digest_of_the_inputs_changes_with_data_and_parameters_alone(reproduced: Path, tmp_path: Path) -> None:
    before = record_of(reproduced, "first", "second")
    assert before["inputs"]["files"].keys() == {"raw.txt"}, "what a stage made is no input"
    assert record_of(reproduced, "first", "second")["inputs"] == before["inputs"]
    for name, old, new in (("raw.txt", "raw", "other"), ("params.yaml", "  epochs: 2", "  epochs: 3")):
        root = tmp_path / name
        shutil.copytree(reproduced, root)
        text = (root / name).read_text(encoding="utf-8")
        assert text.count(old) >= 1
        (root / name).write_text(text.replace(old, new), encoding="utf-8")
        run_dvc(root, "repro")
        assert record_of(root, "first", "second")["inputs"]["digest"] != before["inputs"]["digest"], name


def test_inputs_of_a_stage_that_did_not_succeed_are_not_claimed(reproduced: Path) -> None:
    whole, part = record_of(reproduced, "first", "second"), record_of(reproduced, "first")
    assert part["inputs"]["stages"] == ["first"]
    assert part["inputs"]["digest"] != whole["inputs"]["digest"]


@pytest.mark.parametrize("changed", [[], ["dvc.lock"], ["file.txt"]])
def test_a_record_names_the_commit_and_whether_files_differ_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("dvc.lock", "file.txt"):
        (tmp_path / name).write_text("stages: {}\n", encoding="utf-8")
    (tmp_path / ".gitignore").write_text("/reports/\n", encoding="utf-8")
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "--message", "m"]):
        subprocess.run(["git", *command], check=True)
    for name in changed:
        (tmp_path / name).write_text("stages: {x: {}}\n", encoding="utf-8")
    record = write_run_record(FlowRun(STARTED, [], []), Path())
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert (record["git_commit"], record["git_dirty"]) == (head, changed == ["file.txt"])


def test_a_project_without_git_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert write_run_record(FlowRun(STARTED, [], []), Path())["git_commit"] == "none"
