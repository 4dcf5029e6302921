"""Verdicts on a model's checks, and how many there are of each, for everything that shows a count."""

from collections.abc import Iterable, Mapping
from typing import Literal, get_args

Verdict = Literal["passed", "failed", "waived", "too few to judge", "does not apply"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


def count_verdicts(verdicts: Iterable[str]) -> dict[Verdict, int]:
    """How many checks have each verdict, those that none has included."""
    found = list(verdicts)
    return {verdict: found.count(verdict) for verdict in VERDICTS}


def describe_counts(counts: Mapping[Verdict, int]) -> str:
    """The counts in words: `31 of 34 checks passed; 1 waived, 2 do not apply`."""
    others = [f"{counts[verdict]} {_plural(verdict, counts[verdict])}" for verdict in VERDICTS[1:] if counts[verdict]]
    counted = f"{counts['passed']} of {sum(counts.values())} checks passed"
    return f"{counted}; {', '.join(others)}" if others else counted


def _plural(verdict: Verdict, count: int) -> str:
    return "do not apply" if verdict == "does not apply" and count != 1 else verdict
