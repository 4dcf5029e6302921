"""Why a stage failed: in its own words, and the same words everywhere."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.engine.run_record import RUN_RECORD
from flows.engine.stage_outcome import Attempt, Ending, judge
from flows.engine.stage_run import reproduce
from flows.remote.multi_node import told
from flows.remote.work import why_failed
from tasks.support.stage import FAILURES
from tests.conftest import ROOT
from tests.flows.invoke import cli
from tests.flows.projects import Trivial, add_stage, newest_flow_run, write_definition, write_project
from tests.flows.reporting.test_webhook import Hook, hook, set_hook
from tests.flows.test_build_model import states_of_last_run
from vocabgraft.storage.artifacts import read_json

__all__ = ["hook"]

main = cli("run")

CHECK = {
    "name": "description_cosine",
    "protects": "a token points to its description",
    "setting": "check_consistency.min_description_cosine",
    "remedy": "Add texts that use the named tokens.",
    "figure": 0.0961,
    "limit": "at least 0.1",
    "reason": "",
    "details": ["nephrectomy: 0.0961"],
}
PASSED = "passed_check               passed          0 (at most 0)"
# A stage of the project's whose log ends with many checks that passed, and whose error names the one that failed.
FAILING = f"""
from pathlib import Path
from tasks.support.stage import run_stage
from vocabgraft.errors import VocabgraftError
from vocabgraft.checks.result import explain_failures

def check_consistency(out: Path) -> None:
    print("the first line of all")
    for _ in range(20):
        print({PASSED!r})
    raise VocabgraftError("1 of 21 checks failed: description_cosine.\\n" + explain_failures([{CHECK!r}]))

raise SystemExit(run_stage(check_consistency, ["--out", "x"]))
"""
WANTED = [
    "1 of 21 checks failed: description_cosine.",
    "description_cosine: 0.0961, allowed: at least 0.1 (a token points to its description)",
    "  nephrectomy: 0.0961",
    "  setting: check_consistency.min_description_cosine",
    "  remedy: Add texts that use the named tokens.",
]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose one stage fails, as the working folder."""
    root = write_project(tmp_path / "project", {})
    (root / "fail.py").write_text(FAILING, encoding="utf-8")
    add_stage(root, "check_consistency", {"cmd": "python fail.py", "deps": ["raw.txt"], "outs": ["x"]})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(root)
    return root


def test_the_failed_checks_are_the_reason_everywhere_and_the_log_stands_apart(
    project: Path, hook: Hook, capsys: pytest.CaptureFixture[str]
) -> None:
    set_hook(project, hook.url)
    assert main(["--no-server"]) == 1
    reason = "\n".join(WANTED)
    record = read_json(project / RUN_RECORD)
    (stage,) = record["stages"]
    assert stage["reason"] == reason
    assert stage["log"].splitlines() == [PASSED] * 15
    assert record["failed"] == f"check_consistency: {reason}"
    (message,) = hook.told
    assert message["stages"][0]["reason"].startswith(f"{reason}\n\n") and reason in message["text"]
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if "│ check_consistency" in line)
    assert WANTED[0] in row
    assert f"check_consistency failed: {reason}\n" in said
    page = (project / "reports" / "report.html").read_text(encoding="utf-8")
    assert f'<pre class="said">{reason}</pre>' in page
    assert page.index(WANTED[2]) < page.index(PASSED)


