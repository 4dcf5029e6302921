import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flows.commands.run import UPPER_BOUND
from flows.engine.dag import Stage
from flows.engine.edit_params import edit_params
from flows.run import base_moved
from tests.conftest import write_lines
from tests.flows.invoke import cli
from tests.flows.projects import newest_flow_run
from vocabgraft.config.params import load_params
from vocabgraft.storage.artifacts import read_json

from .projects import Trivial, add_stage, journal, lock_bytes, run_dvc, write_definition, write_project

main = cli("run")

# Only a run beside `right` lets `left` end, and it ends after `right` is in dvc.lock, out of DVC's order.
AFTER_RIGHT = (
    'if [ -n "$SIDE_BY_SIDE" ]; then for i in $(seq 600); do grep -q " right:" dvc.lock && break; sleep 0.1; done; '
    'grep -q " right:" dvc.lock; fi'
)
DIAMOND = {
    "validate_data": Trivial(),
    "left": Trivial(["validate_data"], ["train_adapter.epochs", "train_adapter.lora"], before=AFTER_RIGHT),
    "right": Trivial(["validate_data"], ["base"]),
    "join": Trivial(["left", "right"], ["evaluate_model", "train_adapter.rows_learning_rate"]),
}
FirstRun = tuple[Path, int, dict[str, str]]


@pytest.fixture(scope="module")
def first_run(prefect_server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FirstRun]:
    """The diamond after one run of the flow: its folder, the exit code and the task runs' states."""
    root = write_project(tmp_path_factory.mktemp("flow") / "project", DIAMOND)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("SIDE_BY_SIDE", "1")
        patch.setattr(os, "cpu_count", lambda: 2)
        code = main([])
    yield root, code, states_of_last_run()


