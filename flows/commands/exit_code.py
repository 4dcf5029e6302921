"""How a command that writes one result ends: with its work done, or with what stood in the way and nothing written."""

import sys
from collections.abc import Callable
from pathlib import Path

from vocabgraft.errors import VocabgraftError


def exit_code(command: str, out: Path, work: Callable[[], None]) -> int:
    """Do a command's work; what a user can mend is told on stderr, `command: error`.

    Args:
        command: its name.
        out: where it writes.
        work: raises VocabgraftError for bad input, OSError where it cannot write.

    Returns:
        The exit code.
    """
    try:
        work()
    except VocabgraftError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{command}: {error.filename or out} cannot be read or written: {error}", file=sys.stderr)
        return 1
    return 0
