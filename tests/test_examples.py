"""The examples run as they are, on the tiny models, where the store that they use is installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("package", "example", "verb"), [("faiss", "faiss_index.py", "replaced"), ("duckdb", "duckdb_table.py", "updated")]
)
def test_an_example_replaces_the_vectors_of_new_words_alone(
    package: str, example: str, verb: str, tiny_base: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; pip install -e '.[test]' has it")
    new = add_word(tiny_base, tmp_path / "new", "nephrolithiasis")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / example), str(tiny_base), str(new)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first = "[11, 13]" if package == "faiss" else "[1, 3]"
    assert done.stdout.splitlines()[0] == f"2 of 4 vectors {verb}: {first}"
    assert all("nephrolithiasis" in line for line in done.stdout.splitlines()[1:3])


def add_word(base: Path, folder: Path, word: str) -> Path:
    """The model with one more word, whose row is far from all others."""
    import torch
    from tokenizers import AddedToken

    from vocabgraft.models.base import load_model
    from vocabgraft.models.saving import save_model

    model = load_model(base, device="cpu")
    model.tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True)])
    embeddings = model[0].auto_model.resize_token_embeddings(len(model.tokenizer))
    with torch.no_grad():
        embeddings.weight[-1] = 3 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    save_model(model, folder)
    return folder
