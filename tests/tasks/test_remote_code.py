"""A base with code of its own: refused with nothing run, or through every stage to a model that needs no other file."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tasks._stage import run_stage
from tests.coded_base import CONFIGURATION, HELPER, MODEL, RAN, SOURCES, change_config
from tests.conftest import build_tiny_project
from tests.tasks.test_check_consistency import LIMITS
from vocabgraft.artifacts import digest_of, file_sha256
from vocabgraft.base_model import load_model

BEFORE_EVALUATION = (
    "validate_data",
    "extend_tokenizer",
    "resize_base",
    "train_adapter",
    "merge_adapter",
    "check_consistency",
)
AFTER = ("train_control", "evaluate_model", "register_model")
VALIDATED, RESIZED, MERGED = Path("data/validate_data"), Path("data/resize_base"), Path("data/merge_adapter")
FRESH = """
import sys, numpy
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", trust_remote_code=True)
numpy.save(sys.argv[2], model.encode(["a nephrolith", "a dog"]))
"""


def run(*stages: str) -> int:
    """Run stages as dvc.yaml would, until one fails."""
    for name in stages:
        if code := run_stage(getattr(importlib.import_module(f"tasks.{name}"), name), []):
            return code
    return 0


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def put(section: str, **values: Any) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params[section] |= values
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def project_on(root: Path, base: Path, trust_remote_code: bool) -> None:
    """A tiny project as the working folder."""
    build_tiny_project(root, base)
    put("base", trust_remote_code=trust_remote_code)
    put("check_consistency", **LIMITS)


@pytest.fixture(scope="module")
def trusted(coded_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project over the base with code, run up to the checks with base.trust_remote_code on."""
    root = tmp_path_factory.mktemp("trusted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        project_on(root, coded_base, trust_remote_code=True)
        assert run(*BEFORE_EVALUATION) == 0
    return root


def test_x(trusted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trusted)
    print(sorted(str(p) for p in Path("data").rglob("*.py")))
    print(Path("data/check_consistency/checks.json").read_text())
