"""Any stage that a user writes runs without a change in flows/, and dvc.lock is what `dvc repro` would have written."""

import random
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows.engine.dag import read_dag
from flows.engine.stage_run import environment
from tests.conftest import ROOT
from tests.flows.engine.test_dag import graphs
from tests.flows.invoke import cli
from tests.flows.projects import Trivial, add_stage, journal, lock_bytes, run_dvc, write_definition, write_project
from tests.flows.test_faults import outcomes, run_flow

main = cli("run")

TEMPLATED = {
    "each": {
        "foreach": {"a": {"text": "x"}, "b": {"text": "y"}},
        "do": {"cmd": "echo ${item.text} > each-${key}.txt", "deps": ["raw.txt"], "outs": ["each-${key}.txt"]},
    },
    "grid": {
        "matrix": {"size": [1, 2], "kind": ["p"]},
        "cmd": "cat each-a.txt > grid-${item.size}-${item.kind}.txt",
        "deps": ["each-a.txt"],
        "outs": ["grid-${item.size}-${item.kind}.txt"],
    },
    "frozen": {"cmd": "echo f > frozen.txt", "deps": ["raw.txt"], "outs": ["frozen.txt"], "frozen": True},
    "plain": {
        "cmd": ["cat frozen.txt > plain.txt", "cat grid-2-p.txt >> plain.txt"],
        "deps": ["frozen.txt", "grid-2-p.txt"],
        "outs": [{"plain.txt": {"cache": False}}],
    },
}


def templated(root: Path) -> Path:
    """A project with all kinds of stages that dvc.yaml knows, and a file that `dvc add` tracks."""
    write_project(root, {})
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": TEMPLATED}, sort_keys=False), encoding="utf-8")
    (root / "big.csv").write_text("1,2\n", encoding="utf-8")
    (root / "frozen.txt").write_text("made elsewhere\n", encoding="utf-8")
    run_dvc(root, "add", "big.csv")
    add_stage(root, "big", {"cmd": "cat big.csv > big.txt", "deps": ["big.csv"], "outs": ["big.txt"]})
    return root


def test_foreach_matrix_frozen_and_added_files_run_as_dvc_runs_them(tmp_path: Path) -> None:
    twin = templated(tmp_path / "twin")
    run_dvc(twin, "repro")
    root = templated(tmp_path / "root")
    code, said = run_flow(root)
    assert code == 0, said
    assert {"each@a", "each@b", "grid@1-p", "grid@2-p", "frozen", "plain"} <= set(outcomes(root))
    assert lock_bytes(root) == lock_bytes(twin)
    assert (root / "plain.txt").read_bytes() == (twin / "plain.txt").read_bytes()
    code, said = run_flow(root)
    assert code == 0, said
    assert (said.count("│ Unchanged │"), said.count("│ Completed │")) == (len(outcomes(root)), 0)


def copying(graph: dict[str, list[str]], delays: dict[str, float]) -> dict[str, Trivial]:
    """Stages that join what they read, each after a pause."""
    return {name: Trivial(reads, before=f"sleep {delays[name]:.2f}") for name, reads in graph.items()}


def check_lock(folder: Path, graph: dict[str, list[str]], seed: int) -> None:
    """A first parallel run, and one after a stage was added, leave the lock file of `dvc repro`."""
    generator = random.Random(seed)
    stages = copying(graph, {name: generator.choice([0.0, 0.1, 0.3]) for name in graph})
    root, twin = (write_project(folder / name, stages) for name in ("flow", "twin"))
    for step in range(2):
        run_dvc(twin, "repro")
        code, said = run_flow(root, "--jobs", str(generator.choice([2, 8])))
        assert code == 0, said
        assert lock_bytes(root) == lock_bytes(twin)
        if step == 0:
            # DVC writes a later stage behind the others, wherever the graph has it.
            later = {"added": Trivial(), **stages}
            for place in (root, twin):
                write_definition(place, later)


