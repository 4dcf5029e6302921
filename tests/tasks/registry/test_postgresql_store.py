"""A tracking server over PostgreSQL, where that is installed (Debian's `postgresql`)."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.registry.lookup import CHAMPION, connect, download_model
from tests.conftest import ROOT
from tests.registered_models import build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
NOBODY = "postgres"


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def programs() -> Path:
    """The folder of initdb and pg_ctl; Debian keeps it off the path. Skips the test where there is none."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").is_file()]
    on_path = shutil.which("initdb")
    if not found and not on_path:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    pytest.importorskip("psycopg2", reason="psycopg2-binary, of the extra test, is not installed")
    return max(found) if found else Path(str(on_path)).parent


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A PostgreSQL of this test alone, on 127.0.0.1, with a password."""
    folder, port = programs(), free_port()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        # PostgreSQL refuses to run as root.
        run_as = ["runuser", "-u", NOBODY, "--"] if os.geteuid() == 0 else []
        if run_as:
            shutil.chown(root, NOBODY)
            root.chmod(0o755)
        (root / "password").write_text("hidden-word", encoding="utf-8")
        (root / "password").chmod(0o644)

        def call(*command: str) -> None:
            subprocess.run([*run_as, *command], check=True, cwd=root, stdout=subprocess.DEVNULL)

        data = str(root / "data")
        initdb = [str(folder / "initdb"), "--pgdata", data, "--username", "mlflow", "--auth", "scram-sha-256"]
        call(*initdb, "--pwfile", str(root / "password"))
        settings = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={root}"
        control = [str(folder / "pg_ctl"), "--pgdata", data, "--wait"]
        call(*control, "--log", str(root / "log"), "--options", settings, "start")
        try:
            yield f"postgresql://mlflow:hidden-word@127.0.0.1:{port}/postgres"
        finally:
            call(*control, "--mode", "immediate", "stop")


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """MLflow's tracking server over it, which keeps the artifacts itself."""
    root, port = tmp_path_factory.mktemp("server"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    stores = {"MLFLOW_BACKEND_STORE_URI": database, "MLFLOW_ARTIFACTS_DESTINATION": str(root / "artifacts")}
    with (root / "log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=os.environ | stores, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 300
        while not answers(f"{address}/health"):
            assert process.poll() is None and time.monotonic() < deadline, (root / "log").read_text(encoding="utf-8")
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=60)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.parametrize("through", ["server", "database"])
def test_a_model_is_registered_promoted_and_read_back(
    through: str,
    request: pytest.FixtureRequest,
    in_folder: Path,
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue(through))
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    shutil.copy(ROOT / "params.yaml", in_folder)
    name = f"through the {through}"
    if through == "database":
        # The server made the experiment, with files that it alone reads.
        monkeypatch.setattr("tasks.registry.register.EXPERIMENT", "without a server")
    first, second = (build(in_folder, tiny_base, name, mark, gain=gain) for mark, gain in (("a", 5.0), ("b", 6.0)))
    for made in (first, second, first, second):
        made.register()
    assert first.versions() == [1, 2]
    assert second.digest_at(CHAMPION) == second.digest
    folder = download_model(f"models:/{name}@champion")
    assert (folder / "model.safetensors").read_bytes() == (second.root / "merged" / "model.safetensors").read_bytes()
    run = connect().get_run(connect().get_model_version(name, "2").run_id)
    assert run.data.metrics["merged.terms.new_word.mrr"] == 56.0
    said = capfd.readouterr()
    assert "hidden-word" not in said.out + said.err
