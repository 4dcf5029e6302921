"""The state of the project's Git repository, for run records and registered versions."""

import subprocess


def commit() -> str:
    """The current commit; empty if there is no commit or no Git."""
    return _git("rev-parse", "HEAD")


def has_changes() -> bool:
    """Whether a file differs from the commit; dvc.lock does not count, since a run writes it."""
    return any(not line.endswith("dvc.lock") for line in _git("status", "--porcelain").splitlines())


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