def test_the_state_in_prefect_has_the_same_reason(prefect_server: None, project: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import TaskRunSort

    assert main([]) == 1
    assert states_of_last_run() == {"check_consistency": "Failed"}
    with get_client(sync_client=True) as client:
        run = newest_flow_run(client)
        task = client.read_task_runs(sort=TaskRunSort.EXPECTED_START_TIME_DESC, limit=1)[0]
    reason = "\n".join(WANTED)
    assert task.state is not None and (task.state.message or "").startswith(reason)
    assert run.state is not None and f"check_consistency: {reason}" in (run.state.message or "")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("echo no such luck >&2; exit 4", "its command ended with exit code 4"),
        ("echo no such luck; kill -9 $$", "the stage was ended by SIGKILL"),
        ("python -c \"print('no such luck'); 1/0\"", "its command ended with exit code 1"),
    ],
)
def test_a_command_that_leaves_no_reason_is_reported_by_its_end_and_not_by_the_reason_of_an_earlier_run(
    command: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_project(tmp_path / "project", {})
    add_stage(root, "one", {"cmd": command, "deps": ["raw.txt"], "outs": ["x"], "meta": {"retries": 0}})
    (root / FAILURES).mkdir(parents=True)
    (root / FAILURES / "one.txt").write_text("an earlier reason", encoding="utf-8")
    monkeypatch.chdir(root)
    assert main(["--no-server"]) == 1
    (stage,) = read_json(root / RUN_RECORD)["stages"]
    assert stage["reason"].startswith(reason)
    assert "no such luck" in stage["log"] and "failed to reproduce" not in stage["log"]


def test_an_unexpected_error_is_the_reason_and_its_traceback_the_log(project: Path) -> None:
    (project / "fail.py").write_text(FAILING.replace("raise VocabgraftError(", "raise KeyError("), encoding="utf-8")
    assert main(["--no-server"]) == 1
    (stage,) = read_json(project / RUN_RECORD)["stages"]
    assert stage["reason"].startswith("unexpected KeyError: ")
    assert "Traceback" in stage["log"] and "fail.py" in stage["log"]


def test_a_stage_that_dvc_refuses_to_start_has_the_reason_that_dvc_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_project(tmp_path / "project", {"one": Trivial(files=["absent.txt"])})
    monkeypatch.chdir(root)
    assert main(["--no-server"]) == 1
    (stage,) = read_json(root / RUN_RECORD)["stages"]
    assert "absent.txt" in stage["reason"] and "ERROR" not in stage["reason"]


def test_a_time_out_is_the_reason_and_the_output_before_it_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: Any = SimpleNamespace(start=lambda arguments: None, finish=lambda run: None)
    monkeypatch.setattr("flows.engine.stage_run._follow", lambda *arguments: (["step 7"], -15, True))
    attempt = reproduce(processes, tmp_path, "one", False, Silent(), timeout=3)
    assert (attempt.ending, attempt.log) == (Ending.TIMED_OUT, "step 7") and "timeout of 3 s" in attempt.reason


def test_side_by_side_each_stage_has_its_own_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_project(tmp_path / "project", {})
    for name in ("first", "second"):
        script = FAILING.replace("check_consistency", name).replace("1 of 21 checks failed", f"{name} it was")
        (root / f"{name}.py").write_text(script, encoding="utf-8")
        add_stage(root, name, {"cmd": f"python {name}.py", "deps": ["raw.txt"], "outs": [f"{name}.txt"]})
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(root)
    assert main(["--no-server", "--keep-going"]) == 1
    reasons = {stage["name"]: stage["reason"] for stage in read_json(root / RUN_RECORD)["stages"]}
    assert {name: reason.split(":")[0] for name, reason in reasons.items()} == {
        "first": "first it was",
        "second": "second it was",
    }


def test_a_fault_of_the_flow_itself_is_a_reason_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_project(tmp_path / "project", {"one": Trivial()})
    monkeypatch.chdir(root)
    monkeypatch.setattr("flows.engine.scheduler.reproduce", lambda *arguments, **options: 1 / 0)
    assert main(["--no-server"]) == 1
    (stage,) = read_json(root / RUN_RECORD)["stages"]
    assert stage["reason"] == "unexpected ZeroDivisionError: division by zero"
    assert "test_stage_end" in stage["log"]


class Silent:
    """A log that keeps nothing."""

    def line(self, text: str) -> None:
        """Take a line."""

    def progress(self, percent: float) -> None:
        """Take a number."""


def done_elsewhere(stages: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    """What a run on another machine brings back."""
    failed = "\n".join(f"{stage['name']}: {stage['reason']}" for stage in stages or ())
    record = {str(RUN_RECORD): json.dumps({"stages": stages, "failed": failed})} if stages is not None else {}
    return {"ok": False, "said": "a line\nthe last line\n", "files": record}


def failed_elsewhere(name: str) -> dict[str, str]:
    return {"name": name, "outcome": "Failed", "reason": f"{name} has no data\nat all", "log": "step 3"}


def test_a_stage_that_failed_on_another_machine_brings_its_reason_back() -> None:
    attempt = told(done_elsewhere([failed_elsewhere("train")]), Silent())
    assert attempt == Attempt(Ending.FAILED, "train has no data\nat all", "step 3")


def test_a_point_of_a_sweep_names_the_stages_that_failed() -> None:
    waiting = {"name": "merge", "outcome": "NotReady", "reason": "train did not succeed", "log": ""}
    reason, log = why_failed(done_elsewhere([failed_elsewhere("train"), waiting]), str(RUN_RECORD))
    assert reason.splitlines()[0] == "train: train has no data" and log == "step 3"


def test_a_run_elsewhere_that_left_no_record_has_its_output_as_log() -> None:
    reason, log = why_failed(done_elsewhere(None), str(RUN_RECORD))
    assert reason and log == "a line\nthe last line"


def test_lines_of_a_stage_that_look_like_an_error_do_not_become_the_reason() -> None:
    lines = [
        "ERROR: not the reason",
        "x: why",
        "more",
        "ERROR: failed to reproduce 'x': failed to run: c, exited with 1",
    ]
    assert judge(lines, 255, "x", "why\nmore") == Attempt(Ending.FAILED, "why\nmore", "ERROR: not the reason")


def test_a_good_run_leaves_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_project(tmp_path / "project", {"one": Trivial(before="test ! -e broken")})
    monkeypatch.chdir(root)
    (root / "broken").touch()
    assert main(["--no-server"]) == 1
    (root / "broken").unlink()
    write_definition(root, {"one": Trivial()})
    assert main(["--no-server"]) == 0
    record = read_json(root / RUN_RECORD)
    assert record["failed"] is None and record["stages"][0]["log"] == ""
