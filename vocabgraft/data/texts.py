"""The texts of rows: which are the same, which cannot be in a row, which relations exclude each other.

Also the package's own sentences about everyday subjects, for users without general texts.
"""

import csv
from pathlib import Path
from typing import Literal

# Conversions leave control characters behind, and U+FFFD in place of lost characters.
UNPRINTABLE = "[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffd]"
# A relation that says that two things differ contradicts one that says that they are alike.
UNLIKE = frozenset({"antonym", "distinctfrom", "notisa"})
ALIKE = frozenset({"synonym", "isa", "similarto", "definedas", "formof", "instanceof"})
GENERAL_PAIRS = Path(__file__).with_name("general_pairs.csv")


def fold(text: str) -> str:
    """A text with casing and white space normalized."""
    return " ".join(text.casefold().split())


def side_of(relation: str) -> Literal["unlike", "alike", ""]:
    """Whether a relation says that its head and tail differ or are alike; empty if it says neither."""
    name = fold(relation)
    return "unlike" if name in UNLIKE else "alike" if name in ALIKE else ""


def general_sentences(pairs: int) -> tuple[list[str], list[str]]:
    """First and second sentences of `pairs` general pairs."""
    with GENERAL_PAIRS.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))[:pairs]
    return [row["sentence1"] for row in rows], [row["sentence2"] for row in rows]
