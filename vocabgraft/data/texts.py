"""The texts of rows: which are the same, which cannot be in a row, which relations exclude each other.

Also own sentences of everyday subjects, for users that have no texts of that kind.
"""

import csv
from pathlib import Path
from typing import Literal

# Control characters are left behind by conversions; U+FFFD stands where a character was lost.
UNPRINTABLE = "[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffd]"
# A relation that says two things differ cannot hold beside one that says that they are alike.
UNLIKE = frozenset({"antonym", "distinctfrom", "notisa"})
ALIKE = frozenset({"synonym", "isa", "similarto", "definedas", "formof", "instanceof"})
GENERAL_PAIRS = Path(__file__).with_name("general_pairs.csv")


def fold(text: str) -> str:
    """A text without differences of casing and white space."""
    return " ".join(text.casefold().split())


def side_of(relation: str) -> Literal["unlike", "alike", ""]:
    """Whether a relation says that its head and tail differ or that they are alike; empty where it says neither."""
    name = fold(relation)
    return "unlike" if name in UNLIKE else "alike" if name in ALIKE else ""


def general_sentences(pairs: int) -> tuple[list[str], list[str]]:
    """The first sentences of that many pairs, and the second ones."""
    with GENERAL_PAIRS.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))[:pairs]
    return [row["sentence1"] for row in rows], [row["sentence2"] for row in rows]
