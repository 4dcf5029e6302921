"""Opens files to import as byte streams, compressed or not, with clear errors."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.bounds import bounded_lines, special_kind, unpacked

# Called with the number of bytes just read from the disk.
Report = Callable[[int], None]

GZIP_MAGIC = b"\x1f\x8b"


def no_report(_: int) -> None:
    """Report nothing."""


class _Reported(io.RawIOBase):
    """A raw stream that reports how much is read from it."""

    def __init__(self, stream: io.FileIO, report: Report) -> None:
        self._stream = stream
        self._report = report

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        count = self._stream.readinto(buffer) or 0
        self._report(count)
        return count

    def tell(self) -> int:
        return self._stream.tell()


@contextmanager
def open_source(path: Path, report: Report = no_report) -> Iterator[BinaryIO]:
    """Yield the file's bytes, decompressed if it starts like a gzip file, whatever its suffix.

    Args:
        path: the file.
        report: called with the number of bytes read from the disk, for a progress bar.

    Raises:
        VocabgraftError: for a file that is missing, empty, unreadable or not a file; and, while it is read inside
            the block, for gzip that is truncated or damaged.
    """
    check_source(path)
    try:
        with path.open("rb", buffering=0) as raw:
            buffered = io.BufferedReader(_Reported(raw, report), buffer_size=1 << 17)
            compressed = buffered.peek(2)[:2] == GZIP_MAGIC
            yield unpacked(cast(BinaryIO, buffered), path) if compressed else cast(BinaryIO, buffered)
    except EOFError as error:
        raise VocabgraftError(f"{path} is truncated: its gzip stream has no end; fetch it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise VocabgraftError(
            f"{path} is damaged: its gzip stream cannot be decompressed ({error}); fetch it again"
        ) from error


def check_source(path: Path) -> None:
    """Refuse a file that cannot be read at all.

    Raises:
        VocabgraftError: if it is missing, empty, not a file or not readable.
    """
    try:
        if kind := special_kind(path):
            raise VocabgraftError(f"{path} is {kind}; name a file")
        if not path.exists():
            raise VocabgraftError(f"{path} is missing; check the name")
        if not path.is_file():
            raise VocabgraftError(f"{path} is not a file; name the file itself")
        if path.stat().st_size == 0:
            raise VocabgraftError(f"{path} is empty (0 bytes); fetch it again")
        path.open("rb").close()
    except PermissionError as error:
        raise VocabgraftError(f"{path} cannot be read: no permission; make it readable") from error


def text_lines(stream: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    """Each line with its number, from 1, and its line break, if it has one.

    Raises:
        VocabgraftError: for a line that is too long, is not UTF-8 or contains a NUL.
    """
    for number, raw in bounded_lines(stream, path):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            seen = error.object[error.start : error.start + 1].hex()
            raise VocabgraftError(
                f"{path}: line {number} is not UTF-8 (byte 0x{seen}); the file is damaged or of another type"
            ) from error
        if "\0" in line:
            raise VocabgraftError(f"{path}: line {number} contains a NUL; the file is damaged or of another type")
        yield number, line


def shown(text: str, longest: int = 60) -> str:
    """A text for an error message: quoted, and cut if it is long."""
    return repr(text if len(text) <= longest else text[: longest - 3] + "...")
