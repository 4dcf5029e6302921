"""A hook's server can neither hold a run, nor send its message elsewhere, nor make the address be shown."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.engine.run_record import valid_params
from flows.reporting.webhook import post
from tests.flows.invoke import cli
from tests.flows.projects import Trivial, write_project
from tests.flows.reporting.test_webhook import set_hook
from vocabgraft.config.params import load_params
from vocabgraft.errors import VocabgraftError

SECRET = "T0-s3cret"
main = cli("run")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of one stage, as the working folder."""
    root = write_project(tmp_path / "project", {"first": Trivial()})
    monkeypatch.chdir(root)
    return root


class Asked:
    """The requests that a server got, and whether the test is over."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.over = threading.Event()


@contextmanager
def server(answer: Callable[[socket.socket, Asked], None]) -> Iterator[tuple[str, Asked]]:
    """A server on this machine that answers each connection so."""
    asked = Asked()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)

        def serve() -> None:
            while not asked.over.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listening.accept()
                    connection.settimeout(10)
                    with connection:
                        asked.requests.append(connection.recv(65536))
                        answer(connection, asked)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/{SECRET}", asked
        finally:
            asked.over.set()
            thread.join()


def drip(connection: socket.socket, asked: Asked) -> None:
    """A byte of an answer now and then, each well within the time-out of one read, without an end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while not asked.over.wait(0.05):
        connection.sendall(b"x")


@pytest.mark.timeout(60)
def test_a_server_that_drips_does_not_hold_the_run(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with server(drip) as (url, asked):
        set_hook(project, url)
        text = (project / "params.yaml").read_text(encoding="utf-8").replace("timeout_s: 10.0", "timeout_s: 0.5")
        assert "timeout_s: 0.5" in text
        (project / "params.yaml").write_text(text, encoding="utf-8")
        assert not post(project, None, [], "why")
        assert not asked.over.is_set()
    said = capsys.readouterr().err
    assert "no answer within 0.5 s" in said and SECRET not in said


def test_a_redirect_is_not_followed(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def redirect(connection: socket.socket, asked: Asked) -> None:
        where = f"http://127.0.0.1:{connection.getsockname()[1]}/elsewhere-{SECRET}"
        connection.sendall(f"HTTP/1.1 302 {SECRET}\r\nLocation: {where}\r\nContent-Length: 0\r\n\r\n".encode())

    with server(redirect) as (url, asked):
        set_hook(project, url)
        assert not post(project, None, [], "why")
        assert len(asked.requests) == 1 and b"elsewhere" not in asked.requests[0]
    said = capsys.readouterr().err
    assert "it answered 302 Found; redirects" in said and SECRET not in said


@pytest.mark.parametrize("answer", [b"no HTTP at all\r\n\r\n", b"", b"\x00" * 100, b"HTTP/1.1 abc\r\n\r\n"])
def test_an_answer_that_is_not_http_is_reported(
    project: Path, answer: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with server(lambda connection, _: connection.sendall(answer)) as (url, _):
        set_hook(project, url)
        assert not post(project, None, [], "why")
    said = capsys.readouterr().err
    assert said.startswith("the failure hook") and "not HTTP" in said and SECRET not in said


@pytest.mark.parametrize(
    "address",
    [
        f"htp://example.org/{SECRET}",
        f"http:/example.org/{SECRET}",
        f"https://example.org:{SECRET}/x",
        f"https://example.org/{SECRET} x",
        f"https://[::1/{SECRET}",
        f"https://exa\u0000mple.org/{SECRET}",
        f"https://ex\u00e4mple..org/{SECRET}",
        f"https://{'a' * 70}.org/{SECRET}",
        SECRET,
    ],
)
def test_a_malformed_address_is_never_shown(
    project: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "\0" not in address:
        set_hook(project, "env:THE_HOOK")
        monkeypatch.setenv("THE_HOOK", address)
        assert not post(project, None, [], "why")
    set_hook_text(project, json.dumps(address))
    assert not post(project, None, [], "why")
    try:
        load_params(project / "params.yaml")
    except VocabgraftError as error:
        assert SECRET not in str(error)
    seen = capsys.readouterr()
    assert "the failure hook" in seen.err and SECRET not in seen.out + seen.err


def set_hook_text(root: Path, text: str) -> None:
    """Write the address as it stands in YAML."""
    path = root / "params.yaml"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if line.startswith("failure_hook:"))
    at = next(number for number in range(at, len(lines)) if lines[number].lstrip().startswith("url:"))
    lines[at] = f"  url: {text}\n"
    path.write_text("".join(lines), encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        f'"https://x/{SECRET}',
        f"[https://x/{SECRET}",
        f"https://x/{SECRET}\n  ulr: a: {SECRET}",
        f"https://x/{SECRET}\n  url: {SECRET}",
    ],
)
def test_a_file_that_is_no_yaml_is_refused_without_the_address(
    project: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    set_hook_text(project, text)
    with pytest.raises(VocabgraftError) as refused:
        load_params(project / "params.yaml")
    assert not post(project, None, [], "why")
    assert SECRET not in str(refused.value) + capsys.readouterr().err
    assert "line " in str(refused.value)


def test_an_address_that_stands_in_params_is_in_no_record(project: Path) -> None:
    set_hook(project, f"https://example.org/{SECRET}")
    params = load_params(project / "params.yaml")
    assert params.failure_hook.url == f"https://example.org/{SECRET}"
    assert SECRET not in json.dumps(params.model_dump(mode="json")) + repr(params)
    assert SECRET not in json.dumps(valid_params(project / "params.yaml"))
    set_hook(project, "null")
    assert main(["--no-server"]) == 0
    for left in project.glob("reports/*.*"):
        assert SECRET not in left.read_text(encoding="utf-8")


def test_the_name_of_a_variable_is_no_secret(project: Path) -> None:
    set_hook(project, "env:THE_HOOK")
    assert load_params(project / "params.yaml").model_dump()["failure_hook"]["url"] == "env:THE_HOOK"
