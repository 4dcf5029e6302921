"""The result of a check: its value, limit and details; verdicts and their counts."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Verdict = Literal["passed", "failed", "waived", "too few to judge", "does not apply"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
SHOWN = 10
SHOWN_CHARACTERS = 100
# The merged model rounds like the base, in the same layers and number type. On the shipped example its difference is
# 1.0 times the base's in float32 and 0.3 to 0.8 times in bfloat16; LoRA merged in float16 showed 1.6 times. The factor
# is more than twice the largest.
NOISE_MULTIPLE = 4.0


@dataclass(frozen=True)
class Finding:
    """A value and its limit.

    Attributes:
        figure: the value.
        limit: the limit in words.
        holds: whether the value is within the limit.
        details: the tokens, texts or weights that violate it.
        noise: the same measurement on the base, if the limit depends on it; otherwise None.
        warnings: remarkable tokens or texts that violate nothing.
        by_token: the value of each new token and whether it holds, for a check of single tokens.
    """

    figure: float
    limit: str
    holds: bool
    details: tuple[str, ...] = ()
    noise: float | None = None
    warnings: tuple[str, ...] = ()
    by_token: Mapping[str, tuple[float, bool]] = field(default_factory=dict)


@dataclass(frozen=True)
class TooFew:
    """There are too few tokens, texts or triples for any result to be significant.

    Attributes:
        reason: the number of items, and the number needed.
        figure: the value that was measured anyway; None if there is none.
        warnings: as in `Finding`.
    """

    reason: str
    figure: float | None = None
    warnings: tuple[str, ...] = ()


def at_most(figure: float, limit: float, details: Sequence[str] = (), warnings: Sequence[str] = ()) -> Finding:
    """A value that must be at most the limit; NaN does not hold."""
    holds = bool(figure <= limit)
    return Finding(float(figure), f"at most {limit:.3g}", holds, shown(details), warnings=shown(warnings))


def noise_limit(floor: float, noise: float) -> float:
    """The limit of a difference: `NOISE_MULTIPLE` times the base's, or the floor if that is larger.

    If the base's difference is NaN, the limit is the floor.
    """
    return max(floor, NOISE_MULTIPLE * noise) if math.isfinite(noise) else floor


def at_least(figure: float, limit: float, details: Sequence[str] = (), warnings: Sequence[str] = ()) -> Finding:
    """A value that must be at least the limit; NaN does not hold."""
    holds = bool(figure >= limit)
    return Finding(float(figure), f"at least {limit:.3g}", holds, shown(details), warnings=shown(warnings))


def none_of(broken: Sequence[str], remarks: Sequence[str] = ()) -> Finding:
    """The number of faults, which must be 0, with each fault, followed by remarks."""
    return at_most(len(broken), 0, [*shown(broken, SHOWN - len(remarks)), *remarks])


def shown(details: Sequence[str], most: int = SHOWN) -> tuple[str, ...]:
    """The first details, each shortened, and the number of the others."""
    kept = [text if len(text) <= 3 * SHOWN_CHARACTERS else f"{text[: 3 * SHOWN_CHARACTERS]}..." for text in details]
    return tuple(kept) if len(kept) <= most else (*kept[: most - 1], f"and {len(kept) - most + 1} more")


def quoted(text: str) -> str:
    """A text on one line, shortened, in quotation marks."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}...")


def explain_failures(checks: Sequence[Mapping[str, Any]]) -> str:
    """Explain failed checks: value, limit, tokens, the setting that controls it and the remedy.

    Args:
        checks: the failed entries of `checks.json`.
    """
    return "\n".join(line for check in checks for line in _explained(check))


def _explained(check: Mapping[str, Any]) -> list[str]:
    value = check["reason"] if check["figure"] is None else f"{check['figure']:.3g}, allowed: {check['limit']}"
    lines = [f"{check['name']}: {value} ({check['protects']})", *(f"  {detail}" for detail in check["details"])]
    lines += [f"  setting: {check['setting']}"] if check["setting"] else []
    return [*lines, f"  remedy: {check['remedy']}"]


def count_verdicts(verdicts: Iterable[str]) -> dict[Verdict, int]:
    """The number of checks for every verdict, also for those without checks."""
    found = list(verdicts)
    return {verdict: found.count(verdict) for verdict in VERDICTS}


def describe_counts(counts: Mapping[Verdict, int]) -> str:
    """The counts in words: `31 of 34 checks passed; 1 waived, 2 do not apply`."""
    others = [f"{counts[verdict]} {_plural(verdict, counts[verdict])}" for verdict in VERDICTS[1:] if counts[verdict]]
    counted = f"{counts['passed']} of {sum(counts.values())} checks passed"
    return f"{counted}; {', '.join(others)}" if others else counted


def _plural(verdict: Verdict, count: int) -> str:
    return "do not apply" if verdict == "does not apply" and count != 1 else verdict
