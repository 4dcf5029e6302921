"""What a run survives: kills, signals, a full disk, damaged files, and others at work in the same workspace."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from flows.engine.lock_file import DUE
from flows.engine.stage_run import environment
from flows.engine.workspace import LOCK, MARK, check_lock_file, heal_rwlock
from tests.conftest import ROOT
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import read_json

from .projects import Trivial, journal, lock_bytes, run_dvc, write_definition, write_project

# While the file `slow` is there, the stage lives for a minute, writes all the time, and says who it is.
WRITE = "echo $$ > stage.pid; for i in $(seq 600); do echo $i >> beats; sleep 0.1; done"
SLOW = f"if [ -e slow ]; then {WRITE}; fi; if [ -e deaf ]; then trap '' TERM; {WRITE}; fi"
CHAIN = {
    "first": Trivial(),
    "beside": Trivial(["first"]),
    "middle": Trivial(["first"], ["train_adapter.epochs"], before=f"({SLOW})"),
    "last": Trivial(["middle", "beside"]),
}
OUTPUTS = [f"{name}.txt" for name in CHAIN]
Project = Callable[..., Path]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain after `dvc repro`."""
    root = write_project(tmp_path_factory.mktemp("undisturbed") / "project", CHAIN)
    run_dvc(root, "repro")
    return root


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The chain before its first run."""
    return write_project(tmp_path / "project", CHAIN)


@pytest.fixture
def done(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the chain after its first run."""
    return Path(shutil.copytree(undisturbed, tmp_path / "done"))


