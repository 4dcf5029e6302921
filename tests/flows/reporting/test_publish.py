"""What a run tells when it ends, and what happens when it cannot."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.engine.run_record import FlowRun
from flows.engine.stage_outcome import Outcome
from flows.reporting import publish as publishing
from flows.reporting.publish import publish
from tasks.registry.lookup import Registered
from tests.conftest import ROOT
from tests.flows.reporting.report_samples import broken, flow_run, outputs, registration, results, write_outputs
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import read_json, write_json

PAGE = Path("reports/report.html")
Logged = list[tuple[str, int, Path]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What a run left, with the page and the registration of an earlier one."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    write_outputs(tmp_path, outputs())
    (tmp_path / "reports").mkdir()
    (tmp_path / PAGE).write_text("of an earlier run", encoding="utf-8")
    write_json(tmp_path / "reports" / "registration.json", registration(champion=True))
    return tmp_path


@pytest.fixture(autouse=True)
def _no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.reporting.plots.draw", lambda name, data: "<svg></svg>")
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Logged:
    """What is given to a registry that has version 3 of the model as champion."""
    given: Logged = []
    version = Registered("sample", 3, ("champion", "challenger"), {})
    monkeypatch.setattr("tasks.registry.lookup.connect", lambda: None)
    monkeypatch.setattr("tasks.registry.lookup.find_by_digest", lambda client, name, digest: version)
    monkeypatch.setattr(
        "tasks.registry.register.log_report",
        lambda client, name, number, path, docs=None, plots=None: given.append((name, number, path)),
    )
    return given


def test_a_run_that_changed_nothing_leaves_the_report_of_what_its_stages_did(root: Path, logged: Logged) -> None:
    assert publish(flow_run(results()), root)
    unchanged = [replace(result, outcome=Outcome.UNCHANGED) for result in results()]
    (root / PAGE).write_text("of the run that did something", encoding="utf-8")
    assert publish(flow_run(unchanged), root)
    assert (root / PAGE).read_text(encoding="utf-8") == "of the run that did something"
    assert len(logged) == 1


def test_a_run_that_changed_nothing_tells_of_an_alias_that_moved(
    root: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publish(flow_run(results()), root)
    registered_as(monkeypatch, "challenger")
    assert publish(flow_run([replace(result, outcome=Outcome.UNCHANGED) for result in results()]), root)
    assert "Registered, not promoted" in (root / PAGE).read_text(encoding="utf-8")


def registered_as(monkeypatch: pytest.MonkeyPatch, *aliases: str, number: int = 3) -> None:
    """Let the registry have the model as this version."""
    version = Registered("sample", number, aliases, {})
    monkeypatch.setattr("tasks.registry.lookup.find_by_digest", lambda client, name, digest: version)


def test_the_report_of_a_registered_model_goes_to_the_run_of_its_version(root: Path, logged: Logged) -> None:
    assert publish(flow_run(results()), root)
    assert logged == [("sample", 3, root / PAGE)]
    assert "sample version 3 is the champion" in (root / PAGE).read_text(encoding="utf-8")
    record = read_json(root / "reports" / "run.json")["registration"]
    assert record["aliases"] == ["champion", "challenger"] and len(record["gates"]) == 4


def test_an_alias_that_moved_since_the_registration_is_seen(
    root: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered_as(monkeypatch, "challenger")
    assert publish(flow_run(results()), root)
    assert "Registered, not promoted" in (root / PAGE).read_text(encoding="utf-8")


def test_gates_of_another_version_are_not_shown(root: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    registered_as(monkeypatch, "champion", number=4)
    assert publish(flow_run(results()), root)
    assert read_json(root / "reports" / "run.json")["registration"]["gates"] == []


def test_a_failed_run_is_reported_and_leaves_the_registry_alone(root: Path, logged: Logged) -> None:
    assert publish(flow_run(broken("check_consistency", "2 of 13 checks failed")), root)
    assert logged == []
    page = (root / PAGE).read_text(encoding="utf-8")
    assert "Failed: check_consistency" in page and "of an earlier run" not in page


def test_an_experiment_leaves_the_registry_alone(root: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "trial")
    assert publish(flow_run(results()), root)
    assert logged == []
    assert "inside a DVC experiment" in (root / PAGE).read_text(encoding="utf-8")


def test_a_page_that_cannot_be_made_is_reported_and_no_older_one_replaces_it(
    root: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any) -> Path:
        raise ValueError("no such figure")

    monkeypatch.setattr(publishing, "write_report", fail)
    assert not publish(flow_run(results()), root)
    said = capsys.readouterr().err
    assert "the report was not written: no such figure" in said and "ValueError" in said, "with its traceback"
    assert not (root / PAGE).exists()
    assert read_json(root / "reports" / "run.json")["failed"] is None
    assert logged == []


def test_a_damaged_output_is_reported_without_a_traceback(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "made" / "register_model" / "registration.json").write_text("{", encoding="utf-8")
    assert not publish(flow_run(results()), root)
    said = capsys.readouterr().err
    assert "registration.json is damaged" in said and "Traceback" not in said


def test_a_store_that_refuses_the_page_is_reported_and_the_page_stays(
    root: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any) -> None:
        raise VocabgraftError("the disk is full")

    monkeypatch.setattr("tasks.registry.register.log_report", refuse)
    assert not publish(flow_run(results()), root)
    assert "not in MLflow: the disk is full" in capsys.readouterr().err
    assert "Promoted" in (root / PAGE).read_text(encoding="utf-8")


def test_a_run_without_a_dag_has_a_report(tmp_path: Path) -> None:
    run = FlowRun(flow_run([]).started, [], [], failure="dvc.yaml is damaged")
    assert publish(run, tmp_path)
    assert "dvc.yaml is damaged" in (tmp_path / PAGE).read_text(encoding="utf-8")


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    heavy = {"torch", "sentence_transformers", "mlflow", "matplotlib", "jinja2", "prefect", "dvc", "pandas"}
    code = f"import flows.commands.run, flows.reporting.gather, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_metrics_are_shown_beside_those_of_the_champion(
    root: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    champion = Registered("sample", 2, ("champion",), {})
    registered_as(monkeypatch, "challenger")
    monkeypatch.setattr("tasks.registry.lookup.find_by_alias", lambda client, name, alias: champion)
    figures = {3: {"merged.terms.all.mrr": 64.5, "base.terms.all.mrr": 1.0}, 2: {"merged.terms.all.mrr": 60.0}}
    monkeypatch.setattr("tasks.registry.lookup.figures_of", lambda client, entry: figures[entry.version])
    run = flow_run(results())
    table = publishing.metrics_against_champion(run.stages, run.results, root)
    assert table is not None and "| terms.all.mrr | 64.50 | 60.00 | +4.50 |" in table
    assert "base" not in table
    unchanged = [replace(result, outcome=Outcome.UNCHANGED) for result in results()]
    assert publishing.metrics_against_champion(run.stages, unchanged, root) is None
