"""A sweep runs every point once in a copy of its own, tells of those that fail, and goes on where it was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from flows.remote.project_copy import committed_code
from flows.sweep.grid import FigureParams, Point, SweepParams, figures_of, grid, read_sweep
from flows.sweep.log import DIGEST_TAG, TABLE
from flows.sweep.sweep import PLACE, PointResult, _log, best_of
from tasks.registry.lookup import connect, experiment_id
from tests.conftest import ROOT, write_lines
from tests.flows.invoke import cli
from tests.flows.projects import add_stage, write_project
from tests.flows.test_build_model import newest_artifact
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import read_json

# Where points write that they ran; they run in copies of the project.
JOURNAL = "SWEEP_JOURNAL"
EPOCHS = "$(sed -n 's/^  epochs: *//p' params.yaml)"
IGNORED = ["/figures.json", "/prepared.txt", "/reports/", "/mlflow.db*", "/mlruns/", "/mlartifacts/"]
FIGURE = {"stage": "train", "file": "figures.json", "name": "loss", "goal": "min"}


def write_sweep_project(root: Path, seconds: float = 0.0) -> Path:
    """A project in Git whose loss is the number of epochs; 13 epochs fail."""
    write_project(root, {})
    run = f"sleep {seconds}; echo {EPOCHS} >> ${JOURNAL}; test {EPOCHS} != 13"
    write = f"echo '{{\"loss\": '{EPOCHS}'}}' > figures.json"
    stage = {"cmd": f"{run} && {write}", "deps": ["raw.txt"], "params": ["train_adapter.epochs"]}
    add_stage(root, "prepare", {"cmd": "cp raw.txt prepared.txt", "deps": ["raw.txt"], "outs": ["prepared.txt"]})
    add_stage(root, "train", stage | {"deps": ["prepared.txt"], "outs": ["figures.json"]})
    write_lines(root / ".gitignore", IGNORED)
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n", encoding="utf-8")
    git(root)
    return root


def git(root: Path) -> None:
    """Commit all of it."""
    for command in ("init -q", "add .", "-c user.name=t -c user.email=t@t commit -qm first"):
        subprocess.run(["git", *command.split()], cwd=root, check=True)


def write_sweep(root: Path, *epochs: object) -> Path:
    content = {"params": {"train_adapter.epochs": list(epochs)}, "figure": FIGURE}
    path = root / "sweep.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def ran(root: Path) -> list[str]:
    path = root.parent / "journal.txt"
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def sweep_in(root: Path, *arguments: str) -> "subprocess.Popen[str]":
    journal = str(root.parent / "journal.txt")
    variables = {"PYTHONPATH": str(ROOT), JOURNAL: journal, "MLFLOW_TRACKING_URI": "", "PREFECT_API_URL": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "sweep", "sweep.yaml", *arguments],
        cwd=root,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> tuple[Path, int, str]:
    """A project after a sweep of three points, of which one fails; its exit code and what it said."""
    root = write_sweep_project(tmp_path_factory.mktemp("sweep") / "project")
    write_sweep(root, 5, 3, 13)
    new_store(root / "mlflow.db")
    process = sweep_in(root)
    said, _ = process.communicate(timeout=280)
    return root, process.returncode, said


def test_every_point_runs_once_and_the_best_is_marked(swept: tuple[Path, int, str]) -> None:
    root, _, said = swept
    assert sorted(ran(root)) == ["13", "3", "5"]
    rows = read_json(root / "reports" / "sweep.json")
    assert [(row["train_adapter.epochs"], row["loss"], row["best"]) for row in rows] == [
        (5, 5.0, False),
        (3, 3.0, True),
        (13, None, False),
    ]
    assert "vocabgraft run --set train_adapter.epochs=3\n" in said
    assert (root / "reports" / "sweep.csv").read_text(encoding="utf-8").count("\n") == 4


def test_a_failed_point_is_reported_with_its_reason_and_the_others_go_on(swept: tuple[Path, int, str]) -> None:
    root, code, _ = swept
    assert code == 1
    row = read_json(root / "reports" / "sweep.json")[2]
    assert row["reason"].startswith("train: ")


def test_a_sweep_leaves_the_project_and_its_lock_file_as_they_were(swept: tuple[Path, int, str]) -> None:
    root = swept[0]
    status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    assert status.stdout.splitlines() == ["?? sweep.yaml"]
    assert not (root / "dvc.lock").exists()


def test_the_table_is_logged_with_a_run_of_each_point_and_nothing_is_registered(
    swept: tuple[Path, int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = swept[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    client = connect()
    experiment = experiment_id(client)
    (whole,) = client.search_runs([experiment], f"tags.`{DIGEST_TAG}` LIKE '%'")
    assert (whole.info.run_name, whole.info.status, whole.data.metrics) == ("sweep", "FINISHED", {"loss": 3.0})
    logged = client.load_table(experiment, TABLE, [whole.info.run_id])
    assert list(logged["train_adapter.epochs"]) == [5, 3, 13] and list(logged["best"]) == [False, True, False]
    points = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{whole.info.run_id}'")
    told = {point.info.run_name: (point.info.status, point.data.metrics.get("loss")) for point in points}
    assert told == {"epochs=5": ("FINISHED", 5.0), "epochs=3": ("FINISHED", 3.0), "epochs=13": ("FAILED", None)}
    assert [point.data.params for point in points if point.data.tags["best"] == "true"] == [
        {"train_adapter.epochs": "3"}
    ]
    assert not client.search_registered_models() and not client.search_model_versions()


def test_the_table_is_logged_once_and_shown_in_prefect(
    swept: tuple[Path, int, str], prefect_server: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL

    root = swept[0]
    monkeypatch.chdir(root)
    monkeypatch.setenv(JOURNAL, str(root.parent / "journal.txt"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
    assert cli("sweep")(["sweep.yaml"]) == 1
    client = connect()
    assert len(client.search_runs([experiment_id(client)])) == 4
    shown = newest_artifact("sweep").splitlines()
    assert shown[0] == "| train_adapter.epochs | loss | seconds | reason |"
    assert shown[2].startswith("| 5 | 5.0 |") and shown[3].startswith("| **3** | **3.0** |")
    assert "train: " in shown[4]


def test_a_store_that_is_down_leaves_the_table_and_says_so(
    swept: tuple[Path, int, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = swept[0]
    monkeypatch.chdir(root)
    sweep = read_sweep(Path("sweep.yaml"))
    rows = read_json(root / "reports" / "sweep.json")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hidden-word@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert not _log(rows, sweep, "sweep")
    said = capsys.readouterr().err
    assert "the table is in reports/sweep.json, but not in MLflow" in said and "hidden-word" not in said


def test_what_is_done_is_not_run_again_and_what_failed_is(swept: tuple[Path, int, str]) -> None:
    root = swept[0]
    before = ran(root)
    process = sweep_in(root)
    said, _ = process.communicate(timeout=280)
    assert "3 points, 2 of them done" in said
    assert ran(root)[len(before) :] == ["13"]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_nothing_is_left_running(tmp_path: Path) -> None:
    root = write_sweep_project(tmp_path / "project", seconds=8)
    write_sweep(root, 1, 2, 3, 4)
    process = sweep_in(root, "--jobs", "2")
    while not list((root / PLACE).glob("*.json")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    time.sleep(4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list((root / PLACE).glob("*.json")))
    process = sweep_in(root)
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert f"4 points, {done} of them done" in said
    assert sorted(ran(root)) == ["1", "2", "3", "4"], "a stage writes at its end: none was killed there, none ran twice"


@pytest.mark.slow
def test_a_sweep_that_gets_a_signal_ends_its_points(tmp_path: Path) -> None:
    root = write_sweep_project(tmp_path / "project", seconds=60)
    write_sweep(root, 1, 2)
    process = sweep_in(root)
    while not list((root / PLACE).glob("*/.dvc/tmp/build_model.lock")):
        time.sleep(0.2)
    time.sleep(3)
    process.terminate()
    said, _ = process.communicate(timeout=40)
    assert process.returncode == 143 and "stopped" in said
    assert ran(root) == []


def params_text() -> str:
    return (ROOT / "params.yaml").read_text(encoding="utf-8")


def test_a_grid_has_every_combination_once_with_a_digest_of_its_own() -> None:
    values = {"train_adapter.epochs": [1, 2, 1], "train_adapter.method": ["tokens", "lora"]}
    points = grid(SweepParams(params=values), params_text(), "commit")
    assert [tuple(point.values.values()) for point in points] == [
        (1, "tokens"),
        (1, "lora"),
        (2, "tokens"),
        (2, "lora"),
    ]
    assert len({point.digest for point in points}) == 4
    other = grid(SweepParams(params=values), params_text(), "other")
    assert not {point.digest for point in points} & {point.digest for point in other}


def test_a_digest_is_that_of_the_values_and_not_of_their_spelling() -> None:
    (one,) = grid(SweepParams(params={"train_adapter.scale": [20.0]}), params_text(), "c")
    (two,) = grid(SweepParams(params={"train_adapter.scale": [20]}), params_text() + "# a comment\n", "c")
    assert one.digest == two.digest


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("params: {}", "params"),
        ("params: {train_adapter.epochs: []}", "train_adapter.epochs"),
        ("figure: {stage: train_adapter}", "params: Field required"),
        ("params: {seed: [1]}\nfigure: {stage: evaluate_model}", "test splits"),
        ("params: {seed: [1]}\nfigure: {goal: most}", "goal"),
        ("params: {seed: [1]}\nparam: 3", "param"),
        ("- 1", "dictionary"),
        ("a: [", "not YAML"),
    ],
)
def test_a_sweep_file_that_is_wrong_is_refused_with_what_is_wrong(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(VocabgraftError) as caught:
        read_sweep(path)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"train_adapter.rank": [1]}, "train_adapter.rank=1"),
        ({"nothing.at_all": [1]}, "there is no 'nothing'"),
        ({"train_adapter.epochs": [-1]}, "train_adapter.epochs"),
    ],
)
def test_a_param_that_does_not_exist_or_may_not_be_so_is_refused(values: dict[str, list[int]], said: str) -> None:
    with pytest.raises(VocabgraftError) as caught:
        grid(SweepParams(params=values), params_text(), "c")
    assert said in str(caught.value) and "/tmp" not in str(caught.value)


def test_code_that_differs_from_the_commit_is_refused(tmp_path: Path) -> None:
    root = write_sweep_project(tmp_path / "project")
    assert committed_code(root)[1]
    (root / "params.yaml").write_text("seed: 1\n", encoding="utf-8")
    (root / "note.txt").write_text("mine\n", encoding="utf-8")
    assert committed_code(root)[1], "params.yaml goes with each copy, and an unknown text file is no code"
    (root / "own.py").write_text("", encoding="utf-8")
    with pytest.raises(VocabgraftError, match=r"own\.py"):
        committed_code(root)
    (root / "own.py").unlink()
    (root / "raw.txt").write_text("other\n", encoding="utf-8")
    with pytest.raises(VocabgraftError, match=r"raw\.txt"):
        committed_code(root)


def test_a_folder_without_a_commit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_project(tmp_path / "project", {})
    path = write_sweep(root, 1)
    monkeypatch.chdir(root)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert cli("sweep")([str(path)]) == 2
    assert "copies are made from a commit" in capsys.readouterr().err


# 900 rows of one dataset and 100 of another: the weighted means, which the trainer logs, are 1.2 and 1.45, the plain
# ones 2.0 and 1.25.
LOG = [
    {"phase": 1, "step": 1, "loss": 9.0},
    {"phase": 1, "step": 2, "eval_large_loss": 1.0, "eval_large_mrr": 0.9},
    {"phase": 1, "step": 2, "eval_small_loss": 3.0},
    {"phase": 1, "step": 2, "eval_loss": 1.2},
    {"phase": 1, "step": 4, "eval_large_loss": 1.5, "eval_large_mrr": 0.5},
    {"phase": 1, "step": 4, "eval_small_loss": 1.0},
    {"phase": 1, "step": 4, "eval_loss": 1.45},
    {"phase": 1, "step": 5, "train_loss": 1.0},
]


def figures_where_kept(*kept: dict[str, int]) -> dict[str, float]:
    return figures_of(json.dumps({"log": [*LOG, *kept], "final_loss": 9.0}))


def test_the_metrics_of_a_training_are_the_logged_ones_of_the_step_that_it_kept() -> None:
    best = {"eval_large_loss": 1.0, "eval_large_mrr": 0.9, "eval_small_loss": 3.0, "eval_loss": 1.2}
    assert figures_where_kept({"phase": 1, "step": 5, "kept_step": 2}) == best
    last = {"eval_large_loss": 1.5, "eval_large_mrr": 0.5, "eval_small_loss": 1.0, "eval_loss": 1.45}
    assert figures_where_kept({"phase": 1, "step": 5, "kept_step": 5}) == last


def test_an_earlier_phase_has_no_metrics_of_the_weights_that_the_last_one_kept() -> None:
    assert figures_where_kept({"phase": 1, "step": 5, "kept_step": 2}, {"phase": 2, "step": 3, "kept_step": 3}) == {}


def test_the_figures_of_another_file_are_its_numbers() -> None:
    assert figures_of('{"a": {"b": 1, "c": true}, "d": [2.5], "e": "x"}') == {"a.b": 1.0, "d.0": 2.5}


def result(figure: float | None) -> PointResult:
    return PointResult(Point({}, "", str(figure)), figure, 1.0)


def test_the_best_is_the_least_or_the_most_and_never_a_failed_one() -> None:
    results = [result(2.0), result(None), result(1.0), result(3.0)]
    least, most = FigureParams(goal="min"), FigureParams(goal="max")
    assert best_of(results, least) is results[2]
    assert best_of(results, most) is results[3]
    assert best_of([result(None)], least) is None
