"""`import vocabgraft`: every public name is there, and nothing heavy is loaded for it."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import vocabgraft

HEAVY = ("torch", "transformers", "sentence_transformers", "datasets", "peft", "numpy", "pandas", "pydantic")
INIT = Path(vocabgraft.__file__)


def test_importing_loads_no_heavy_library() -> None:
    code = f"import sys, vocabgraft; dir(vocabgraft); print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", vocabgraft.__all__)
def test_each_public_name_resolves(name: str) -> None:
    found = getattr(vocabgraft, name)
    assert name in dir(vocabgraft)
    if name != "__version__":
        assert found.__name__ == name


def test_types_and_runtime_name_the_same_objects() -> None:
    tree = ast.parse(INIT.read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == {name: f"vocabgraft.{module}" for name, module in vocabgraft._MODULES.items()}
    assert set(typed) | {"__version__"} == set(vocabgraft.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="extendd"):
        _ = vocabgraft.extendd


def test_the_version_is_the_packages_and_types_are_marked() -> None:
    assert vocabgraft.__version__ == version("vocabgraft")
    assert INIT.with_name("py.typed").is_file()
