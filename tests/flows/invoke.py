"""`vocabgraft` called in the process of a test."""

import sys
from collections.abc import Callable, Sequence

from typer.testing import CliRunner

from flows.cli import app


def cli(*names: str) -> Callable[[Sequence[str]], int]:
    """A command as a function of its arguments, which returns the exit code; pytest captures what it prints."""

    def call(arguments: Sequence[str]) -> int:
        result = CliRunner().invoke(app, [*names, *arguments], catch_exceptions=False)
        sys.stdout.write(result.stdout)
        sys.stderr.write(result.stderr)
        return result.exit_code

    return call