def flow(root: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start the flow without Prefect in a project's folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.build_model", "--no-server", *arguments],
        cwd=root,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_flow(root: Path, *arguments: str) -> tuple[int, str]:
    """Run the flow to its end."""
    process = flow(root, *arguments)
    said, _ = process.communicate(timeout=120)
    return process.returncode, said


@contextmanager
def in_the_middle(root: Path, how: str = "slow") -> Iterator[tuple["subprocess.Popen[str]", psutil.Process]]:
    """A flow whose middle stage is at work, and that stage's shell."""
    (root / how).touch()
    process = flow(root)
    try:
        wait_until(lambda: (root / "stage.pid").is_file() and (root / "stage.pid").read_text().strip() != "", process)
        wait_until((root / "beats").is_file, process)
        yield process, psutil.Process(int((root / "stage.pid").read_text()))
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
        (root / how).unlink(missing_ok=True)
        for left in at_work(root):
            left.kill()


def wait_until(holds: Callable[[], bool], process: "subprocess.Popen[str] | None" = None, seconds: float = 60) -> None:
    """Wait for something, or for a process that ends before it came."""
    for _ in range(int(seconds / 0.05)):
        if holds():
            return
        if process is not None and process.poll() is not None:
            pytest.fail(f"ended before: {process.communicate()[0]}")
        time.sleep(0.05)
    pytest.fail(f"not within {seconds} s")


def at_work(root: Path) -> list[psutil.Process]:
    """The processes that a flow in this project started and that are still there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(root.resolve()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def assert_as_undisturbed(root: Path, undisturbed: Path) -> None:
    """The same lock file and outputs as a run that nobody disturbed, and nothing at work."""
    assert at_work(root) == []
    assert lock_bytes(root) == lock_bytes(undisturbed)
    assert [(root / name).read_bytes() for name in OUTPUTS] == [(undisturbed / name).read_bytes() for name in OUTPUTS]


def outcomes(root: Path) -> dict[str, str]:
    """What the last run's record says of each stage."""
    return {stage["name"]: stage["outcome"] for stage in read_json(root / "reports" / "run.json")["stages"]}


@pytest.mark.parametrize("victims", ["flow", "dvc", "stage"])
def test_after_kill_9_of_any_of_them_the_next_run_ends_as_an_undisturbed_one(
    victims: str, project: Path, undisturbed: Path
) -> None:
    with in_the_middle(project) as (process, stage):
        dvc = stage.parent()
        assert dvc is not None
        {"flow": psutil.Process(process.pid), "dvc": dvc, "stage": stage}[victims].kill()
        (project / "slow").unlink()
        if victims == "flow":
            wait_until(lambda: not at_work(project), seconds=15)
            assert run_flow(project)[0] == 0
        else:
            said = process.communicate(timeout=60)[0]
            assert process.returncode == 0 and "SIGKILL" in said and "try 2 of 3" in said, said
    assert_as_undisturbed(project, undisturbed)


def test_what_is_left_when_everything_that_watched_was_killed_is_ended_by_the_next_run(
    project: Path, undisturbed: Path
) -> None:
    with in_the_middle(project) as (process, stage):
        watching = [other for other in at_work(project) if any("supervisor.py" in word for word in other.cmdline())]
        for other in [psutil.Process(process.pid), *watching]:
            other.kill()
        process.wait()
        assert stage.is_running(), "nobody is left to end it, or this test proves nothing"
        (project / "slow").unlink()
        code, said = run_flow(project)
        assert code == 0 and f"ending process {stage.pid}" in said, said
    assert_as_undisturbed(project, undisturbed)


@pytest.mark.parametrize(("number", "how"), [(signal.SIGINT, "slow"), (signal.SIGTERM, "deaf")])
def test_a_signal_ends_the_children_within_ten_seconds_and_the_run_is_cancelled(
    number: signal.Signals, how: str, project: Path, undisturbed: Path
) -> None:
    with in_the_middle(project, how) as (process, _):
        process.send_signal(number)
        wait_until(lambda: not at_work(project), seconds=10)
        process.communicate(timeout=30)
        assert process.returncode == 128 + number
    assert outcomes(project)["middle"] == "Cancelled" and outcomes(project)["last"] == "Cancelled"
    assert run_flow(project)[0] == 0
    assert_as_undisturbed(project, undisturbed)


def test_a_second_flow_is_refused_with_who_is_at_work_or_waits(project: Path, undisturbed: Path) -> None:
    with in_the_middle(project) as (process, stage):
        report = project / "reports" / "run.json"
        code, said = run_flow(project)
        assert code == 2 and f"process {process.pid}" in said and "--wait" in said
        assert not report.exists(), "a run that was refused tells nothing in the report"
        waiting = flow(project, "--wait")
        (project / "slow").unlink()
        stage.kill()
        assert process.wait(timeout=60) == 0
        said = waiting.communicate(timeout=60)[0]
        assert waiting.returncode == 0 and "waiting for another run" in said
    assert_as_undisturbed(project, undisturbed)


def test_a_dvc_repro_beside_a_flow_says_who_is_busy_and_breaks_nothing(project: Path, undisturbed: Path) -> None:
    with in_the_middle(project) as (process, stage):
        command = [sys.executable, "-m", "dvc", "repro"]
        done = subprocess.run(command, cwd=project, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode != 0 and "busy" in done.stderr
        (project / "slow").unlink()
        stage.kill()
        assert process.wait(timeout=60) == 0
    assert_as_undisturbed(project, undisturbed)


def test_a_flow_beside_a_dvc_repro_waits_for_the_stage_that_it_runs(project: Path, undisturbed: Path) -> None:
    (project / "slow").touch()
    command = [sys.executable, "-m", "dvc", "repro"]
    with subprocess.Popen(command, cwd=project, env=environment(), stdout=subprocess.DEVNULL, text=True) as repro:
        wait_until(lambda: (project / "stage.pid").is_file() and (project / "beats").is_file(), repro)
        stage = psutil.Process(int((project / "stage.pid").read_text()))
        process = flow(project)
        assert process.stdout is not None
        waits = next(line for line in process.stdout if "waits: " in line)
        assert "the plan waits: " in waits and "middle.txt' is busy" in waits
        (project / "slow").unlink()
        # Without the file it may end by itself meanwhile.
        with suppress(psutil.NoSuchProcess):
            for sleeping in stage.children():
                sleeping.kill()
            stage.kill()
        said = process.communicate(timeout=60)[0]
        assert process.returncode == 0, said
    assert_as_undisturbed(project, undisturbed)


def test_a_disk_that_is_full_in_the_middle_fails_one_stage_and_the_next_run_goes_on(
    project: Path, undisturbed: Path
) -> None:
    definition = (project / "dvc.yaml").read_text(encoding="utf-8")
    full = CHAIN["middle"].before + " && cat raw.txt > /dev/full"
    write_definition(project, CHAIN | {"middle": Trivial(["first"], ["train_adapter.epochs"], before=full)})
    code, said = run_flow(project)
    assert code == 1 and "No space left on device" in said
    assert outcomes(project) | {"beside": ""} == {
        "first": "Completed",
        "middle": "Failed",
        "last": "NotReady",
        "beside": "",
    }
    (project / "dvc.yaml").write_text(definition, encoding="utf-8")
    assert run_flow(project)[0] == 0
    assert_as_undisturbed(project, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 KB, which can be given more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: that takes root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_full_while_dvc_writes_its_cache_fails_one_stage_and_the_next_run_goes_on(
    project: Path, small_disk: Path, tmp_path: Path
) -> None:
    stages = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    stages["middle"] |= {"cmd": "head -c 300000 /dev/zero > middle.txt"}
    (project / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False), encoding="utf-8")
    twin = Path(shutil.copytree(project, tmp_path / "twin"))
    run_dvc(twin, "repro")
    run_dvc(project, "cache", "dir", str(small_disk / "cache"))
    # One after the other: two that write at the same time have no room both.
    code, said = run_flow(project, "--keep-going", "--jobs", "1")
    assert code == 1 and "No space left on device" in said and "Traceback" not in said, said
    assert outcomes(project) == {"first": "Completed", "beside": "Completed", "middle": "Failed", "last": "NotReady"}
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    code, said = run_flow(project)
    assert code == 0, said
    assert outcomes(project)["first"] == "Unchanged"
    assert_as_undisturbed(project, twin)
    (project / "middle.txt").unlink()
    run_dvc(project, "checkout")
    assert_as_undisturbed(project, twin)


def test_a_damaged_object_in_the_cache_is_made_again(done: Path, undisturbed: Path) -> None:
    made = yaml.safe_load(lock_bytes(done))["stages"]["middle"]["outs"][0]["md5"]
    cached = done / ".dvc" / "cache" / "files" / "md5" / made[:2] / made[2:]
    cached.chmod(0o644)
    cached.write_text("damaged\n", encoding="utf-8")
    (done / "middle.txt").unlink()
    code, said = run_flow(done)
    assert code == 0, said
    assert outcomes(done)["middle"] == "Completed"
    assert_as_undisturbed(done, undisturbed)


def test_a_lock_file_with_conflict_marks_is_refused_with_its_line_and_what_to_do(done: Path, undisturbed: Path) -> None:
    whole = lock_bytes(done).decode()
    (done / "dvc.lock").write_text(f"<<<<<<< HEAD\n{whole}=======\n>>>>>>> other\n", encoding="utf-8")
    code, said = run_flow(done)
    assert code == 2 and "line 1: an unresolved merge" in " ".join(said.split()) and "Traceback" not in said
    (done / "dvc.lock").write_text(whole, encoding="utf-8")
    assert run_flow(done)[0] == 0
    assert_as_undisturbed(done, undisturbed)


def test_a_lock_file_without_marks_is_taken(done: Path) -> None:
    check_lock_file(done / "dvc.lock")
    with pytest.raises(VocabgraftError, match="line 1"):
        (done / "dvc.lock").write_text("<<<<<<< HEAD\n", encoding="utf-8")
        check_lock_file(done / "dvc.lock")


def test_a_lock_file_that_dvc_was_killed_while_writing_comes_back(done: Path, undisturbed: Path) -> None:
    whole = lock_bytes(done).decode()
    due = {"dvc.lock": {"order": list(yaml.safe_load(whole)["stages"]), "text": whole}}
    (done / DUE).write_text(json.dumps(due), encoding="utf-8")
    (done / "dvc.lock").write_text(whole[: len(whole) // 2] + "\n   broken", encoding="utf-8")
    assert run_flow(done)[0] == 0
    assert_as_undisturbed(done, undisturbed)


def test_a_truncated_record_of_dvc_is_made_again(project: Path, undisturbed: Path) -> None:
    (project / ".dvc" / "tmp").mkdir()
    (project / ".dvc" / "tmp" / "rwlock").write_text('{"write": {"/a": {"pi', encoding="utf-8")
    code, said = run_flow(project)
    assert code == 0 and "rwlock was damaged" in said, said
    assert_as_undisturbed(project, undisturbed)


def test_a_record_of_dvc_that_names_a_process_of_something_else_is_let_go(project: Path) -> None:
    path = project / ".dvc" / "tmp" / "rwlock"
    path.parent.mkdir()
    with subprocess.Popen(["sleep", "60"]) as other:
        info = {"pid": other.pid, "cmd": "dvc repro"}
        path.write_text(json.dumps({"write": {"/a": info}, "read": {"/b": [info]}}), encoding="utf-8")
        heal_rwlock(project, print)
        other.kill()
    assert json.loads(path.read_text(encoding="utf-8")) == {"write": {}, "read": {}}


def test_a_clock_that_was_moved_back_changes_nothing(done: Path, undisturbed: Path) -> None:
    ahead = time.time() + 30 * 24 * 3600
    for path in done.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (ahead, ahead))
    (done / LOCK).write_text('{"pid": 1, "since": "2099-01-01T00:00:00+00:00", "command": "x"}', encoding="utf-8")
    assert run_flow(done)[0] == 0
    assert set(outcomes(done).values()) == {"Unchanged"}
    assert run_flow(done, "--set", "train_adapter.epochs=7")[0] == 0
    assert outcomes(done)["middle"] == "Completed"
    assert run_flow(done, "--set", "train_adapter.epochs=2")[0] == 0
    assert outcomes(done)["middle"] == "Restored"
    assert_as_undisturbed(done, undisturbed)


def one_stage(root: Path, command: str, **meta: object) -> Path:
    """A project of one stage, which counts its tries."""
    write_project(root, {})
    stage = {"cmd": f"echo x >> tries; {command}", "deps": ["raw.txt"], "outs": ["out.txt"], "meta": meta}
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"one": stage}}), encoding="utf-8")
    return root


