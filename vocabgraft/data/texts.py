"""How the texts of rows compare: which are the same, which cannot be in a row, which relations exclude each other."""

from typing import Literal

# Control characters are left behind by conversions; U+FFFD stands where a character was lost.
UNPRINTABLE = "[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffd]"
# A relation that says two things differ cannot hold beside one that says that they are alike.
UNLIKE = frozenset({"antonym", "distinctfrom", "notisa"})
ALIKE = frozenset({"synonym", "isa", "similarto", "definedas", "formof", "instanceof"})


def fold(text: str) -> str:
    """A text without differences of casing and white space."""
    return " ".join(text.casefold().split())


def side_of(relation: str) -> Literal["unlike", "alike", ""]:
    """Whether a relation says that its head and tail differ or that they are alike; empty where it says neither."""
    name = fold(relation)
    return "unlike" if name in UNLIKE else "alike" if name in ALIKE else ""
