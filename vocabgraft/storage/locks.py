"""A file lock that names the process that holds it.

The kernel releases the lock whenever its process ends, so the lock of a dead process blocks nobody.
"""

import fcntl
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from vocabgraft.errors import VocabgraftError


@dataclass(frozen=True)
class Holder:
    """The holder of a lock: a process, its command line, and since when, in local time."""

    pid: int
    command: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid}, {self.command}, since {self.since}"


def acquire(stream: IO[str]) -> bool:
    """Lock an open file and write the holder into it; False if another process holds the lock."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    stream.truncate(0)
    stream.write(json.dumps(asdict(Holder(os.getpid(), shlex.join(sys.argv), now))))
    stream.flush()
    return True


def holder_of(stream: IO[str]) -> Holder | None:
    """The holder named in a lock file; None while the file is being written."""
    stream.seek(0)
    try:
        return Holder(**json.loads(stream.read()))
    except (json.JSONDecodeError, TypeError):
        return None


@contextmanager
def only_one(path: Path, work: str) -> Iterator[None]:
    """Hold a lock file for the block, and delete it afterwards.

    Args:
        path: of the file; its folder is created if it is missing.
        work: beginning of the error message: what only one process may do.

    Raises:
        VocabgraftError: when another process, or another thread of this process, holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a+", encoding="utf-8") as stream:
            if not acquire(stream):
                holder = holder_of(stream) or "a process that has just begun"
                raise VocabgraftError(f"{work}: {holder}; let it end, or name another place")
            if not _is(stream, path):
                # Its holder ended and deleted the file after it was opened here and before it was locked.
                continue
            try:
                yield
            finally:
                # Deleted while it is held, so that nobody locks a file that is deleted a moment later.
                path.unlink()
            return


def _is(stream: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False
