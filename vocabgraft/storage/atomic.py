"""Replaces files and folders atomically: writes beside the target, then renames.

Work lies beside its destination as `.NAME.RANDOM.partial`; what it replaces waits as `.NAME.RANDOM.previous` for the
moment between two renames. The writer holds a lock on its work, which the kernel releases however the writer ends.
So the next writer tells living work from that of a killed process, and puts back a folder whose replacement was killed.
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
# What rename says where a folder that is not empty is in its place.
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


def replace_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all; a failure, such as a full disk, leaves the old file.

    The parent folder is made where it is missing.

    Raises:
        OSError: when it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not by mkstemp, which makes private files: this one has the mode that a plain write gives.
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def work_beside(destination: Path) -> Iterator[Path]:
    """Yield an empty folder beside `destination`, on the same file system; it is deleted unless it was renamed.

    What killed writers of this destination left is put in order first.

    Raises:
        VocabgraftError: when the destination is there and is no folder.
    """
    if destination.is_symlink() or destination.is_file():
        raise VocabgraftError(f"{destination} is there and is no folder; name another place, or delete it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    settle(destination)
    work, lock = _new_work(destination)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def put_in_place(work: Path, destination: Path) -> None:
    """Rename a folder of `work_beside` to its destination, in place of the one that is there."""
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
            # Another writer was faster; what it wrote is replaced as well.
        else:
            return
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def settle(destination: Path) -> None:
    """Put back the folder that a killed writer had set aside, and delete what such writers left of their work."""
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
        # Before it is locked another writer may take it for a killed one's and delete it.
        with suppress(FileNotFoundError):
            lock = os.open(work, os.O_RDONLY)
            _lock(lock, fcntl.LOCK_EX)
            if work.exists():
                return work, lock
            os.close(lock)


@contextmanager
def _dead(work: Path) -> Iterator[bool]:
    """Whether no writer holds the lock of its work; where folders cannot be locked nothing is taken for dead.

    The lock is kept for the block: a writer that has just made its work and locks it now waits, and then finds it gone.
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
    # Fails where the destination is there, which is then newer, and where another process was faster.
    with suppress(OSError):
        aside.rename(destination)
