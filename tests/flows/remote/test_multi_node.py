"""A stage on two machines of a Ray cluster at the same time: one result, that of one machine, also when one is lost."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.engine.stage_run import environment
from tasks.extend_tokenizer import extend_tokenizer
from tasks.resize_base import resize_base
from tasks.support.stage import run_stage
from tasks.validate_data import validate_data
from tests.conftest import ROOT
from tests.flows.invoke import cli
from tests.flows.projects import add_stage, run_dvc, write_project
from tests.flows.remote.test_ray_tasks import cluster, environment_of_nodes, lines
from tests.flows.sweep.test_sweep import JOURNAL, git
from vocabgraft.storage.artifacts import hash_files, read_json

__all__ = ["cluster", "environment_of_nodes"]

READ = ("data/resize_base", "data/extend_tokenizer", "data/validate_data")
OUT = Path("data/train_adapter")
# Longer than a worker needs to notice that its machine is gone.
SECONDS = 15


@pytest.fixture
def made(tiny_project: Path) -> Path:
    """The tiny project up to its resized base, with a training by two processes that keeps its best weights."""
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["resize_base"]["initialisation"] = "subword_mean"
    params["train_adapter"] |= {
        "method": "lora_and_tokens",
        "epochs": 2,
        "precision": "float32",
        "best_metric": "eval_loss",
        "launcher": {"processes": 2},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    stages: tuple[Callable[..., None], ...] = (validate_data, extend_tokenizer, resize_base)
    for stage in stages:
        assert run_stage(stage, []) == 0
    return tiny_project


def write_marked(root: Path, stages: dict[str, dict[str, object]]) -> Path:
    """A project in Git with a DVC remote."""
    write_project(root, {})
    for name, entry in stages.items():
        add_stage(root, name, entry)
    outs = "".join(f"/{out}\n" for entry in stages.values() for out in entry["outs"])  # type: ignore[attr-defined]
    (root / ".gitignore").write_text(f"{outs}/reports/\n/.checkpoints/\n", encoding="utf-8")
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n", encoding="utf-8")
    run_dvc(root, "remote", "add", "--default", "store", str(root.parent / "store"))
    return root


def write_training(root: Path, made: Path) -> Path:
    """A project whose stage train_adapter is the real one, marked for two machines."""
    copying = ["mkdir -p data", *(f"cp -r {made / path} data/" for path in READ)]
    command = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["train_adapter"]["cmd"]
    marked = {"params": ["seed", "train_adapter"], "meta": {"resources": {"cpus": 1, "nodes": 2}}}
    write_marked(
        root,
        {
            "prepare": {"cmd": " && ".join(copying), "deps": ["raw.txt"], "outs": list(READ)},
            "train_adapter": {"cmd": command, "deps": list(READ), "outs": [str(OUT)], **marked},
        },
    )
    shutil.copy(made / "params.yaml", root)
    git(root)
    return root


def trained_by_one_machine(made: Path) -> dict[str, str]:
    """The hashes of what two processes of one machine make."""
    command = [sys.executable, "-m", "tasks.train_adapter"]
    variables = environment() | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=made, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return hash_files(made / OUT)


def machines_of_groups() -> list[set[str]]:
    """The machines on which each group of pieces was placed."""
    from ray.util import placement_group_table

    return [set(group["bundles_to_node_id"].values()) for group in placement_group_table().values()]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_training_on_two_machines_ends_with_the_bytes_of_one(
    environment_of_nodes: Path,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: extra cluster")
    expected = trained_by_one_machine(made)
    # Not before: its nodes take a core's time too.
    cluster = request.getfixturevalue("cluster")
    root = write_training(tmp_path / "project", made)
    monkeypatch.chdir(root)
    assert cli("run")(["--no-server", "--ray", cluster.address]) == 0
    assert hash_files(root / OUT) == expected
    ray.init(address=cluster.address, log_to_driver=False)
    (machines,) = machines_of_groups()
    assert len(machines) == 2
    assert sum(path.is_file() for path in (tmp_path / "store" / "runs").rglob("*")) == 2, "prepare and one training"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_when_a_machine_is_lost_the_whole_is_done_again_and_is_there_once(
    cluster: Any,
    environment_of_nodes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = (
        f"echo start $VOCABGRAFT_NODE >> ${JOURNAL}; sleep {SECONDS}; echo end $VOCABGRAFT_NODE >> ${JOURNAL}; "
        "echo $VOCABGRAFT_NODES > out.txt"
    )
    stage = {"cmd": run, "deps": ["raw.txt"], "outs": ["out.txt"], "meta": {"resources": {"cpus": 1, "nodes": 2}}}
    root = write_marked(tmp_path / "project", {"train": stage})
    git(root)
    monkeypatch.chdir(root)

    codes: list[int] = []
    arguments = ["--no-server", "--ray", cluster.address]
    # Ray starts nodes in the main thread alone.
    running = threading.Thread(target=lambda: codes.append(cli("run")(arguments)))
    running.start()
    while len(lines(environment_of_nodes)) < 2 and running.is_alive():
        time.sleep(0.2)
    cluster.remove_node(cluster.second, allow_graceful=False)
    cluster.add_node(num_cpus=1, object_store_memory=80 * 1024 * 1024)
    running.join()
    said = capfd.readouterr().out
    assert codes == [0], said
    assert "one of its 2 machines was lost" in said and "try 2 of 3" in said, said
    assert (root / "out.txt").read_text(encoding="utf-8") == "2\n"
    started = [line for line in lines(environment_of_nodes) if line.startswith("start")]
    assert sorted(started) == ["start 0", "start 0", "start 1", "start 1"], "both were begun again"
    assert read_json(root / "reports" / "run.json")["stages"][0]["outcome"] == "Completed"
    assert sum(path.is_file() for path in (tmp_path / "store" / "runs").rglob("*")) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_when_one_of_two_fails_the_other_is_not_waited_for_and_nothing_is_pushed(
    cluster: Any,
    environment_of_nodes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("flows.remote.multi_node.SECONDS_FOR_THE_OTHERS", 1.0)
    run = f"echo $$ >> ${JOURNAL}; test $VOCABGRAFT_NODE = 0 || {{ echo no luck; exit 1; }}; sleep 300; touch out.txt"
    stage = {"cmd": run, "deps": ["raw.txt"], "outs": ["out.txt"], "meta": {"resources": {"cpus": 1, "nodes": 2}}}
    root = write_marked(tmp_path / "project", {"train": stage})
    git(root)
    monkeypatch.chdir(root)
    assert cli("run")(["--no-server", "--ray", cluster.address]) == 1
    assert "no luck" in capfd.readouterr().out
    assert read_json(root / "reports" / "run.json")["stages"][0]["outcome"] == "Failed"
    assert not (tmp_path / "store" / "runs").exists()
    deadline = time.monotonic() + 20
    while any(_runs(int(pid)) for pid in lines(environment_of_nodes)):
        assert time.monotonic() < deadline, "the other's stage is left running"
        time.sleep(0.2)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_without_a_cluster_a_marked_stage_runs_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = {
        "cmd": "printenv VOCABGRAFT_NODES > out.txt || echo here > out.txt",
        "deps": ["raw.txt"],
        "outs": ["out.txt"],
    }
    root = write_marked(tmp_path / "project", {"train": stage | {"meta": {"resources": {"cpus": 1, "nodes": 2}}}})
    monkeypatch.chdir(root)
    assert cli("run")(["--no-server"]) == 0
    assert (root / "out.txt").read_text(encoding="utf-8") == "here\n"
