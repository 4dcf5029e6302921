"""The schedule: what it serves, what it puts in order at its start, and what a run that has nothing to do imports."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest

from flows.engine.stage_run import environment
from flows.service.schedule import LOCK, RUN_ID, _schedule, settle_earlier_runs
from tests.conftest import ROOT
from tests.flows.invoke import cli
from tests.flows.projects import Trivial, journal, run_dvc, write_project
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.locks import acquire

HEAVY = ("torch", "sentence_transformers", "peft", "great_expectations")
STAGES = {"validate_data": Trivial(), "last": Trivial(["validate_data"], before="(test ! -e slow || sleep 60)")}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two stages as the working folder."""
    root = write_project(tmp_path / "project", STAGES)
    monkeypatch.chdir(root)
    return root


def deploy(name: str, tag: str) -> UUID:
    from flows.prefect_flow import build_model

    deployment = build_model.to_deployment(name, tags=[tag])
    identity = deployment.apply()
    assert isinstance(identity, UUID)
    return identity


def add_run(deployment: UUID, state: Any, due: datetime | None = None) -> UUID:
    from prefect.client.orchestration import get_client
    from prefect.states import Scheduled

    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deployment, state=Scheduled(scheduled_time=due))
        if state is not None:
            client.set_flow_run_state(run.id, state, force=True)
        return run.id


def state_of(run: UUID) -> tuple[str, str]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run).state
    assert state is not None and state.name is not None
    return state.type.value, state.name


def test_a_run_whose_process_is_gone_has_crashed_and_one_that_is_at_work_goes_on(
    prefect_server: None, project: Path
) -> None:
    from prefect.states import Pending, Running

    deployment = deploy("crashes", f"folder:{project}")
    gone, waiting, alive = (add_run(deployment, state()) for state in (Running, Pending, Running))
    process = subprocess.Popen(["sleep", "300"], env=os.environ | {RUN_ID: str(alive)})
    try:
        settle_earlier_runs("crashes", project)
        assert [state_of(run)[0] for run in (gone, waiting, alive)] == ["CRASHED", "CRASHED", "RUNNING"]
    finally:
        process.kill()
        process.wait()
    settle_earlier_runs("crashes", project)
    assert state_of(alive)[0] == "CRASHED"


def test_of_the_runs_that_were_missed_the_newest_is_made_up_for(prefect_server: None, project: Path) -> None:
    deployment = deploy("missed", f"folder:{project}")
    now = datetime.now(UTC)
    old, newer, newest = (add_run(deployment, None, now - timedelta(days=days)) for days in (3, 2, 1))
    future = add_run(deployment, None, now + timedelta(days=1))
    settle_earlier_runs("missed", project)
    assert [state_of(run) for run in (old, newer)] == [("CANCELLED", "Missed")] * 2
    assert [state_of(run)[0] for run in (newest, future)] == ["SCHEDULED"] * 2


def test_another_folders_deployment_is_left_alone(prefect_server: None, project: Path) -> None:
    from prefect.states import Running

    run = add_run(deploy("other", "folder:/somewhere/else"), Running())
    with pytest.raises(VocabgraftError, match="another folder"):
        settle_earlier_runs("other", project)
    assert state_of(run)[0] == "RUNNING"


def test_before_the_first_schedule_there_is_nothing_to_settle(prefect_server: None, project: Path) -> None:
    settle_earlier_runs("never-served", project)


@pytest.mark.parametrize(
    "arguments", [["--cron", "at three"], ["--timezone", "Middle/Earth"], ["--cron", "0 25 * * *"]]
)
def test_a_schedule_that_is_none_is_refused(
    arguments: list[str], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("schedule")(arguments) == 2
    assert f"{arguments[0]} {arguments[1]!r}" in capsys.readouterr().err


def test_a_cron_line_means_the_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tzlocal.get_localzone_name", lambda: "Asia/Tokyo")
    assert _schedule("0 3 * * *", None).timezone == "Asia/Tokyo"
    assert _schedule("0 3 * * *", "Europe/Berlin").timezone == "Europe/Berlin"


def test_a_second_schedule_of_a_folder_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / LOCK).parent.mkdir(parents=True)
    with (project / LOCK).open("a+") as stream:
        assert acquire(stream)
        assert cli("schedule")([]) == 2
    assert f"process {os.getpid()}" in capsys.readouterr().err


