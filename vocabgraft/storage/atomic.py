"""Replaces files and folders atomically: writes beside the target, then renames.

The work lies beside its destination as `.NAME.RANDOM.partial`; the old folder waits as `.NAME.RANDOM.previous` between
the two renames. The writer holds a lock on its work, which the kernel releases whenever the writer ends. So the next
writer can tell work in progress from that of a killed process, and puts back a folder whose replacement was killed.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vocabgraft.errors import VocabgraftError

PARTIAL, PREVIOUS = ".partial", ".previous"
# The errors of rename if the target is a folder that is not empty.
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


def replace_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all; a failure, such as a full disk, leaves the old file unchanged.

    Creates the parent folder if it is missing.

    Raises:
        OSError: when it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # mkstemp would make a private file; this one gets the default mode.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def work_beside(destination: Path) -> Iterator[Path]:
    """Yield an empty folder beside `destination`, on the same file system, and delete it unless it was renamed.

    First cleans up after killed writers of this destination.

    Raises:
        VocabgraftError: when the destination exists and is not a folder.
    """
    if destination.is_symlink() or destination.is_file():
        raise VocabgraftError(f"{destination} exists and is not a folder; name another place, or delete it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    settle(destination)
    work, lock = _new_work(destination)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def put_in_place(work: Path, destination: Path) -> None:
    """Rename a folder of `work_beside` to its destination, replacing an existing one."""
    aside = work.with_suffix(PREVIOUS)
    while True:
        with suppress(FileNotFoundError):
            destination.rename(aside)
        try:
            work.rename(destination)
        except OSError as error:
            if error.errno not in TAKEN:
                _put_back(aside, destination)
                raise
            # Another writer was faster; its result is replaced as well.
        else:
            return
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def settle(destination: Path) -> None:
    """Put back the folder that a killed writer had set aside, and delete the partial work of killed writers."""
    ours = re.compile(rf"\.{re.escape(destination.name)}\.[a-z0-9_]{{8}}({PARTIAL}|{PREVIOUS})")
    left = [path for path in destination.parent.iterdir() if ours.fullmatch(path.name) and path.is_dir()]
    for aside in (path for path in left if path.suffix == PREVIOUS):
        with _dead(aside.with_suffix(PARTIAL)) as dead:
            if dead:
                _put_back(aside, destination)
                shutil.rmtree(aside, ignore_errors=True)
    for work in (path for path in left if path.suffix == PARTIAL):
        with _dead(work) as dead:
            if dead:
                shutil.rmtree(work, ignore_errors=True)


def _new_work(destination: Path) -> tuple[Path, int]:
    while True:
        work = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=PARTIAL, dir=destination.parent))
        # Another writer may delete it before it is locked, since it looks like the work of a killed process.
        with suppress(FileNotFoundError):
            lock = os.open(work, os.O_RDONLY)
            _lock(lock, fcntl.LOCK_EX)
            if work.exists():
                return work, lock
            os.close(lock)


@contextmanager
def _dead(work: Path) -> Iterator[bool]:
    """Whether no writer holds the lock on its work; False if folders cannot be locked.

    The lock is held for the block: a writer that has just made its work waits for it, and then finds the work deleted.
    """
    try:
        descriptor = os.open(work, os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    try:
        yield _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        return False
    return True


def _put_back(aside: Path, destination: Path) -> None:
    # Fails if the destination exists, which is then newer, or if another process was faster.
    with suppress(OSError):
        aside.rename(destination)
