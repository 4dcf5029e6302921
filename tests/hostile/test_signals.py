"""What stays until it is told to end does so on SIGTERM, with all that it started, though SIGINT is ignored."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.flows.service.test_ui import group_members

# Servers that start in no time, each of which writes down its process group; the second never answers.
SERVER = """
import http.server, os, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open("group", "w") as stream:
    stream.write(str(os.getpid()))
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
with open("port.partial", "w") as stream:
    stream.write(str(server.server_port))
os.rename("port.partial", "port")
server.serve_forever()
"""
UI = """
import sys, time
from pathlib import Path
from flows.service import servers, ui
server = servers.Server("MLflow", [sys.executable, "-c", sys.argv[1]], "-", "-", Path("log"))
servers.answers = lambda _: Path("port").is_file()
ui.servers_of, ui.try_page = lambda *_: [server], lambda *_: server
ui.serve(1, 2, 3, None, ())
"""
SCHEDULE = """
import sys
from pathlib import Path
from flows.service import schedule, servers
server = servers.Server("Prefect", [sys.executable, "-c", sys.argv[1]], "-", "-", Path("log"))
servers.answers = lambda _: Path("port").is_file() and bool(print("waiting", flush=True))
schedule.prefect_server = lambda *_: server
Path(".dvc").mkdir()
schedule.serve_here("0 3 * * *", "UTC", "a", "queue", 9)
"""


# As a shell without job control does for what it starts in the background.
IGNORE_SIGINT = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"


@pytest.mark.parametrize("before", [IGNORE_SIGINT, ""], ids=["SIGINT ignored", "SIGINT heard"])
@pytest.mark.parametrize(("script", "word"), [(UI, "Ctrl-C stops all"), (SCHEDULE, "waiting")], ids=["ui", "schedule"])
def test_sigterm_ends_a_service_and_its_servers(script: str, word: str, before: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    process = subprocess.Popen(
        [sys.executable, "-c", before + script, SERVER],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(tmp_path / "prefect")},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert any(word in line for line in process.stdout), "it ended before it had started"
        group = int((tmp_path / "group").read_text())
        assert len(group_members(group)) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 0
        assert group_members(group) == []
    finally:
        process.kill()
        process.wait()
