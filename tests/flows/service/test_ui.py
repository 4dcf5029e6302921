"""The servers of `make ui`."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from flows.service import servers, ui
from tests.conftest import ROOT
from tests.flows.invoke import cli
from vocabgraft.errors import VocabgraftError

STAND_IN = """
import http.server, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""


LOG = Path("reports/servers/prefect.log")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def stand_in(name: str) -> servers.Server:
    """A server that starts in no time and has a child, as MLflow's has."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    return servers.Server(name, [sys.executable, "-c", STAND_IN, str(port)], address, address, LOG.with_name(name))


def group_members(group: int) -> list[int]:
    """The processes of a process group that are not dead; who inherits a dead one may not have noticed."""
    told = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in told.splitlines()]
    return [int(pid) for pid, pgid, state in rows if int(pgid) == group and not state.startswith("Z")]


def test_both_servers_answer_and_end_with_all_their_children(in_folder: Path) -> None:
    both = [stand_in("MLflow"), stand_in("Prefect")]
    with servers.started(both) as processes:
        for server in both:
            with urllib.request.urlopen(server.address, timeout=10) as response:
                assert response.status == 200
        groups = [process.pid for process in processes]
        assert all(len(group_members(group)) == 2 for group in groups)
    assert [group_members(group) for group in groups] == [[], []]


def test_a_server_that_ends_is_reported_with_its_log_and_ends_the_other(in_folder: Path) -> None:
    ending = [sys.executable, "-c", "print('no such table'); raise SystemExit(3)"]
    broken, good = servers.Server("Prefect", ending, "-", "http://127.0.0.1:9", LOG), stand_in("MLflow")
    told = r"Prefect ended with code 3; .*prefect\.log says why"
    with pytest.raises(VocabgraftError, match=told), servers.started([good, broken]):
        pass
    assert "no such table" in LOG.read_text(encoding="utf-8")
    assert not servers.answers(good.address)


def test_a_port_that_is_taken_is_reported(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli("ui")(["--mlflow-port", str(port)]) == 2
    assert f"port {port} is taken" in capsys.readouterr().err


def test_a_server_is_not_served_again(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hidden-word@host")
    assert cli("ui")([]) == 2
    said = capsys.readouterr().err
    assert "MLFLOW_TRACKING_URI" in said and "hidden-word" not in said


def test_servers_listen_on_this_machine_alone_and_no_command_holds_the_address_of_the_store(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ui, "store_uri", lambda: "sqlite:///secret-place.db")
    for server in ui.servers_of(free_port(), free_port()):
        words = list(server.command)
        assert words[words.index("--host") + 1] == "127.0.0.1"
        assert "secret-place" not in " ".join(words)


@pytest.mark.slow
def test_ctrl_c_stops_every_server_and_none_needs_a_run_before(in_folder: Path) -> None:
    ports = [free_port(), free_port(), free_port()]
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "ui",
        "--mlflow-port",
        str(ports[0]),
        "--prefect-port",
        str(ports[1]),
        "--try-port",
        str(ports[2]),
    ]
    home = {"PREFECT_HOME": str(in_folder / "prefect"), "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": ""}
    process = subprocess.Popen(command, env=os.environ | home, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(4)]
        assert said == [
            f"MLflow: http://127.0.0.1:{ports[0]}",
            f"Prefect: http://127.0.0.1:{ports[1]}",
            f"Try it: http://127.0.0.1:{ports[2]}",
            "Ctrl-C stops all",
        ]
        for port in ports:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as response:
                assert response.status == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    time.sleep(1)
    assert not any(servers.answers(f"http://127.0.0.1:{port}/") for port in ports)
