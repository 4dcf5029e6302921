"""Own sentences of everyday subjects in scored pairs, for whoever has no texts of that kind."""

import csv
from pathlib import Path

GENERAL_PAIRS = Path(__file__).with_name("general_pairs.csv")


def general_sentences(pairs: int) -> tuple[list[str], list[str]]:
    """The first sentences of that many pairs, and the second ones."""
    with GENERAL_PAIRS.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))[:pairs]
    return [row["sentence1"] for row in rows], [row["sentence2"] for row in rows]
