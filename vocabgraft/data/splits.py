"""Splits by a hash of the group, so that an item never changes its split when rows are added."""

import hashlib
from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


def split_of(group: str, validation: float, test: float) -> Split:
    """The split of a group: a pure function of its case-folded text and the two shares.

    The test share takes the lowest hashes and the validation share the next, so raising the validation share
    moves no item into or out of the test split.
    """
    digest = hashlib.sha256(" ".join(group.casefold().split()).encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test:
        return "test"
    return "validation" if position < test + validation else "train"