def tries(root: Path) -> int:
    """How often its command was started."""
    return len((root / "tries").read_text(encoding="utf-8").split())


def test_a_stage_that_takes_too_long_is_stopped_and_not_tried_again(tmp_path: Path) -> None:
    root = one_stage(tmp_path / "project", "sleep 60", timeout_s=1)
    started = time.monotonic()
    code, said = run_flow(root)
    assert code == 1 and "timeout of 1 s" in said
    assert (tries(root), at_work(root)) == (1, [])
    assert time.monotonic() - started < 45


def test_a_fault_that_may_pass_is_tried_again_and_a_failed_check_never(tmp_path: Path) -> None:
    passing = one_stage(tmp_path / "a", "if [ $(wc -l < tries) = 1 ]; then exit 75; fi; echo 1 > out.txt", retries=1)
    failing = one_stage(tmp_path / "b", "echo the check says no; exit 1", retries=1)
    assert (run_flow(passing)[0], tries(passing)) == (0, 2)
    code, said = run_flow(failing)
    assert (code, tries(failing)) == (1, 1) and "the check says no" in said


def test_meta_that_is_no_number_is_refused(tmp_path: Path) -> None:
    root = one_stage(tmp_path / "project", "true", timeout_s="long")
    code, said = run_flow(root)
    assert code == 2 and "stage one: meta.timeout_s is 'long'; it should be a number" in said


