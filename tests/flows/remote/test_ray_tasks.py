"""Points and stages on a Ray cluster of two nodes, one of which is killed half-way: done again, once, elsewhere."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.remote.project_copy import local_config, require_remote
from flows.sweep.grid import FigureParams
from tests.conftest import ROOT
from tests.flows.invoke import cli
from tests.flows.projects import add_stage, lock_bytes, run_dvc, write_project
from tests.flows.sweep.test_sweep import EPOCHS, JOURNAL, git, write_sweep
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import read_json

# Longer than a worker needs to notice that its node is gone.
SECONDS = 15
# By itself Ray gives its workers what other programs leave of a core.
FAST = {"RAY_worker_niceness": "0"}


def write_cluster_project(root: Path, seconds: float = SECONDS) -> Path:
    """A project in Git with a DVC remote; its stage `train` says where it starts and that it ends."""
    write_project(root, {})
    run = (
        f"echo start {EPOCHS} >> ${JOURNAL}; sleep {seconds}; echo end {EPOCHS} >> ${JOURNAL}; "
        f"echo '{{\"loss\": '{EPOCHS}'}}' > figures.json"
    )
    add_stage(root, "prepare", {"cmd": "cp raw.txt prepared.txt", "deps": ["raw.txt"], "outs": ["prepared.txt"]})
    marked = {"deps": ["prepared.txt"], "params": ["train_adapter.epochs"], "meta": {"resources": {"cpus": 1}}}
    add_stage(root, "train", {"cmd": run, "outs": ["figures.json"], **marked})
    add_stage(root, "report", {"cmd": "cp figures.json report.txt", "deps": ["figures.json"], "outs": ["report.txt"]})
    (root / ".gitignore").write_text("/figures.json\n/prepared.txt\n/report.txt\n/reports/\n", encoding="utf-8")
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n", encoding="utf-8")
    run_dvc(root, "remote", "add", "--default", "store", str(root.parent / "store"))
    git(root)
    return root


@pytest.fixture(scope="module")
def environment_of_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the machines of the cluster find: this code, and where the stages of the tests keep their journal."""
    journal = tmp_path_factory.mktemp("cluster") / "journal.txt"
    before = dict(os.environ)
    os.environ.update({"PYTHONPATH": str(ROOT), JOURNAL: str(journal), "RAY_USAGE_STATS_ENABLED": "0"} | FAST)
    yield journal
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def cluster(environment_of_nodes: Path) -> Iterator[Any]:
    """A cluster of a head and one more node, of one core each."""
    utilities = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: extra cluster")
    pytest.importorskip("prefect_ray", reason="prefect-ray is not installed: extra cluster")
    import ray

    environment_of_nodes.unlink(missing_ok=True)
    node = {"num_cpus": 1, "object_store_memory": 80 * 1024 * 1024}
    made = utilities.Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    made.second = made.add_node(**node)
    yield made
    ray.shutdown()
    made.shutdown()


def lines(journal: Path) -> list[str]:
    return journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []


def kill_when(cluster: Any, journal: Path, starts: int) -> threading.Thread:
    """Kill the second node, without a word, a little after so many stages have started."""

    def kill() -> None:
        deadline = time.monotonic() + 200
        while sum(line.startswith("start") for line in lines(journal)) < starts and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(1)
        cluster.remove_node(cluster.second, allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_outlives_a_node_and_every_point_is_there_once(
    cluster: Any,
    environment_of_nodes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    # After the cluster, whose nodes have to be up within 30 s.
    request.getfixturevalue("prefect_server")
    root = write_cluster_project(tmp_path / "project")
    write_sweep(root, 4, 3, 2, 5)
    monkeypatch.chdir(root)
    killer = kill_when(cluster, environment_of_nodes, starts=2)
    code = cli("sweep")(["sweep.yaml", "--ray", cluster.address])
    killer.join()
    rows = read_json(root / "reports" / "sweep.json")
    assert code == 0, rows
    assert [(row["train_adapter.epochs"], row["loss"], row["best"]) for row in rows] == [
        (4, 4.0, False),
        (3, 3.0, False),
        (2, 2.0, True),
        (5, 5.0, False),
    ]
    said = lines(environment_of_nodes)
    assert sorted(line for line in said if line.startswith("end")) == ["end 2", "end 3", "end 4", "end 5"]
    assert sum(line.startswith("start") for line in said) > 4, "the killed node's point was begun again"
    assert sum(path.is_file() for path in (tmp_path / "store" / "runs").rglob("*")) == 5, "four points and prepare"
    assert cli("sweep")(["sweep.yaml"]) == 0
    assert lines(environment_of_nodes) == said, "what the cluster made is not made again"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_marked_stage_is_made_on_the_cluster_and_the_others_here(
    cluster: Any, environment_of_nodes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_cluster_project(tmp_path / "project", seconds=1)
    monkeypatch.chdir(root)
    monkeypatch.delenv(JOURNAL)
    assert cli("run")(["--no-server", "--ray", cluster.address]) == 0
    assert [line.split()[0] for line in lines(environment_of_nodes)] == ["start", "end"]
    assert read_json(root / "report.txt") == {"loss": 2}
    states = {stage["name"]: stage["outcome"] for stage in read_json(root / "reports" / "run.json")["stages"]}
    assert states == dict.fromkeys(["prepare", "train", "report"], "Completed")
    made = lock_bytes(root)
    monkeypatch.setenv(JOURNAL, str(tmp_path / "other"))
    run_dvc(root, "repro", "--force", "--no-run-cache")
    assert lock_bytes(root) == made


def test_without_ray_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(write_cluster_project(tmp_path / "project"))
    assert cli("run")(["--no-server", "--ray", "127.0.0.1:1"]) == 2
    assert 'pip install -e ".[cluster]"' in capsys.readouterr().err


def test_without_a_remote_a_cluster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabgraftError, match="dvc remote add"):
        require_remote(write_project(tmp_path / "project", {}))


def test_a_copy_finds_the_remote_wherever_it_lies(tmp_path: Path) -> None:
    root = write_project(tmp_path / "project", {})
    run_dvc(root, "remote", "add", "--default", "store", "../store")
    run_dvc(root, "remote", "add", "far", "s3://bucket/path")
    run_dvc(root, "remote", "modify", "far", "endpointurl", "https://example.org")
    config = local_config(root, share_cache=False)
    assert f"url = {tmp_path / 'store'}" in config and "remote = store" in config
    assert "url = s3://bucket/path" in config and "endpointurl = https://example.org" in config
    assert "no_scm = true" in config and str(root / ".dvc" / "cache") not in config
    assert f"dir = {root / '.dvc' / 'cache'}" in local_config(root, share_cache=True)


@pytest.mark.parametrize("resources", ["many", {"gpu": 1}, {"gpus": -1}, {"cpus": True}, {"nodes": 0}, {"nodes": 1.5}])
def test_resources_that_are_none_are_refused(resources: object, tmp_path: Path) -> None:
    from flows.engine.dag import read_dag

    root = write_project(tmp_path / "project", {})
    add_stage(root, "train", {"cmd": "true", "meta": {"resources": resources}, "outs": ["x"]})
    with pytest.raises(VocabgraftError, match=r"meta\.resources"):
        read_dag(root)


def test_the_default_figure_is_a_validation_figure() -> None:
    assert (FigureParams().stage, FigureParams().name) == ("train_adapter", "eval_loss")
