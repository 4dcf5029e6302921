"""The project's exception, for mistakes of the user and for failed checks."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches


class VocabgraftError(Exception):
    """Says what was wrong, the value seen, what is allowed and what to do; shown without a traceback."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """` (do you mean X?)` for the nearest of the allowed names, whatever the case; "" where none is near."""
    by_lower = {known.lower(): known for known in allowed}
    found = get_close_matches(name.lower(), list(by_lower), n=1)
    return f" (do you mean {by_lower[found[0]]}?)" if found else ""


def problems_of(checks: Iterable[Callable[[], object]]) -> list[str]:
    """Run every check, whether or not one before it fails; the messages of those that do."""
    found = []
    for check in checks:
        try:
            check()
        except VocabgraftError as error:
            found.append(str(error))
    return found
