"""What a check found: a figure, its limit, and what broke it."""

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN = 10
SHOWN_CHARACTERS = 100


@dataclass(frozen=True)
class Finding:
    """One figure against its limit; `details` name the tokens, texts or weights that matter."""

    figure: float
    limit: str
    holds: bool
    details: tuple[str, ...] = ()


def at_most(figure: float, limit: float, details: Sequence[str] = ()) -> Finding:
    """A figure that may not be larger; one that is no number compares false, and so does not hold."""
    return Finding(float(figure), f"at most {limit:g}", bool(figure <= limit), shown(details))


def at_least(figure: float, limit: float, details: Sequence[str] = ()) -> Finding:
    """A figure that may not be smaller; one that is no number compares false, and so does not hold."""
    return Finding(float(figure), f"at least {limit:g}", bool(figure >= limit), shown(details))


def none_of(broken: Sequence[str], remarks: Sequence[str] = ()) -> Finding:
    """The number of things that are wrong, which must be 0; each is named, and remarks come after them."""
    return at_most(len(broken), 0, [*shown(broken, SHOWN - len(remarks)), *remarks])


def shown(details: Sequence[str], most: int = SHOWN) -> tuple[str, ...]:
    """The first details, cut to a line each, and how many more there are."""
    kept = [text if len(text) <= 3 * SHOWN_CHARACTERS else f"{text[: 3 * SHOWN_CHARACTERS]}..." for text in details]
    return tuple(kept) if len(kept) <= most else (*kept[: most - 1], f"and {len(kept) - most + 1} more")


def quoted(text: str) -> str:
    """A text on one line, cut, in quotation marks."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}...")