def test_without_keep_going_a_failure_lets_nothing_start_any_more(tmp_path: Path) -> None:
    stages = {"bad": Trivial(before="false"), "good": Trivial(before="true"), "apart": Trivial(["good"])}
    root = write_project(tmp_path / "project", stages)
    assert run_flow(root, "--jobs", "1")[0] == 1
    assert outcomes(root) == {"bad": "Failed", "good": "NotReady", "apart": "NotReady"} and journal(root) == []
    assert run_flow(root, "--jobs", "1", "--keep-going")[0] == 1
    assert outcomes(root) == {"bad": "Failed", "good": "Completed", "apart": "Completed"}


def test_only_runs_the_one_stage_and_force_runs_it_though_nothing_changed(done: Path, undisturbed: Path) -> None:
    ran = journal(done)
    assert run_flow(done, "--only", "middle")[0] == 0
    assert (outcomes(done), journal(done)) == ({"middle": "Unchanged"}, ran)
    assert run_flow(done, "--only", "middle", "--force")[0] == 0
    assert (outcomes(done), journal(done)) == ({"middle": "Completed"}, [*ran, "middle"])
    assert_as_undisturbed(done, undisturbed)
    code, said = run_flow(done, "--only", "middle", "--until", "last")
    assert code == 2 and "exclude each other" in said
