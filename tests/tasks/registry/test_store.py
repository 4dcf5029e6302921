"""The store's address: whether the store answers, and what messages say about it."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tasks.registry.lookup import connect, explained
from tasks.registry.store import masked, patient, require_database
from tests.conftest import write_lines
from vocabgraft.errors import VocabgraftError

SECRET = "s3cret/w@rd"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("at https://me:word@host:5000/path failed", "at https://***@host:5000/path failed"),
        ("postgresql+psycopg2://me:w%40rd@host/db", "postgresql+psycopg2://***@host/db"),
        ("http://host/path?api_key=12345&x=1", "http://host/path?api_key=***&x=1"),
        (
            "mssql://h/?odbc_connect=DRIVER%3Dx%3BUID%3Dme%3BPWD%3Dword%3BDb%3Dy",
            "mssql://h/?odbc_connect=DRIVER%3Dx%3BUID%3Dme%3BPWD%3D***%3BDb%3Dy",
        ),
        ("failed: Server=h;UID=me;Pwd=word;Database=y", "failed: Server=h;UID=me;Pwd=***;Database=y"),
        ("host=h user=me password=word dbname=y", "host=h user=me password=*** dbname=y"),
        ("https://h/c?sv=1&sig=a%2Bb%3D&se=2", "https://h/c?sv=1&sig=***&se=2"),
        (
            "https://h/c?X-Amz-Signature=ab&X-Amz-Credential=cd&x=1",
            "https://h/c?X-Amz-Signature=***&X-Amz-Credential=***&x=1",
        ),
        ("https://h/c?design=blue&assigned=me", "https://h/c?design=blue&assigned=me"),
        ("models:/name@champion in sqlite:////a/b@c/mlflow.db", "models:/name@champion in sqlite:////a/b@c/mlflow.db"),
    ],
)
def test_secrets_of_addresses_are_masked(text: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert masked(text) == told


def test_a_password_is_masked_wherever_it_occurs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:p%40ssword@host")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token-1234")
    assert masked("p@ssword, p%40ssword and token-1234") == "***, *** and ***"


@pytest.mark.parametrize("uri", ["http://me:{}@127.0.0.1:9", "postgresql://me:{}@127.0.0.1:9/db"])
def test_a_store_that_is_down_is_a_clear_error_without_its_secret(
    uri: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format("hidden-word"))
    started = time.monotonic()
    with pytest.raises(VocabgraftError, match=r"the MLflow store at .*\*\*\*@127.0.0.1:9.* cannot be used") as caught:
        connect(retries=0)
    assert time.monotonic() - started < 20
    said = capfd.readouterr()
    assert "hidden-word" not in str(caught.value) + said.out + said.err


@pytest.mark.parametrize("place", ["a file/mlflow.db", "/proc/nowhere/mlflow.db", "damaged.db", "folder"])
def test_a_sqlite_store_that_does_not_open_is_reported_at_once(
    place: str, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(in_folder / "a file", ["text"])
    write_lines(in_folder / "damaged.db", ["this is no database"] * 100)
    (in_folder / "folder").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}")
    started = time.monotonic()
    with pytest.raises(VocabgraftError, match="cannot be used"):
        connect()
    assert time.monotonic() - started < 20, "MLflow alone tries for over a minute and a half"


def test_a_read_only_sqlite_file_is_reported(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = in_folder / "mlflow.db"
    sqlite3.connect(path).execute("CREATE TABLE t (x)").connection.close()
    # As for a file that this process may not write; root may write every file.
    opened = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *_, **options: opened(f"file:{path}?mode=ro", uri=True, **options))
    with pytest.raises(VocabgraftError, match="readonly database"):
        require_database("sqlite:///mlflow.db")


def test_writers_of_one_sqlite_file_wait_for_each_other_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert patient("sqlite:///a.db") == "sqlite:///a.db?timeout=60"
    assert patient("sqlite:///a.db?timeout=7") == "sqlite:///a.db?timeout=7"
    assert patient("http://host") == "http://host"


@pytest.mark.parametrize("said", ["database or disk is full", "[Errno 28] No space left on device: 'x'"])
def test_a_full_disk_is_reported_with_its_remedy(said: str) -> None:
    assert explained(OSError(f"{said}\n[SQL: INSERT]")) == f"{said}; free some space and run again"


@pytest.fixture
def restarting() -> Iterator[tuple[str, list[str]]]:
    """A server that refuses two calls, as while it restarts, and then has no experiment."""
    calls: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            calls.append(self.path)
            body = b"{}" if len(calls) > 2 else b""
            self.send_response(200 if len(calls) > 2 else 503)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", calls
    server.shutdown()
    server.server_close()


def test_a_server_that_restarts_is_waited_for(
    restarting: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, calls = restarting
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    connect(retries=3)
    assert len(calls) >= 3, "two that were refused, and one that was answered"


def test_a_server_that_stays_down_is_not_waited_for_at_the_start(
    restarting: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, calls = restarting
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    with pytest.raises(VocabgraftError, match="start it, or correct MLFLOW_TRACKING_URI"):
        connect(retries=0)
    assert len(calls) == 1
