"""Reads foreign files within limits: a file that would hang or fill the memory is refused by name."""

import gzip
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from vocabgraft.errors import VocabgraftError

# Bytes. Definitions in published ontologies have thousands; a row with an embedding of 4,096 numbers has 80,000.
LONGEST_LINE = 1 << 20
# Texts and tables unpack to 3 to 30 times their size, zeros to 1,030 times.
LARGEST_RATIO, BYTES_BEFORE_IT_COUNTS = 200, 4 << 20
KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def special_kind(path: Path) -> str | None:
    """What a path is if it can be neither read to its end nor hashed; None for a file, a folder or a missing path."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a link to something that is missing" if path.is_symlink() else None
    except OSError as error:
        # For example a link to itself.
        return f"not readable ({error.strerror})"
    return next((kind for is_kind, kind in KINDS if is_kind(mode)), None)


def special_files(path: Path) -> Iterator[str]:
    """Each path at or below `path` that can be neither read to its end nor hashed, and what it is."""
    inside = (
        Path(folder, name) for folder, folders, names in os.walk(path, followlinks=False) for name in (*folders, *names)
    )
    for found in (path, *inside):
        if kind := special_kind(found):
            yield f"{found} is {kind}"


def bounded_lines(stream: BinaryIO, path: Path) -> Iterator[tuple[int, bytes]]:
    """Each line with its number, from 1; `path` names the file in the error.

    Raises:
        VocabgraftError: for a line of more than `LONGEST_LINE` bytes; nothing more is read.
    """
    number = 0
    while raw := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(raw) > LONGEST_LINE:
            raise VocabgraftError(
                f"{path}: line {number} has more than {LONGEST_LINE:,} bytes; it is damaged or a file of another kind"
            )
        yield number, raw


def unpacked(stream: BinaryIO, path: Path) -> BinaryIO:
    """The content of a gzip stream that is not a bomb; `path` names the file in the error.

    Args:
        stream: of the compressed bytes; its position is the number of bytes read.
        path: the file.
    """
    # A GzipFile runs Python code for every line; the buffer around it runs it only for every block.
    return io.BufferedReader(_Unpacked(stream, path), 1 << 17)


class _Unpacked(io.RawIOBase):
    """Unpacked bytes, until they exceed the allowed ratio to the compressed bytes."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._packed = stream
        self._content = gzip.GzipFile(fileobj=cast(Any, stream))
        self._path = path
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        count = self._content.readinto(buffer) or 0
        self._count += count
        if self._count > max(BYTES_BEFORE_IT_COUNTS, LARGEST_RATIO * self._packed.tell()):
            raise VocabgraftError(
                f"{self._path} unpacks to more than {LARGEST_RATIO} times its size, which no text does; it may be a "
                "gzip bomb, so unpack it by hand and look"
            )
        return count
