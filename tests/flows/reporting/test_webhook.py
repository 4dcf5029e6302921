"""The webhook receives failed runs only; its own failure neither changes nor hides a result."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.engine.run_record import FlowRun
from flows.engine.stage_outcome import Outcome, StageResult
from flows.reporting.webhook import REASON_LENGTH, post, tell_failure
from tests.flows.invoke import cli
from tests.flows.projects import Trivial, write_project
from vocabgraft.config.params import load_params
from vocabgraft.errors import VocabgraftError

main = cli("run")


class Hook(HTTPServer):
    """What a webhook was told, and how it answers."""

    told: list[Any]
    answer = 200

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?secret=1"


class Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.answer)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hook() -> Iterator[Hook]:
    server = Hook(("127.0.0.1", 0), Handler)
    server.told = []
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A first stage that fails where a file says so, and one behind it, as the working folder."""
    stages = {"first": Trivial(before="test ! -e broken"), "second": Trivial(["first"])}
    root = write_project(tmp_path / "project", stages)
    monkeypatch.chdir(root)
    return root


def set_hook(root: Path, url: str) -> None:
    path = root / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("url: null", f"url: {url}", 1), encoding="utf-8")


def run_of(*results: StageResult, failure: str | None = None) -> FlowRun:
    return FlowRun(datetime.now(UTC), [], results, failure=failure, prefect_run="the-run")


FAILED = StageResult("train", Outcome.FAILED, 1.0, "no data", log="step 3")
BEHIND = StageResult("merge", Outcome.NOT_READY, 0.0, "train did not succeed")
GOOD = StageResult("validate", Outcome.COMPLETED, 1.0, "")
CANCELLED = StageResult("merge", Outcome.CANCELLED, 0.0, "")


def test_a_failed_run_is_posted_with_its_stages_and_reasons(project: Path, hook: Hook) -> None:
    set_hook(project, hook.url)
    assert tell_failure(run_of(GOOD, FAILED, BEHIND), project)
    (told,) = hook.told
    assert told["flow_run"] == "the-run" and told["failure"] is None
    assert [(stage["name"], stage["state"]) for stage in told["stages"]] == [("train", "Failed"), ("merge", "NotReady")]
    assert told["stages"][0]["reason"] == "no data\n\nlast lines of its output:\nstep 3"
    first, second, *_ = told["text"].splitlines()
    assert first == "project: the run failed: train (Failed), merge (NotReady)" and second == "train: no data"


def test_a_long_reason_is_cut_where_a_chat_service_would_cut_it(project: Path, hook: Hook) -> None:
    set_hook(project, hook.url)
    assert tell_failure(run_of(replace(FAILED, reason="no data " * 1000)), project)
    (told,) = hook.told
    for text in (told["text"], told["stages"][0]["reason"]):
        assert len(text) == REASON_LENGTH and text.endswith("reports/report.html)")


@pytest.mark.parametrize("results", [(GOOD,), (GOOD, CANCELLED), (FAILED, CANCELLED), ()])
def test_a_good_or_cancelled_run_is_not_posted(results: tuple[StageResult, ...], project: Path, hook: Hook) -> None:
    set_hook(project, hook.url)
    assert not tell_failure(run_of(*results), project)
    assert hook.told == []


def test_nothing_is_posted_unless_params_yaml_says_so(project: Path, hook: Hook) -> None:
    assert load_params(project / "params.yaml").failure_hook.url is None
    assert not tell_failure(run_of(FAILED), project)


def test_the_flow_tells_it_and_fails_as_it_would(project: Path, hook: Hook) -> None:
    set_hook(project, hook.url)
    assert main(["--no-server"]) == 0
    assert hook.told == []
    (project / "broken").touch()
    assert main(["--no-server", "--force"]) == 1
    (told,) = hook.told
    assert [stage["name"] for stage in told["stages"]] == ["first", "second"]


def test_a_run_that_cannot_start_is_posted_too(project: Path, hook: Hook) -> None:
    set_hook(project, hook.url)
    path = project / "params.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("seed: 17", "seed: many"), encoding="utf-8")
    assert main(["--no-server"]) == 2
    (told,) = hook.told
    assert "seed" in told["failure"] and told["stages"] == []


def test_the_address_may_come_from_the_environment(project: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    set_hook(project, "env:THE_HOOK")
    monkeypatch.setenv("THE_HOOK", hook.url)
    assert post(project, None, [], "why")
    assert hook.told[0]["failure"] == "why"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9/secret", "no answer within"),
        ("env:NOT_SET_ANYWHERE", "NOT_SET_ANYWHERE is not set"),
        ("ftp://x", "failure_hook of"),
    ],
)
def test_a_hook_that_does_not_answer_is_reported_and_changes_nothing(
    url: str, said: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_hook(project, url)
    assert not tell_failure(run_of(FAILED), project)
    seen = capsys.readouterr().err
    assert said in seen and "secret" not in seen


def test_a_hook_that_answers_with_an_error_is_said(
    project: Path, hook: Hook, capsys: pytest.CaptureFixture[str]
) -> None:
    hook.answer = 500
    set_hook(project, hook.url)
    assert not tell_failure(run_of(FAILED), project)
    assert "it answered 500" in capsys.readouterr().err


def test_a_url_that_is_none_is_refused_when_params_are_read(project: Path) -> None:
    set_hook(project, "example.org")
    with pytest.raises(VocabgraftError, match=r"failure_hook\.url"):
        load_params(project / "params.yaml")
