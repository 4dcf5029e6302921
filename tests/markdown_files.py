"""The project's Markdown files and what tests read in them."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

FENCED = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```[ ]*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: the file it is in, its place there from 1, its language ("" for none), its text without
    the indentation of a list.
    """

    page: Path
    number: int
    language: str
    text: str

    @property
    def name(self) -> str:
        """Where the block is, for messages."""
        return f"{self.page.name}, block {self.number}"


def markdown_files(root: Path = ROOT) -> list[Path]:
    """README.md and its neighbors, and every page of docs/."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]


def blocks(language: str | None = None, root: Path = ROOT) -> Iterator[Block]:
    """The fenced blocks of all Markdown files, those of one language if it is given."""
    for page in markdown_files(root):
        for number, (found, text) in enumerate(FENCED.findall(page.read_text(encoding="utf-8")), start=1):
            if language in (None, found):
                yield Block(page, number, found, textwrap.dedent(text))


def without_blocks(text: str) -> str:
    """The prose of a page: fenced blocks are not Markdown."""
    return FENCED.sub("", text)
