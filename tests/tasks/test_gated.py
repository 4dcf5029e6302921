"""A run with a gate through the registry: told as code of its own, and loaded by MLflow alone in another process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.tasks.test_check_consistency import LIMITS
from tests.tasks.test_remote_code import put, run
from vocabgraft.models.base import load_model
from vocabgraft.models.gate import CODE, GATE_TYPE

OLD = ["a dog", "pain in the liver"]
FRESH = """
import sys, numpy, mlflow
model = mlflow.sentence_transformers.load_model(sys.argv[1])
numpy.save(sys.argv[2], model.encode(sys.argv[3:]))
assert "vocabgraft" not in sys.modules
"""


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def own_code(version: Any) -> str:
    """The verdict of the gate on own code, which names the class."""
    gate = next(gate for gate in json.loads(version.tags["gates"]) if gate["kind"] == "own modules")
    assert GATE_TYPE in str(gate)
    return str(gate["verdict"])


# All stages, MLflow and a process of its own: minutes where cores are shared.
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_a_registered_gate_loads_by_mlflow_alone_and_stays_challenger(
    tiny_project: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    new_store: Callable[[Path], str],
) -> None:
    from tasks.registry.lookup import connect, find_by_alias, find_by_digest

    store = new_store(tiny_project / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    put("resize_base", initialisation="subword_mean")
    put("train_adapter", method="gated", epochs=1, learning_rate=0.01)
    gates = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["register_model"]["gates"]
    put("register_model", gates=gates | {"first_champion": "any", "benefit": None})
    # Random weights mean nothing.
    meaningless = dict.fromkeys(("meaning_kept", "description_cosine", "onnx_export"), "random weights")
    put("check_consistency", waived=meaningless, **LIMITS)
    assert run("validate_data", "extend_tokenizer", "resize_base", "train_adapter", "merge_adapter") == 0
    assert run("check_consistency", "train_control", "evaluate_model", "register_model") == 0
    record = read(Path("data/register_model/registration.json"))
    version = find_by_digest(connect(), record["name"], record["content_digest"])
    assert version is not None
    assert version.tags["remote_code"].startswith(f"on: {CODE.name}")
    assert own_code(version) == "not met"
    assert find_by_alias(connect(), record["name"], "champion") is None
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    variables = {**os.environ, "HF_MODULES_CACHE": str(elsewhere / "code"), "HF_HUB_OFFLINE": "1"}
    named = f"models:/{version.name}/{version.version}"
    command = [sys.executable, "-P", "-c", FRESH, named, str(elsewhere / "vectors.npy"), *OLD]
    subprocess.run(command, check=True, cwd=elsewhere, env=variables | {"MLFLOW_TRACKING_URI": store})
    base = load_model(Path(read(Path("data/validate_data/base.json"))["model"]), device="cpu")
    assert np.array_equal(np.load(elsewhere / "vectors.npy"), base.encode(OLD))
    put("register_model", gates=gates | {"first_champion": "any", "benefit": None, "allow_own_modules": True})
    assert run("register_model") == 0
    version = find_by_digest(connect(), record["name"], record["content_digest"])
    # Whether it is champion then depends on the other gates, one of which is a time.
    assert version is not None and own_code(version) == "holds"


def test_a_gated_model_is_refused_as_a_base(tiny_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("resize_base", initialisation="subword_mean")
    put("train_adapter", method="gated", epochs=1)
    assert run("validate_data", "extend_tokenizer", "resize_base", "train_adapter", "merge_adapter") == 0
    put("base", model="./data/merge_adapter", sha256=None, trust_remote_code=True)
    assert run("validate_data") == 1
    assert "has a gate" in capsys.readouterr().err
