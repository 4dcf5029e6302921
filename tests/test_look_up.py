"""The recipes of look-up in README.md and docs/, each run as it stands in a process that cannot import this project."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vocabgraft.storage.artifacts import read_json

from .conftest import ROOT
from .markdown_files import blocks
from .registered_models import Made, build

TEXTS = ["nephrolithiasis with hydronephrosis", "a stone in the kidney"]
STORE = "sqlite:////path/to/the/project/mlflow.db"
# Each way to load a model, by a name that its recipe uses: a page that loses one is seen.
WAYS = ("sentence_transformers.load_model", "pyfunc.load_model", "SentenceTransformer(", "ParquetWriter")
# A user's process: the project is installed beside the libraries here, so its names are refused.
RUNNER = """
import sys

# None is what a library that asks whether they are there gets to hear, too.
sys.modules |= dict.fromkeys(("vocabgraft", "tasks", "flows", "tests", "peft"))
import json
import numpy as np

found = {}
for name, recipe in json.loads(sys.stdin.read()).items():
    space = {}
    exec(compile(recipe, name, "exec"), space)
    if "vectors" in space:
        found[name] = np.asarray(space["vectors"], dtype=np.float32)
np.savez("found.npz", **found)
"""


@pytest.fixture(scope="module")
def registered(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, new_store: Callable[[Path], str]
) -> tuple[str, Made]:
    """A store whose champion is the tiny model, and the model's folders; everything it was made from is elsewhere."""
    root = tmp_path_factory.mktemp("registered")
    shutil.copy(ROOT / "params.yaml", root)
    uri = new_store(root / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("DVC_EXP_NAME", raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        made = build(root, tiny_base, "vocabgraft-minilm", "first")
        made.register()
    return uri, made


def recipes(uri: str) -> dict[str, str]:
    """Every Python block that uses MLflow, with this test's store."""
    found = {block.name: block.text for block in blocks("python") if "import mlflow" in block.text}
    assert all(STORE in text for text in found.values())
    assert all(any(way in text for text in found.values()) for way in WAYS)
    assert {name.partition(",")[0] for name in found} == {"README.md", "registry.md"}
    return {name: text.replace(STORE, uri) for name, text in found.items()}


@pytest.fixture(scope="module")
def expected(registered: tuple[str, Made]) -> "np.ndarray[Any, Any]":
    """The vectors of the merged folder."""
    from vocabgraft.models.base import load_model

    merged = registered[1].root / "merged"
    return np.asarray(load_model(merged, device="cpu").encode(TEXTS, show_progress_bar=False))


def test_every_recipe_gives_the_vectors_of_the_merged_model(
    registered: tuple[str, Made], expected: "np.ndarray[Any, Any]", tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "texts.parquet")
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUNNER],
        input=json.dumps(recipes(registered[0])),
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        vectors = dict(found)
    table = pq.read_table(tmp_path / "vectors.parquet")
    assert table["text"].to_pylist() == TEXTS
    (parquet,) = set(recipes(registered[0])) - set(vectors)
    vectors[parquet] = np.array(table["vector"].to_pylist(), dtype=np.float32)
    for name, seen in vectors.items():
        np.testing.assert_array_equal(seen, expected, err_msg=name)


def test_the_registered_folder_is_complete_and_holds_no_code_and_no_pickle(registered: tuple[str, Made]) -> None:
    import yaml

    from tasks.registry.lookup import download_model

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", registered[0])
        plain = download_model("models:/vocabgraft-minilm@champion")
    whole = plain.parent
    files = [path for path in whole.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".py", ".pkl", ".bin", ".pt", ".pickle", ".joblib")]
    described = yaml.safe_load((whole / "MLmodel").read_text(encoding="utf-8"))
    assert {"inputs", "outputs"} <= set(described["signature"])
    assert described["saved_input_example_info"]["artifact_path"] == "input_example.json"
    requirements = (whole / "requirements.txt").read_text(encoding="utf-8").split()
    assert all("==" in line and "+" not in line for line in requirements)
    assert {line.partition("==")[0] for line in requirements} >= {"sentence-transformers", "torch", "mlflow"}
    card = (plain / "README.md").read_text(encoding="utf-8")
    assert "# vocabgraft-minilm" in card and "`kidney`, `liver`" in card and "License" in card
    merged = read_json(registered[1].root / "merged" / "config_sentence_transformers.json")
    assert read_json(plain / "config_sentence_transformers.json")["prompts"] == merged["prompts"]


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.slow
def test_a_served_model_answers_over_http_with_the_same_vectors(
    registered: tuple[str, Made], expected: "np.ndarray[Any, Any]", tmp_path: Path
) -> None:
    lines = [line for block in blocks() for line in block.text.splitlines()]
    (command,) = [line for line in lines if line.startswith("mlflow models serve")]
    port = free_port()
    words = command.replace("5001", str(port)).split()
    programs = str(Path(sys.executable).parent)
    server = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=os.environ | {"MLFLOW_TRACKING_URI": registered[0], "PATH": f"{programs}:{os.environ['PATH']}"},
        stdout=(tmp_path / "log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        answer = asked(f"http://127.0.0.1:{port}/invocations", {"inputs": TEXTS}, server)
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)
    np.testing.assert_allclose(np.array(answer["predictions"], dtype=np.float32), expected, atol=1e-6)


def asked(address: str, question: dict[str, Any], server: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """The answer, once the server is there."""
    request = urllib.request.Request(
        address, json.dumps(question).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    raise AssertionError("the server does not answer")