@given(graphs(), st.integers(0, 1000))
@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_lock_file_of_any_dag_is_that_of_dvc_repro(
    tmp_path_factory: pytest.TempPathFactory, graph: dict[str, list[str]], seed: int
) -> None:
    check_lock(tmp_path_factory.mktemp("any"), graph, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(graphs(), st.integers(0, 1000))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_lock_file_of_many_dags_is_that_of_dvc_repro(
    tmp_path_factory: pytest.TempPathFactory, graph: dict[str, list[str]], seed: int
) -> None:
    check_lock(tmp_path_factory.mktemp("any"), graph, seed)


def test_independent_stages_run_at_the_same_time_beyond_the_number_of_cores(tmp_path: Path) -> None:
    # Each waits for all the others, so that it can only end beside them.
    here = "[ $(ls at-* | wc -l) = 4 ]"
    wait = f"touch at-{{0}}; for i in $(seq 300); do {here} && break; sleep 0.1; done; {here}"
    names = [f"s{number}" for number in range(4)]
    root = write_project(tmp_path / "project", {name: Trivial(before=wait.format(name)) for name in names})
    code, said = run_flow(root)
    assert code == 0, said
    assert sorted(journal(root)) == names


def test_a_plan_groups_code_and_tells_how_long_a_stage_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_project(tmp_path / "project", {})
    modules = [f"m{number}.py" for number in range(5)]
    for name in modules:
        (root / name).write_text("1\n", encoding="utf-8")
    add_stage(root, "one", {"cmd": "echo 1 > out.txt", "deps": [*modules, "raw.txt"], "outs": ["out.txt"]})
    assert run_flow(root)[0] == 0
    for name in modules:
        (root / name).write_text("2\n", encoding="utf-8")
    monkeypatch.chdir(root)
    assert main(["--plan"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("one: runs, ") and first.endswith(" s last time")
    assert second == "  code: 5 files (m0.py, m1.py, m2.py, ...)"


def test_two_hundred_stages_are_read_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_project(tmp_path / "project", {f"s{number:03}": Trivial() for number in range(200)})
    monkeypatch.chdir(root)
    started = time.process_time()
    assert len(read_dag(root)) == 200
    assert time.process_time() - started < 6


IMPORTED = """
import sys
from tests.flows.invoke import cli
code = cli("run")(["--no-server"])
heavy = {*"torch sentence_transformers transformers peft great_expectations mlflow prefect matplotlib".split()}
print("imported:", sorted(heavy & set(sys.modules)), code)
"""


def test_nothing_changed_with_the_registry_verified_imports_nothing_heavy(tmp_path: Path) -> None:
    root = write_project(tmp_path / "project", {"validate_data": Trivial()})
    record = '{"name": "m", "content_digest": "d"}'
    make = f"mkdir -p registered && echo '{record}' > registered/registration.json"
    add_stage(root, "register_model", {"cmd": make, "deps": ["validate_data.txt"], "outs": ["registered"]})
    files = root / "mlruns" / "m"
    files.mkdir(parents=True)
    (files / "model.safetensors").write_bytes(b"weights")
    with closing(sqlite3.connect(root / "mlflow.db")) as store:
        # The columns that MLflow 3.17 has; tests/test_chain.py compares the answers with MLflow's own.
        store.execute("CREATE TABLE model_versions (name, version, current_stage, storage_location)")
        store.execute("CREATE TABLE model_version_tags (key, value, name, version)")
        store.execute("CREATE TABLE registered_model_aliases (alias, version, name)")
        store.execute("INSERT INTO model_versions VALUES ('m', 1, 'None', ?)", (str(files),))
        store.execute("INSERT INTO model_version_tags VALUES ('content_digest', 'd', 'm', 1)")
        store.commit()
    env = environment() | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": ""}
    run_dvc(root, "repro")
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", IMPORTED], cwd=root, env=env, capture_output=True, text=True, check=True
        )
        if "imported: [] 0" in done.stdout:
            break
    assert set(outcomes(root).values()) == {"Unchanged"}
    assert "imported: [] 0" in done.stdout, done.stdout


def write_telling_project(root: Path, param: str) -> Path:
    """A project in Git with DVC; its stage tells where its code is, whether this is an experiment, and a param."""
    root.mkdir()
    shutil.copy(ROOT / "params.yaml", root)
    (root / "raw.txt").write_text("raw\n", encoding="utf-8")
    (root / "tasks").mkdir()
    (root / "tasks" / "__init__.py").touch()
    told = "import os, pathlib, tasks, yaml\n"
    told += "here = pathlib.Path(tasks.__file__).parent.parent == pathlib.Path.cwd()\n"
    told += (
        f"print(here, 'DVC_EXP_NAME' in os.environ, yaml.safe_load(open('params.yaml'))['train_adapter']['{param}'])\n"
    )
    (root / "tasks" / "tell.py").write_text(told, encoding="utf-8")
    stage = {
        "cmd": "python -m tasks.tell > told.txt",
        "deps": ["raw.txt", "tasks"],
        "outs": [{"told.txt": {"cache": False}}],
    }
    (root / "dvc.yaml").write_text(
        yaml.safe_dump({"stages": {"tell": stage | {"params": [f"train_adapter.{param}"]}}}), encoding="utf-8"
    )
    (root / ".gitignore").write_text("__pycache__/\n/seen.txt\n", encoding="utf-8")
    git = "-c user.name=a -c user.email=a@b.c"
    for command in ("init -q", "add .", f"{git} commit -qm one"):
        run_git(root, command)
    run_dvc(root, "init", "-q")
    run_git(root, "add .")
    run_git(root, f"{git} commit -qm two")
    return root


def test_an_experiment_uses_the_code_of_its_own_copy_and_registers_nothing(tmp_path: Path) -> None:
    root = write_telling_project(tmp_path / "project", "epochs")
    run_dvc(root, "exp", "run", "-q", "--temp", "-S", "train_adapter.epochs=9", "-n", "trial")
    assert not (root / "told.txt").exists(), "the workspace is left alone"
    assert run_git(root, "show refs/exps/" + exp_ref(root, "trial") + ":told.txt") == "True True 9\n"
    run_dvc(root, "exp", "run", "-q", "-S", "train_adapter.epochs=8", "-n", "here")
    assert (root / "told.txt").read_text(encoding="utf-8") == "True True 8\n"


@pytest.mark.slow
def test_queued_experiments_use_the_code_of_their_own_copies_and_register_nothing(tmp_path: Path) -> None:
    root = write_telling_project(tmp_path / "project", "method")
    for method in ("lora", "lora_and_tokens"):
        run_dvc(root, "exp", "run", "-q", "--queue", "-S", f"train_adapter.method={method}", "-n", f"with-{method}")
    # What is committed after they were queued is not theirs.
    (root / "tasks" / "tell.py").write_text("raise SystemExit('later code')\n", encoding="utf-8")
    run_dvc(root, "exp", "run", "-q", "--run-all", "--jobs", "2")
    assert not (root / "told.txt").exists(), "the workspace is left alone"
    for method in ("lora", "lora_and_tokens"):
        told = run_git(root, "show refs/exps/" + exp_ref(root, f"with-{method}") + ":told.txt")
        assert told == f"True True {method}\n"


def run_git(root: Path, command: str) -> str:
    """Run Git and return what it printed."""
    done = subprocess.run(["git", *command.split()], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout


def exp_ref(root: Path, name: str) -> str:
    """An experiment's reference, below refs/exps."""
    listed = run_git(root, "for-each-ref --format=%(refname) refs/exps").split()
    return next(entry for entry in listed if entry.endswith(f"/{name}")).removeprefix("refs/exps/")