def test_a_folder_that_is_no_project_is_refused(in_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("schedule")([]) == 2
    assert "is not a DVC project" in capsys.readouterr().err


def test_a_server_that_is_named_and_does_not_answer_is_not_replaced(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert cli("schedule")([]) == 2
    assert "no Prefect server answers at http://127.0.0.1:9/api" in capsys.readouterr().err


def test_a_run_with_nothing_to_do_imports_nothing_heavy(prefect_server: None, project: Path) -> None:
    from prefect.settings import PREFECT_API_URL

    run_dvc(project, "repro")
    script = (
        "import sys, flows.service.schedule; from flows.prefect_flow import build_model; "
        f"state = build_model(return_state=True); print(state.name, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment() | {"PYTHONPATH": str(ROOT), "PREFECT_API_URL": str(PREFECT_API_URL.value())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "Completed []", done.stdout + done.stderr
    assert journal(project) == list(STAGES)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Machine:
    """A schedule with a server of its own in a project, which can be switched off."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self.home = root.parent / "prefect"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *arguments: str, cron: str = "* * * * *") -> None:
        command = [sys.executable, "-m", "flows.cli", "schedule", "--cron", cron, "--port", str(self.port), *arguments]
        variables = {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(self.home), "PREFECT_RUNNER_POLL_FREQUENCY": "2"}
        with (self.root.parent / "schedule.log").open("a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.root, env=environment() | variables, stdout=log, stderr=log, text=True
            )

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("PREFECT_HOME") == str(self.home):
                    found.append(process)
            except psutil.Error:
                continue
        return [process for process in found if process.status() != psutil.STATUS_ZOMBIE]

    def switch_off(self) -> None:
        for process in self.processes():
            process.kill()
        psutil.wait_procs(self.processes(), timeout=10)

    def said(self) -> str:
        return (self.root.parent / "schedule.log").read_text(encoding="utf-8")

    def wait_for(self, holds: Callable[[], bool], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.process is not None and self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.5)


@pytest.fixture
def machine(project: Path) -> Iterator[Machine]:
    made = Machine(project)
    yield made
    made.switch_off()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_machine_that_was_switched_off_during_a_run_goes_on_and_the_run_has_crashed(machine: Machine) -> None:
    (machine.root / "slow").touch()
    machine.start()
    machine.wait_for(lambda: journal(machine.root) == ["validate_data"])
    machine.switch_off()
    (machine.root / "slow").unlink()
    machine.start()
    machine.wait_for(lambda: "has crashed: its process is gone" in machine.said())
    machine.wait_for(lambda: journal(machine.root) == ["validate_data", "last"])
    assert machine.process is not None
    machine.process.send_signal(signal.SIGTERM)
    assert machine.process.wait(60) == 0
    psutil.wait_procs(machine.processes(), timeout=15)
    assert machine.processes() == [], "the server that it started has ended with it"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("overlap", "meanwhile", "in_the_end"),
    [
        ("queue", ("SCHEDULED", "AwaitingConcurrencySlot"), "COMPLETED"),
        ("skip", ("CANCELLED", "Cancelled"), "CANCELLED"),
    ],
)
def test_a_run_that_is_due_while_another_is_at_work_waits_or_is_left_out(
    machine: Machine, overlap: str, meanwhile: tuple[str, str], in_the_end: str
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    (machine.root / "slow").touch()
    # Years away: the runs of this test are all there are.
    machine.start("--overlap", overlap, cron="0 3 29 2 *")
    machine.wait_for(lambda: "is being served" in machine.said())
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{machine.port}/api"}):
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("build_model/schedule").id
        first = add_run(deployment, None)
        machine.wait_for(lambda: journal(machine.root) == ["validate_data"])
        second = add_run(deployment, None)
        machine.wait_for(lambda: state_of(second) == meanwhile)
        assert state_of(first)[0] == "RUNNING"
        (machine.root / "slow").unlink()
        # Its stage is tried again when it was killed, and is quick now.
        for process in machine.processes():
            if process.name() == "sleep":
                process.kill()
        machine.wait_for(lambda: state_of(first)[0] == "COMPLETED")
        machine.wait_for(lambda: state_of(second)[0] == in_the_end)
    assert journal(machine.root) == ["validate_data", "last"]
