"""A corpus of any size: finds and checks files, divides them for several processes, reads blocks."""

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO

from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.bounds import special_kind, unpacked

LINE_ENDINGS = (".txt", ".jsonl")
TABLE_ENDINGS = (".csv", ".tsv", ".parquet")
TEXT_FORMATS = (".txt", ".csv", ".tsv", ".jsonl")
ALLOWED = ", ".join([*TEXT_FORMATS, ".parquet", *(f"{ending}.gz" for ending in TEXT_FORMATS)])
PART_BYTES = 16 << 20
BLOCK_BYTES = 1 << 20
# A longer line of plain text is split at a space; a longer line of JSON is an error, because it cannot be split.
LONGEST_TEXT_LINE = 1 << 20
LONGEST_JSON_LINE = 64 << 20
ROWS_AT_A_TIME = 1024


@dataclass(frozen=True)
class Part:
    """A unit of work for one process: bytes `start` to `stop` of a text file, row groups of Parquet, or a whole file.

    `size` is the part's share of the file in bytes on disk.
    """

    path: Path
    start: int
    stop: int
    size: int


@dataclass(frozen=True)
class Block:
    """Some non-blank texts, and the number of bytes on disk that were read for them."""

    texts: list[str]
    size: int


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files of a corpus: the named ones, and for a folder its non-empty files with an allowed suffix.

    Raises:
        VocabgraftError: for a path that is missing or empty or has another suffix, or a folder with nothing to read.
    """
    files: list[Path] = []
    for path in paths:
        with _explained(path):
            files += _files_in(path) if path.is_dir() else [_checked_file(path)]
    return list(dict.fromkeys(files))


def split_files(files: Sequence[Path], columns: Sequence[str], part_bytes: int = PART_BYTES) -> list[Part]:
    """Divide files into parts of about `part_bytes`, in order, and check the beginning of each file.

    Plain text and JSONL are divided at line ends, Parquet at row groups. Compressed files stay whole, and so does CSV,
    because a field may contain line breaks.

    Raises:
        VocabgraftError: for a file that starts with bytes that are not UTF-8 text, or lacks one of the columns.
    """
    return [part for file in files for part in _parts_of(file, columns, part_bytes)]


def read_blocks(part: Part, columns: Sequence[str]) -> Iterator[Block]:
    """Stream a part: one text per line of plain text, otherwise one per record and column; blank ones are left out.

    A line of plain text over 1 MiB is split at a space and counts as several texts.

    Raises:
        VocabgraftError: for bytes that are not UTF-8 text, or a format that does not match the suffix.
    """
    with _explained(part.path):
        if _format(part.path) == ".parquet":
            yield from _parquet_blocks(part, columns)
        elif _format(part.path) in LINE_ENDINGS:
            yield from _blocks_of_lines(part, columns)
        else:
            yield from _csv_blocks(part, columns)


def _format(path: Path) -> str:
    return Path(path.stem).suffix.lower() if _is_compressed(path) else path.suffix.lower()


def _is_compressed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _is_readable(path: Path) -> bool:
    return _format(path) in (TEXT_FORMATS if _is_compressed(path) else (*TEXT_FORMATS, ".parquet"))


def _files_in(folder: Path) -> list[Path]:
    inside = [
        path
        for path in sorted(folder.rglob("*"))
        if _is_readable(path) and not path.name.startswith(".") and path.is_file() and path.stat().st_size
    ]
    if not inside:
        raise VocabgraftError(f"{folder} has no corpus file with text in it; allowed suffixes: {ALLOWED}")
    return inside


def _checked_file(path: Path) -> Path:
    if kind := special_kind(path):
        raise VocabgraftError(f"{path} is {kind}; name a file or a folder")
    if not path.exists():
        raise VocabgraftError(f"{path} is missing; name an existing file or folder")
    if not _is_readable(path):
        ending = "".join(path.suffixes[-2:] if _is_compressed(path) else path.suffixes[-1:])
        raise VocabgraftError(f"{path} ends in '{ending}'; allowed: {ALLOWED}")
    if not path.is_file():
        raise VocabgraftError(f"{path} is not a file; name a file or a folder")
    if path.stat().st_size == 0:
        raise VocabgraftError(f"{path} is empty (0 bytes); name a file with text in it")
    return path


def _parts_of(path: Path, columns: Sequence[str], part_bytes: int) -> list[Part]:
    size = path.stat().st_size
    with _explained(path):
        if _format(path) == ".parquet":
            return _parquet_parts(path, columns, size)
        _check_beginning(path)
        if _format(path) in (".csv", ".tsv"):
            _check_header(path, columns)
        elif _format(path) == ".jsonl":
            _check_first_record(path, columns)
        if _format(path) in LINE_ENDINGS and not _is_compressed(path):
            return _line_parts(path, size, part_bytes)
    return [Part(path, 0, size, size)]


def _line_parts(path: Path, size: int, part_bytes: int) -> list[Part]:
    cuts = [0]
    with path.open("rb") as stream:
        while (wanted := cuts[-1] + part_bytes) < size:
            # One byte earlier, so that a line that begins at `wanted` is found.
            stream.seek(wanted - 1)
            line = stream.readline(_longest_line(path))
            is_whole = line.endswith(b"\n") or wanted - 1 + len(line) >= size
            cuts.append(wanted - 1 + (len(line) if is_whole else _cut_without_line_end(line)))
    cuts.append(size)
    return [Part(path, start, stop, stop - start) for start, stop in pairwise(cuts) if start < stop]


def _longest_line(path: Path) -> int:
    return LONGEST_TEXT_LINE if _format(path) == ".txt" else LONGEST_JSON_LINE


def _cut_without_line_end(window: bytes) -> int:
    if (space := window.rfind(b" ")) >= 0:
        return space + 1
    cut = len(window)
    # In UTF-8, all bytes of a character after the first are 10xxxxxx.
    while cut > 1 and window[cut - 1] & 0xC0 == 0x80:
        cut -= 1
    return cut - 1 if cut > 1 and window[cut - 1] & 0xC0 == 0xC0 else len(window)


def _blocks_of_lines(part: Part, columns: Sequence[str]) -> Iterator[Block]:
    with part.path.open("rb") as raw:
        raw.seek(part.start)
        compressed = _is_compressed(part.path)
        stream = unpacked(raw, part.path) if compressed else raw
        position, offset = part.start, part.start
        limit = None if compressed else part.stop - part.start
        for lines in _whole_lines(stream, limit, _longest_line(part.path)):
            texts = _texts_of_lines(lines, part.path, offset, columns)
            offset += len(lines)
            reached = raw.tell() if compressed else offset
            yield Block(texts, reached - position)
            position = reached


def _whole_lines(stream: BinaryIO, limit: int | None, longest: int) -> Iterator[bytes]:
    rest = b""
    while data := stream.read(BLOCK_BYTES if limit is None else min(BLOCK_BYTES, limit)):
        limit = None if limit is None else limit - len(data)
        data = rest + data
        cut = data.rfind(b"\n") + 1
        if not cut and len(data) >= longest:
            cut = _cut_without_line_end(data)
        if cut:
            yield data[:cut]
        rest = data[cut:]
    if rest:
        yield rest


def _texts_of_lines(lines: bytes, path: Path, offset: int, columns: Sequence[str]) -> list[str]:
    if (found := lines.find(b"\0")) >= 0:
        raise VocabgraftError(f"{path}: line {_line(path, offset + found)} contains a NUL; a corpus must be UTF-8 text")
    try:
        text = lines.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, _line(path, offset + error.start), error.object[error.start]) from error
    if _format(path) == ".txt":
        return [line for raw in text.split("\n") if (line := raw.strip())]
    records = [(raw, number) for number, raw in enumerate(text.split("\n")) if raw.strip()]
    return [found for raw, number in records for found in _texts_of_record(raw, path, offset, number, columns)]


def _texts_of_record(raw: str, path: Path, offset: int, number: int, columns: Sequence[str]) -> list[str]:
    record = _record(raw, path, offset, number)
    return [text for name in columns if (text := _as_text(record.get(name)))]


def _record(raw: str, path: Path, offset: int, number: int) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except (json.JSONDecodeError, RecursionError) as error:
        where = _line(path, offset) + number
        raise VocabgraftError(f"{path}: line {where} is not JSON ({error}); write one record per line") from error
    if not isinstance(record, dict):
        where, kind = _line(path, offset) + number, type(record).__name__
        raise VocabgraftError(f"{path}: line {where} is a {kind}; allowed: one JSON object per line")
    return record


def _as_text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _line(path: Path, offset: int) -> int:
    """The number of the line with a byte; used only for messages, because it reads the file up to that byte."""
    count, left = 1, offset
    with gzip.open(path) if _is_compressed(path) else path.open("rb") as stream:
        while left > 0 and (data := stream.read(min(BLOCK_BYTES, left))):
            count, left = count + data.count(b"\n"), left - len(data)
    return count


def _not_utf8(path: Path, line: int, byte: int) -> VocabgraftError:
    return VocabgraftError(
        f"{path}: line {line} is not UTF-8 (byte 0x{byte:02x}); it is binary or in another encoding: "
        "save it as UTF-8 text"
    )


def _check_beginning(path: Path) -> None:
    with gzip.open(path) if _is_compressed(path) else path.open("rb") as stream:
        data = stream.read(1 << 16)
    if (found := data.find(b"\0")) >= 0:
        raise VocabgraftError(f"{path}: line {_line(path, found)} contains a NUL; a corpus must be UTF-8 text")
    try:
        # Incremental, because the last character may be incomplete.
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, _line(path, error.start), data[error.start]) from error


def _check_first_record(path: Path, columns: Sequence[str]) -> None:
    with path.open("rb") as raw:
        stream = unpacked(raw, path) if _is_compressed(path) else raw
        for number, line in enumerate(iter(lambda: stream.readline(LONGEST_JSON_LINE), b"")):
            if line.strip():
                text = line.decode("utf-8-sig" if number == 0 else "utf-8")
                return _require(path, columns, list(_record(text, path, 0, number)))
    return None


def _require(path: Path, columns: Sequence[str], present: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in present]:
        raise VocabgraftError(
            f"{path}: column {', '.join(missing)} is missing; it has {', '.join(present)}; "
            "name the column of the texts with --column"
        )


def _check_header(path: Path, columns: Sequence[str]) -> None:
    with path.open("rb") as raw:
        _require(path, columns, next(_rows(raw, path), []))


def _csv_blocks(part: Part, columns: Sequence[str]) -> Iterator[Block]:
    with part.path.open("rb") as raw:
        position, rows = 0, _rows(raw, part.path)
        header = next(rows)
        chosen = [header.index(name) for name in columns]
        while batch := list(islice(rows, ROWS_AT_A_TIME)):
            texts = [text for row in batch for column in chosen if (text := row[column].strip())]
            yield Block(texts, raw.tell() - position)
            position = raw.tell()


def _rows(raw: BinaryIO, path: Path) -> Iterator[list[str]]:
    stream = unpacked(raw, path) if _is_compressed(path) else raw
    reader = csv.reader(_lines(stream, path), delimiter="\t" if _format(path) == ".tsv" else ",")
    width = 0
    try:
        for row in reader:
            width = width or len(row)
            if row and len(row) != width:
                seen = f"the row that ends at line {reader.line_num} has {len(row)} fields, but the header has {width}"
                raise VocabgraftError(f"{path}: {seen}; check the quotes")
            if row:
                yield row
    except csv.Error as error:
        raise VocabgraftError(
            f"{path}: line {reader.line_num} is not {_format(path)} ({error}); check that quotes are closed, "
            "and put texts this long into .jsonl or .parquet"
        ) from error


def _lines(stream: BinaryIO, path: Path) -> Iterator[str]:
    number = 0
    while line := stream.readline(LONGEST_TEXT_LINE):
        number += 1
        if len(line) == LONGEST_TEXT_LINE:
            raise VocabgraftError(f"{path}: line {number} is longer than {LONGEST_TEXT_LINE:,} bytes; is it a table?")
        if b"\0" in line:
            raise VocabgraftError(f"{path}: line {number} contains a NUL; a corpus must be UTF-8 text")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number, error.object[error.start]) from error


def _parquet_parts(path: Path, columns: Sequence[str], size: int) -> list[Part]:
    import pyarrow as pa
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        _require(path, columns, file.schema_arrow.names)
        for name in columns:
            kind = file.schema_arrow.field(name).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                raise VocabgraftError(f"{path}: column {name} has the type {kind}; allowed: text (string)")
        groups = file.num_row_groups
    return [Part(path, group, group + 1, size // groups) for group in range(groups)]


def _parquet_blocks(part: Part, columns: Sequence[str]) -> Iterator[Block]:
    from pyarrow import parquet

    # Buffered pages instead of whole column chunks, because a row group may be too large for memory.
    with parquet.ParquetFile(part.path, buffer_size=BLOCK_BYTES, pre_buffer=False) as file:
        rows = sum(file.metadata.row_group(group).num_rows for group in range(part.start, part.stop))
        groups = list(range(part.start, part.stop))
        for batch in file.iter_batches(ROWS_AT_A_TIME, row_groups=groups, columns=list(columns), use_threads=False):
            texts = [text for column in batch.columns for value in column.to_pylist() if (text := _as_text(value))]
            yield Block(texts, part.size * batch.num_rows // rows)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn exceptions into an error that names the file; pyarrow raises ValueError and OSError."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise VocabgraftError(f"{path} is not a complete gzip file ({error}); compress it again") from error
    except PermissionError as error:
        raise VocabgraftError(f"{path} cannot be read: no permission") from error
    except (OSError, ValueError, KeyError) as error:
        # UnicodeDecodeError is a ValueError.
        raise VocabgraftError(f"{path} cannot be read as {_format(path) or 'a folder'}: {error}") from error
