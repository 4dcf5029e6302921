"""`vocabgraft publish` against a server on loopback that takes what a hub takes, and records it."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.flows.invoke import cli
from tests.vocabgraft.conftest import load
from tests.vocabgraft.pack_samples import KIDNEY, make_pack
from vocabgraft.hub.card import read_metadata
from vocabgraft.models.saving import save_model
from vocabgraft.packs.pack_files import write_pack_inside

main = cli("publish")
REPO = "clinic/minilm"


class Hub(ThreadingHTTPServer):
    """Takes the calls that make a repository and a commit; any other is an error."""

    def __init__(self, refuses: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.refuses = refuses
        self.created: list[dict[str, Any]] = []
        self.commits: list[dict[str, bytes]] = []
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    """One call."""

    server: Hub

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(content))
            self._answer({"url": f"{self.server.url}/{REPO}"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path == f"/api/models/{REPO}/preupload/main":
            names = [entry["path"] for entry in json.loads(content)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self._answer({"files": files})
        elif self.path == f"/api/models/{REPO}/commit/main" and not self.server.refuses:
            lines = [json.loads(line) for line in content.splitlines()]
            files = [line["value"] for line in lines if line["key"] == "file"]
            self.server.commits.append({file["path"]: base64.b64decode(file["content"]) for file in files})
            self._answer({"commitOid": "a" * 40, "commitUrl": f"{self.server.url}/{REPO}/commit/{'a' * 40}"})
        else:
            self._answer({"error": "not for you"}, 403)

    def do_GET(self) -> None:
        self._answer({"error": "not here"}, 404)

    def _answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    with Hub(refuses=getattr(request, "param", False)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def model(tiny_base: Path, in_folder: Path) -> Path:
    """A model with its pack and a card, as it is kept here."""
    folder = in_folder / "model"
    save_model(load(tiny_base), folder)
    write_pack_inside(make_pack(load(tiny_base), "kidney", KIDNEY), folder / "pack")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Kidney words\n", encoding="utf-8")
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "secret").write_text("x", encoding="utf-8")
    return folder


def publish(hub: Hub, *options: str, token: str | None = "hf_stub") -> "subprocess.CompletedProcess[str]":
    # The library reads the address of the hub when it is imported.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(Path("hf").absolute())}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])}
    environment |= {} if token is None else {"HF_TOKEN": token}
    command = [sys.executable, "-m", "flows.cli", "publish", "model", "--repo", REPO, *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)


def test_everything_goes_in_one_commit_with_a_complete_card(hub: Hub, model: Path) -> None:
    done = publish(hub, "--json")
    assert done.returncode == 0, done.stderr
    (commit,) = hub.commits
    (created,) = hub.created
    assert (created["name"], created["organization"]) == ("minilm", "clinic")
    assert created.get("private") is True or created.get("visibility") == "private"
    assert hub.tokens == {"Bearer hf_stub"} and "hf_stub" not in done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert set(told["files"]) == set(commit) and told["commit"].startswith(hub.url)
    local = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert set(commit) == local - {"manifest.json", ".cache/secret"}
    assert all(commit[name] == (model / name).read_bytes() for name in set(commit) - {"README.md"})
    card = commit["README.md"].decode()
    assert read_metadata(card)["license"] == "mit" and "# Kidney words" in card and told["card"] == card


def test_a_dry_run_shows_what_would_be_sent_and_contacts_no_server(hub: Hub, model: Path) -> None:
    done = publish(hub, "--dry-run", "--license", "apache-2.0", "--public", token=None)
    assert done.returncode == 0, done.stderr
    assert not hub.created and not hub.commits and not hub.tokens
    expected = ("model.safetensors", "pack/rows.safetensors", "license: apache-2.0", "public if it is new", "--dry-run")
    assert [text for text in expected if text not in done.stdout] == []
    assert ".cache" not in done.stdout


@pytest.mark.parametrize("hub", [True], indirect=True)
def test_a_refusal_names_its_server_and_hides_the_token(hub: Hub, model: Path) -> None:
    done = publish(hub)
    assert done.returncode == 2 and hub.created and not hub.commits
    assert "403" in done.stderr
    assert hub.url in done.stderr and REPO in done.stderr and "nothing was committed" in done.stderr
    assert "Traceback" not in done.stderr and "hf_stub" not in done.stderr


def _pickled(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"x")


def _unlicensed(model: Path) -> None:
    (model / "README.md").write_text("# no metadata\n", encoding="utf-8")


def _incomplete(model: Path) -> None:
    (model / "modules.json").unlink()


def _nothing(_: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        (_pickled, [], "pytorch_model.bin; only safetensors"),
        (_unlicensed, [], "the license of model is not known"),
        (_incomplete, [], "no modules.json"),
        (_nothing, ["--repo", "a/b/c"], "--repo is 'a/b/c'"),
        (_nothing, ["--onnx", "nowhere"], "--onnx is nowhere, which is not an export"),
    ],
)
def test_a_mistake_is_reported_before_anything_is_sent(
    model: Path, capsys: pytest.CaptureFixture[str], change: Any, options: list[str], says: str
) -> None:
    change(model)
    assert main(["model", "--repo", REPO, "--dry-run", *options]) == 2
    assert says in capsys.readouterr().err


def test_without_a_token_nothing_is_sent(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert main(["model", "--repo", REPO]) == 2
    assert "no token for the hub; set HF_TOKEN" in capsys.readouterr().err


def test_an_export_goes_beside_the_weights(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out/onnx").mkdir(parents=True)
    Path("out/onnx/model.onnx").write_bytes(b"graph")
    Path("out/export.json").write_text("{}", encoding="utf-8")
    assert main(["model", "--repo", REPO, "--dry-run", "--onnx", "out", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"onnx/model.onnx", "export.json", "model.safetensors"} <= set(told["files"])
    assert "onnx" in read_metadata(told["card"])["tags"]
