"""The project's exception, for mistakes of the user and for failed checks."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches


class VocabgraftError(Exception):
    """Says what was wrong, the value seen, what is allowed and what to do. It is shown without a traceback."""


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """` (do you mean X?)` for the nearest allowed name, whatever its case; "" if no name is near."""
    by_lower = {known.lower(): known for known in allowed}
    found = get_close_matches(name.lower(), list(by_lower), n=1)
    return f" (do you mean {by_lower[found[0]]}?)" if found else ""


def problems_of(checks: Iterable[Callable[[], object]]) -> list[str]:
    """Run every check, even after a failure, and return the messages of those that fail."""
    found = []
    for check in checks:
        try:
            check()
        except VocabgraftError as error:
            found.append(str(error))
    return found
