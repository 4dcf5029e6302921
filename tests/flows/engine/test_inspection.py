import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.engine.dag import changes, read_dag
from flows.engine.stage_run import DvcProcesses, Inspection
from tests.conftest import ROOT
from tests.flows.projects import Trivial, add_stage, run_dvc, write_project
from vocabgraft.errors import VocabgraftError

CHAIN = {"first": Trivial(), "second": Trivial(["first"], ["train_adapter"]), "ümläut": Trivial(["first"])}
LIMITED = {
    "cmd": "cat raw.txt > limited.txt",
    "deps": ["raw.txt"],
    "outs": ["limited.txt"],
    "meta": {"timeout_s": 2.5, "retries": 0, "resources": {"gpus": 1}},
}


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain after `dvc repro`; never changed."""
    root = write_project(tmp_path_factory.mktemp("inspection") / "project", CHAIN)
    run_dvc(root, "repro")
    return root


@pytest.fixture
def project(reproduced: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it with a changed file, as the working folder."""
    root = Path(shutil.copytree(reproduced, tmp_path / "project"))
    add_stage(root, "limited", LIMITED)
    (root / "raw.txt").write_text("changed\n", encoding="utf-8")
    with chdir(root):
        yield root


@contextmanager
def reading(root: Path) -> Iterator[Inspection]:
    """An inspection at work in a project."""
    with (root / "lock").open("w") as lock:
        processes = DvcProcesses(root, lock.fileno())
        try:
            yield Inspection(processes)
        finally:
            processes.close()


def test_another_process_reads_what_this_one_would(project: Path) -> None:
    with reading(project) as inspection:
        stages, changed = inspection.result(pytest.fail)
    assert (stages, changed) == (read_dag(project), changes(project))
    assert next(stage for stage in stages if stage.name == "limited").timeout == 2.5
    assert set(changed) == {"first", "limited"}, "or nothing was read"


def test_what_dvc_refuses_is_reported_by_the_reader(project: Path) -> None:
    (project / "dvc.yaml").write_text("stages: {first: {cmd: true, deps: [first.txt], outs: [first.txt]}}\n")
    with pytest.raises(VocabgraftError) as here:
        read_dag(project)
    with reading(project) as inspection, pytest.raises(VocabgraftError) as there:
        inspection.result(pytest.fail)
    assert str(there.value) == str(here.value)


def test_a_reader_that_was_killed_is_reported(project: Path) -> None:
    # While DVC's lock is held it waits.
    with Repo(str(project)).lock, reading(project) as inspection:
        os.kill(inspection.pid, signal.SIGKILL)
        with pytest.raises(VocabgraftError, match=r"ended without an answer; run again"):
            inspection.result(pytest.fail)


def test_a_module_of_the_project_s_folder_stands_in_for_none_of_the_reader_s(project: Path) -> None:
    (project / "flows.py").write_text("raise SystemExit('the wrong flows')\n")
    (project / "base64.py").write_text("raise SystemExit('the wrong base64')\n")
    assert not (project / "flows").exists() and (ROOT / "flows").is_dir()
    with reading(project) as inspection:
        assert inspection.result(pytest.fail)[0] == read_dag(project)