@pytest.fixture
def project(first_run: FirstRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the diamond after its first run, as the working folder."""
    root = tmp_path / "project"
    shutil.copytree(first_run[0], root)
    monkeypatch.chdir(root)
    return root


def states_of_last_run() -> dict[str, str]:
    """The state's name of every task run of the newest flow run, by the task run's name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        newest = newest_flow_run(client)
        chosen = FlowRunFilter(id=FlowRunFilterId(any_=[newest.id]))
        # The server records the states of task runs from events, a little after they happen.
        for _ in range(100):
            runs = client.read_task_runs(flow_run_filter=chosen)
            if runs and all(run.state is not None and run.state.is_final() for run in runs):
                break
            time.sleep(0.1)
    return {run.name: run.state.name for run in runs if run.state is not None}


def test_every_task_run_is_named_after_its_stage_and_is_completed(first_run: FirstRun) -> None:
    root, code, states = first_run
    assert code == 0
    assert states == dict.fromkeys(DIAMOND, "Completed")
    assert sorted(journal(root)) == sorted(DIAMOND)


def newest_artifact(key: str) -> str:
    """What the newest Prefect artifact of this key says."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
    from prefect.client.schemas.sorting import ArtifactSort

    with get_client(sync_client=True) as client:
        chosen = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
        found = client.read_artifacts(artifact_filter=chosen, sort=ArtifactSort.CREATED_DESC, limit=1)
    return str(found[0].data)


def page() -> str:
    """The report in the working folder."""
    return Path("reports/report.html").read_text(encoding="utf-8")


def test_every_run_has_a_record_and_a_report_which_prefect_has_too(first_run: FirstRun) -> None:
    reports = first_run[0] / "reports"
    record = read_json(reports / "run.json")
    assert record["failed"] is None and [stage["name"] for stage in record["stages"]] == list(DIAMOND)
    assert record["prefect_run"] and record["prefect_run"] in (reports / "report.html").read_text(encoding="utf-8")
    told = newest_artifact("report")
    assert "Nothing was registered" in told and (reports / "report.html").as_uri() in told


def test_a_run_that_cannot_start_replaces_the_report_of_the_one_before(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (project / "params.yaml").read_text(encoding="utf-8")
    (project / "params.yaml").write_text(text.replace("seed: 17", "seed: many"), encoding="utf-8")
    assert main([]) == 2
    assert "seed" in capsys.readouterr().err
    assert "The run ended before its stages" in page() and "many" in page()
    assert read_json(project / "reports" / "run.json")["stages"] == []


def test_a_folder_that_is_no_project_gets_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_fails_leaves_the_report(project: Path) -> None:
    before = page()
    assert main(["--plan", "--until", "nowhere"]) == 2
    assert page() == before


def test_a_good_run_without_a_report_has_an_exit_code_of_its_own(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flows.reporting.publish.write_report", lambda *arguments: 1 / 0)
    assert main(["--set", "train_adapter.epochs=7"]) == 3
    said = capsys.readouterr()
    assert "the report was not written: division by zero" in said.err
    assert "report: " not in said.out
    assert states_of_last_run()["left"] == "Completed", "the run itself is good"


def test_a_failed_run_without_a_report_is_a_failed_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.reporting.publish.write_report", lambda *arguments: 1 / 0)
    write_definition(project, DIAMOND | {"left": Trivial(DIAMOND["left"].reads, before="false")})
    assert main([]) == 1


def test_branches_run_side_by_side(first_run: FirstRun) -> None:
    ran = journal(first_run[0])
    assert ran.index("right") < ran.index("left"), "left waits until right is done, so they ran at the same time"


def test_the_lock_file_is_that_of_dvc_repro_byte_for_byte(first_run: FirstRun, tmp_path: Path) -> None:
    twin = write_project(tmp_path / "twin", DIAMOND)
    run_dvc(twin, "repro")
    assert journal(twin) == list(DIAMOND)
    assert lock_bytes(first_run[0]) == lock_bytes(twin)


def test_a_second_run_leaves_everything_unchanged(project: Path) -> None:
    before, ran = lock_bytes(project), journal(project)
    assert main([]) == 0
    assert states_of_last_run() == dict.fromkeys(DIAMOND, "Unchanged")
    assert (lock_bytes(project), journal(project)) == (before, ran)


def test_a_run_until_a_stage_leaves_the_order_of_the_lock_file(project: Path) -> None:
    before = lock_bytes(project)
    assert main(["--until", "right"]) == 0
    assert states_of_last_run() == {"validate_data": "Unchanged", "right": "Unchanged"}
    assert lock_bytes(project) == before


def test_a_stage_behind_equal_outputs_is_unchanged_and_known_outputs_are_restored(project: Path) -> None:
    rest = dict.fromkeys(DIAMOND, "Unchanged")
    ran = journal(project)
    assert main(["--set", "train_adapter.epochs=7"]) == 0
    assert states_of_last_run() == rest | {"left": "Completed"}
    assert journal(project) == [*ran, "left"]
    assert main(["--set", "train_adapter.epochs=2"]) == 0
    assert states_of_last_run() == rest | {"left": "Restored"}
    assert journal(project) == [*ran, "left"]


def test_a_failing_stage_stops_what_reads_it_and_nothing_else(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    definition = (project / "dvc.yaml").read_text(encoding="utf-8")
    broken = Trivial(DIAMOND["left"].reads, DIAMOND["left"].params, before="echo no such luck && false")
    write_definition(project, DIAMOND | {"left": broken})
    assert (project / "dvc.yaml").read_text(encoding="utf-8") != definition
    (project / "raw.txt").write_text("other\n", encoding="utf-8")
    assert main([]) == 1
    expected = {"validate_data": "Completed", "left": "Failed", "right": "Completed", "join": "NotReady"}
    assert states_of_last_run() == expected
    assert journal(project)[-2:] == ["validate_data", "right"]
    shown = capsys.readouterr().out
    assert "no such luck" in shown
    assert "left did not succeed" in shown
    assert "Failed: left" in page() and "no such luck" in page()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_flow_and_the_task_runs_that_are_not_done(
    prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    from prefect.client.orchestration import get_client

    stages = {"done": Trivial(), "slow": Trivial(["done"], before="touch started; sleep 60"), "last": Trivial(["slow"])}
    root = write_project(tmp_path / "project", stages)
    monkeypatch.chdir(root)

    def send() -> None:
        for _ in range(600):
            if (root / "started").is_file():
                break
            time.sleep(0.1)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    started = time.monotonic()
    assert main([]) == 128 + number
    sender.join()
    assert time.monotonic() - started < 60
    assert states_of_last_run() == {"done": "Completed", "slow": "Cancelled", "last": "Cancelled"}
    with get_client(sync_client=True) as client:
        newest = newest_flow_run(client)
    assert newest.state is not None and newest.state.name == "Cancelled"
    assert signal.getsignal(number) != signal.SIG_IGN


def test_the_table_and_the_report_are_artifacts(first_run: FirstRun) -> None:
    told = newest_artifact("build-model")
    assert "| stage | state | seconds | saved | why |" in told
    assert newest_artifact("report-page").startswith("[the report](file://")


def materialized(folder: str, since: datetime) -> dict[str, dict[str, str]]:
    """What the server was told, since then, of outputs that were made in a project of this name."""
    from prefect.client.orchestration import get_client

    chosen = {
        "event": {"name": ["prefect.asset.materialization.succeeded"]},
        "occurred": {"since": since.isoformat(), "until": (since + timedelta(days=1)).isoformat()},
    }
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/events/filter", json={"filter": chosen, "limit": 50})
    found = {event["resource"]["prefect.resource.id"]: event["payload"] for event in answer.json()["events"]}
    prefix = f"dvc://{folder}/"
    return {key.removeprefix(prefix): payload for key, payload in found.items() if key.startswith(prefix)}


def test_outputs_that_were_made_are_assets_and_those_that_did_not_change_are_not(
    first_run: FirstRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "named for its 100 % 'assets'"
    shutil.copytree(first_run[0], root)
    monkeypatch.chdir(root)
    started = datetime.now(UTC)
    assert main(["--set", "train_adapter.epochs=5"]) == 0
    # `left` writes what it wrote before, so `join` turns out unchanged.
    assert [name for name, state in states_of_last_run().items() if state == "Completed"] == ["left"]
    found: dict[str, dict[str, str]] = {}
    # The server takes events a little after they happen.
    for _ in range(300):
        if found := materialized("named_for_its_100____assets_", started):
            break
        time.sleep(0.1)
    assert set(found) == {"left.txt"}
    assert set(materialized("project", started - timedelta(hours=1))) >= {f"{name}.txt" for name in DIAMOND}
    assert found["left.txt"]["outcome"] == "Completed" and "train_adapter.epochs" in found["left.txt"]["why"]


def registering_project(root: Path) -> Path:
    """A project whose registration leaves its file, as register_model does."""
    write_project(root, {"validate_data": Trivial()})
    record = '{"name": "m", "content_digest": "0"}'
    make = f"mkdir -p registered && echo '{record}' > registered/registration.json"
    add_stage(root, "register_model", {"cmd": make, "deps": ["validate_data.txt"], "outs": ["registered"]})
    return root


@pytest.mark.parametrize("store", ["sqlite:///{}/damaged.db", "http://me:hidden-word@127.0.0.1:9"])
def test_a_registry_that_is_down_at_the_start_is_reported_before_any_stage_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], store: str
) -> None:
    root = registering_project(tmp_path / "project")
    monkeypatch.chdir(root)
    write_lines(tmp_path / "damaged.db", ["this is no database"] * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.format(tmp_path))
    assert main([]) == 2
    said = capsys.readouterr()
    assert "the MLflow store at" in said.err and "hidden-word" not in said.err + said.out + page()
    assert journal(root) == []
    assert main(["--plan"]) == 0, "a plan needs no registry"


def test_a_registry_that_is_lost_during_the_run_fails_the_stage_and_says_so(
    prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(registering_project(tmp_path / "project"))
    write_lines(tmp_path / "damaged.db", ["this is no database"] * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/damaged.db")
    # As if it had been there at the start.
    monkeypatch.setattr("flows.run.require_registry", lambda names: None)
    assert main([]) == 1
    assert states_of_last_run() == {"validate_data": "Completed", "register_model": "Failed"}
    assert "the MLflow store at" in capsys.readouterr().out


def test_a_plan_gives_reasons_and_runs_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_params(project / "params.yaml", ["train_adapter.epochs=7"])
    before, ran = lock_bytes(project), journal(project)
    assert main(["--plan"]) == 0
    told = [re.sub(r", [0-9.]+ s last time", ", SECONDS", line) for line in capsys.readouterr().out.splitlines()]
    assert told == [
        "validate_data: unchanged",
        "left: runs, SECONDS",
        "  param train_adapter.epochs: 2 -> 7",
        "right: unchanged",
        "join: may run, SECONDS",
        "  left runs before it",
        UPPER_BOUND,
    ]
    assert (lock_bytes(project), journal(project)) == (before, ran)


def test_a_forced_plan_runs_every_stage(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", "--force"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines if line[0] != " "] == [f"{name}: runs" for name in DIAMOND]
    assert lines.count("  forced") == len(DIAMOND)


def test_an_unknown_stage_is_named_with_the_allowed_ones(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plan", "--until", "nowhere"]) == 2
    said = capsys.readouterr().err
    assert "'nowhere'" in said
    assert ", ".join(DIAMOND) in said


def test_set_edits_the_file_and_shows_the_difference(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (project / "params.yaml").read_text(encoding="utf-8").splitlines()
    assert main(["--no-server", "--set", "train_adapter.epochs=7", "--set", "seed=18"]) == 0
    shown = capsys.readouterr().out
    after = (project / "params.yaml").read_text(encoding="utf-8").splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert changed == [("seed: 17", "seed: 18"), ("  epochs: 2", "  epochs: 7")]
    for old, new in changed:
        assert f"-{old}\n" in shown
        assert f"+{new}\n" in shown


def files_of(root: Path) -> dict[str, bytes]:
    """Every file of a project but those that DVC keeps for itself."""
    paths = (path for path in root.rglob("*") if path.is_file() and ".dvc/tmp" not in path.as_posix())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def test_a_plan_counts_settings_and_writes_no_file(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(project)
    assert main(["--plan", "--set", "train_adapter.epochs=7"]) == 0
    shown = capsys.readouterr().out
    assert "-  epochs: 2\n+  epochs: 7\n" in shown
    assert "  param train_adapter.epochs: 2 -> 7\n" in shown and "validate_data: unchanged" in shown
    assert files_of(project) == before
    assert main(["--plan"]) == 0
    assert "runs" not in capsys.readouterr().out, "the settings are those of one plan"


def test_a_plan_fills_settings_into_a_templated_definition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_project(tmp_path / "project", {})
    add_stage(root, "one", {"cmd": "echo ${seed} > one.txt", "deps": ["raw.txt"], "outs": ["one.txt"]})
    run_dvc(root, "repro")
    monkeypatch.chdir(root)
    assert main(["--plan", "--set", "seed=17"]) == 0
    assert "one: unchanged" in capsys.readouterr().out
    assert main(["--plan", "--set", "seed=18"]) == 0
    assert "changed command" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("train_adapter.epochs=many", "train_adapter.epochs"),
        ("train_adapter.nonsense=1", "allowed here: method, epochs"),
        ("nowhere.at.all=1", "there is no 'nowhere'; allowed: seed, base"),
        ("seed.of.all=1", "there is no 'of'; 17 cannot be set in part"),
        ("seed.first=1", "there is no 'first'; 17 cannot be set in part"),
        ("validate_data.contexts.5=more.txt", "there is no '5'; allowed: 0 to 0"),
        ("validate_data.contexts.x=more.txt", "there is no 'x'; allowed: 0 to 0"),
        ("base.model=[half", "'[half' is not YAML"),
        ("seed", "SECTION.KEY=VALUE"),
    ],
)
def test_a_setting_that_is_not_allowed_leaves_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], assignment: str, told: str
) -> None:
    root = write_project(tmp_path / "project", {"validate_data": Trivial()})
    monkeypatch.chdir(root)
    before = (root / "params.yaml").read_bytes()
    assert main(["--plan", "--set", assignment]) == 2
    assert told in capsys.readouterr().err
    assert (root / "params.yaml").read_bytes() == before


@pytest.mark.parametrize(("digest", "moved"), [("made here", False), ("made elsewhere", True), (None, True)])
def test_a_registered_base_has_moved_unless_it_is_what_this_chain_made(
    project: Path, monkeypatch: pytest.MonkeyPatch, digest: str | None, moved: bool
) -> None:
    from vocabgraft.models.base import BaseIdentity
    from vocabgraft.storage.artifacts import write_json

    edit_params(Path("params.yaml"), ["base.model=models:/name@champion", "base.sha256=null"])
    for stage, file, content in (
        ("validate_data", "base.json", BaseIdentity("models:/name/1", None, "a", "b").as_json()),
        ("register_model", "registration.json", {"name": "name", "content_digest": "made here"}),
    ):
        Path(stage).mkdir()
        write_json(Path(stage) / file, content)
    stages = [Stage(name, (), (Path(name),)) for name in ("validate_data", "register_model")]
    base = load_params().base
    monkeypatch.setattr("tasks.registry.lookup.digest_of_registered", lambda uri: digest)
    newest = BaseIdentity("models:/name/2", None, "c", "d")
    monkeypatch.setattr("tasks.support.models.resolve_base", lambda base: (Path(), newest))
    assert base_moved(stages, base) is moved
