"""The MLflow store: its URI, whether it works, and masking of secrets. Imports no MLflow."""

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from vocabgraft.errors import VocabgraftError

DEFAULT_STORE = "sqlite:///mlflow.db"
SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
HIDDEN = "***"
USER = re.compile(r"(?<=://)[^\s/'\"]*@")
# In URIs (a SAS's `sig=`, a presigned request's `X-Amz-Signature=`) and in connection strings (ODBC's `PWD=`), also if
# such a string is encoded in a URI.
SECRET_QUERY = re.compile(
    r"((?:^|[?&;\s'\"(]|%3B|%26)"
    r"(?:[^=&;?%\s]{0,60}(?:password|passwd|pwd|token|secret|key|credential|signature)[^=&;?%\s]{0,60}|sig)"
    r"(?:=|%3D))(?:(?!%3B|%26)[^&;\s'\"])+",
    re.IGNORECASE,
)
# A shorter secret would match inside ordinary words.
LEAST_SECRET = 4
# How long a process waits while another writes; SQLite's default, which MLflow keeps, is 5 s.
SECONDS_TO_WAIT_FOR_A_WRITER = 60
HTTP = ("http", "https")


def store_uri() -> str:
    """`MLFLOW_TRACKING_URI`, by default the SQLite store in the project."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE


def masked(text: str) -> str:
    """Mask the users and passwords of URIs in a text, and the secrets of the environment."""
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    return SECRET_QUERY.sub(rf"\1{HIDDEN}", USER.sub(f"{HIDDEN}@", text))


def require_database(uri: str) -> None:
    """Try to open a database store once. MLflow itself would try ten times, for more than 90 s.

    Raises:
        VocabgraftError: if it does not open, or a SQLite file cannot be written.
    """
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file", *HTTP):
        return
    try:
        if scheme.startswith("sqlite"):
            _require_sqlite(uri)
        else:
            create_engine(uri).connect().close()
    except (SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
        raise unusable(uri, error) from error


def unusable(uri: str, error: Exception | str) -> VocabgraftError:
    """The error for a store that does not work."""
    said = first_line(str(error))
    return VocabgraftError(
        masked(f"the MLflow store at {uri} cannot be used: {said}; start it, or correct MLFLOW_TRACKING_URI")
    )


def first_line(text: str) -> str:
    """The first line of an error, without SQL statements and traces."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")


@contextmanager
def sqlite_made_by_one(uri: str) -> Iterator[None]:
    """Let only one process create a SQLite store; two that create its tables at the same time would damage it."""
    path = _sqlite_file(uri)
    if path is None or (path.is_file() and path.stat().st_size and _has_tables(path)):
        yield
        return
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        yield


@contextmanager
def one_writer(uri: str) -> Iterator[None]:
    """Let one process at a time change the aliases of a SQLite store; the kernel frees the lock of a killed one."""
    path = _sqlite_file(uri)
    if path is None:
        yield
        return
    from filelock import FileLock

    with FileLock(f"{path}.aliases.lock"):
        yield


def patient(uri: str) -> str:
    """A SQLite URI with a longer wait for other writers; other URIs stay the same."""
    if _sqlite_file(uri) is None or "timeout" in make_url(uri).query:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}timeout={SECONDS_TO_WAIT_FOR_A_WRITER}"


def _require_sqlite(uri: str) -> None:
    path = _sqlite_file(uri)
    if path is None:
        return
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise OSError(f"{existing} is not a folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=SECONDS_TO_WAIT_FOR_A_WRITER, isolation_level=None)
    try:
        connection.execute("PRAGMA schema_version")
        # Rolled back afterwards; without a write, a transaction does not fail if the file or its folder is read-only.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE written_to_try (x)")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def _sqlite_file(uri: str) -> Path | None:
    if not uri.startswith("sqlite"):
        return None
    database = make_url(uri).database
    return Path(database) if database and database != ":memory:" else None


def _has_tables(path: Path) -> bool:
    connection = sqlite3.connect(path)
    try:
        found = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
    finally:
        connection.close()
    return found is not None


def _secrets() -> list[str]:
    found = [os.environ.get(name, "") for name in SECRET_VARIABLES]
    password = re.match(r"^[\w+.-]+://[^:/@]*:([^@]*)@", store_uri())
    if password:
        found += [password[1], unquote(password[1])]
    return sorted({secret for secret in found if len(secret) >= LEAST_SECRET}, key=len, reverse=True)
