"""Readers of raw tables (CSV, JSON, Parquet, ...); each reads the valid rows and reports errors in the others."""

import codecs
import csv
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.bounds import LONGEST_LINE, bounded_lines

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SEPARATORS = {".csv": ",", ".tsv": "\t"}
# In these formats a row is identified by its line, in the others by its number.
LINED_ENDINGS = (".csv", ".tsv", ".jsonl", ".txt")
BLOCK_BYTES = 1 << 20
# Real rows take far more than a byte; rows that repeat the one before take almost none, and are useless for training.
MOST_ROWS_A_BYTE, ROWS_BEFORE_THEY_COUNT = 8, 1_000_000


@dataclass(frozen=True)
class Fault:
    """An error in a row of a file, or in the whole file if `row` is None.

    The `reason` for a whole file names the file; the `reason` for a row is shown after the row's number.
    """

    path: Path
    row: int | None
    reason: str
    column: str = ""
    value: str = ""

    def __str__(self) -> str:
        if self.row is None:
            return self.reason
        unit = "line" if self.path.suffix in LINED_ENDINGS else "row"
        named = f", column {self.column}" if self.column else ""
        shown = f" {self.value!r}" if self.column else ""
        return f"{self.path}: {unit} {self.row}{named}{shown} {self.reason}"


@dataclass(frozen=True)
class RawTable:
    """The valid rows, with their number in column `row`, and the errors in the others."""

    rows: "pd.DataFrame"
    faults: tuple[Fault, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the file could be read, apart from single rows."""
        return all(fault.row is not None for fault in self.faults)


class _Written(str):
    """A number of JSON as it is written."""

    __slots__ = ()


@dataclass
class Reading:
    """The values and errors read so far from a table."""

    path: Path
    columns: Sequence[str]
    optional: Sequence[str]
    vectors: Sequence[str]
    values: dict[str, list[Any]] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def refuse(self, reason: str, row: int | None = None, column: str = "", value: str = "") -> None:
        """Record an error of a row, or of the file."""
        self.faults.append(Fault(self.path, row, reason, column, value))

    def choose(self, present: Sequence[str]) -> list[str]:
        """The requested columns that exist; missing and repeated ones are recorded as errors."""
        named = [name for name in present if name.strip()]
        if missing := [name for name in self.columns if name not in named]:
            self.refuse(
                f"{self.path}: column {', '.join(missing)} is missing; it has {', '.join(dict.fromkeys(named))}; "
                f"needed: {', '.join(self.columns)}"
            )
        asked = [*self.columns, *self.optional]
        if repeated := sorted({name for name in asked if named.count(name) > 1}):
            self.refuse(f"{self.path}: column {', '.join(repeated)} appears more than once; keep one")
        chosen = [name for name in dict.fromkeys(asked) if name in named]
        self.values = {name: [] for name in chosen}
        return chosen

    def add(self, row: int, values: Sequence[Any]) -> None:
        """Add a row, with its values in the order of the chosen columns."""
        self.rows.append(row)
        for column, value in zip(self.values.values(), values, strict=True):
            column.append(value)

    def table(self) -> RawTable:
        """The table; without rows if the whole file has an error."""
        import pandas as pd

        if not self.rows and not self.faults:
            self.refuse(f"{self.path} has no rows; add rows or take it out of params.yaml")
        names = [*self.columns, *(name for name in self.optional if name in self.values)]
        rows = [] if any(fault.row is None for fault in self.faults) else self.rows
        # As objects, because pandas' string type turns None into NaN.
        columns = {name: pd.Series(self.values[name] if rows else [], dtype=object) for name in names}
        table = pd.DataFrame(columns).assign(row=pd.Series(rows, dtype="int64"))
        return RawTable(table, tuple(self.faults))


def _byte_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as stream:
        for number, raw in bounded_lines(stream, path):
            yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw


def text_lines(reading: Reading) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their number, from 1; lines that are not UTF-8 text are recorded as errors."""
    for number, raw in _byte_lines(reading.path):
        if fault := _byte_fault(raw):
            reading.refuse(fault, number)
        else:
            yield number, raw


def _byte_fault(raw: bytes) -> str | None:
    if b"\0" in raw:
        return "contains a NUL; save the file as UTF-8"
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
    return None


def read_csv(reading: Reading) -> None:
    path = reading.path
    with _csv_reader(reading) as reader:
        header = _read_header(reading, reader)
        if header is None:
            return
        places = [header.index(name) for name in reading.values]
        _read_records(reading, reader, len(header), places)
    if not reading.rows and not any(fault.row for fault in reading.faults):
        reading.refuse(f"{path} has a header and no rows; add rows or take it out of params.yaml")


@contextmanager
def _csv_reader(reading: Reading) -> Iterator[Any]:
    # Bytes that are not UTF-8 are kept as surrogates, so that their record can be identified.
    with reading.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        yield csv.reader(_text_lines(stream, reading.path), delimiter=SEPARATORS[reading.path.suffix], strict=True)


def _text_lines(stream: TextIO, path: Path) -> Iterator[str]:
    for number in itertools.count(1):
        if not (line := stream.readline(LONGEST_LINE + 1)):
            return
        if len(line) > LONGEST_LINE:
            raise VocabgraftError(f"{path}: line {number} has more than {LONGEST_LINE:,} characters; is it a table?")
        yield line


def _read_header(reading: Reading, reader: Any) -> list[str] | None:
    """Choose the columns of a CSV file by its header; None if there is no row to read."""
    path = reading.path
    if reading.vectors:
        reading.refuse(
            f"{path}: column {', '.join(reading.vectors)} needs lists of numbers, which {path.suffix} cannot store; "
            "save it as .parquet or .jsonl"
        )
        return None
    try:
        header: list[str] = next(reader, [])
    except csv.Error as error:
        reading.refuse(f"{path}: line 1 cannot be read: {error}; check its quotes")
        return None
    if not header:
        reading.refuse(f"{path}: line 1 is blank; it must name the columns")
        return None
    if fault := _text_fault(header):
        reading.refuse(fault, 1)
    reading.choose(header)
    return header


def choose_columns(reading: Reading) -> None:
    """Choose the columns of a table without its rows; JSON lines are read until all columns are found."""
    if reading.path.suffix in SEPARATORS:
        with _csv_reader(reading) as reader:
            _read_header(reading, reader)
    elif reading.path.suffix == ".parquet":
        _choose_in_parquet(reading)
    elif reading.path.suffix == ".json":
        read_json(reading)
    else:
        seen: dict[str, None] = {}
        for _, record in _json_lines(reading):
            seen |= dict.fromkeys(record if isinstance(record, dict) else ())
            if all(name in seen for name in reading.columns):
                return
        reading.choose(list(seen))


def _choose_in_parquet(reading: Reading) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(reading.path) as file:
            reading.choose(file.schema_arrow.names)
    except (pa.ArrowException, OSError) as error:
        _refuse_parquet(reading, error)


def _refuse_parquet(reading: Reading, error: Exception) -> None:
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    shown = " ".join(str(error).split())
    reading.refuse(f"{reading.path} cannot be read as parquet: {shown}; correct it or save it again")


def _read_records(reading: Reading, reader: Any, width: int, places: Sequence[int]) -> None:
    """Add the records of a CSV file; `reader` is past the header of `width` fields."""
    is_clean = _is_clean(reading.path)
    start = reader.line_num + 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reading.refuse(f"cannot be read: {error}; check its quotes", start)
            if "field larger" in str(error):
                # The end of the field is unknown, and so is the start of the next record.
                return
            start = reader.line_num + 1
            continue
        if any(fields):
            if fault := _record_fault(fields, width, is_clean):
                reading.refuse(fault, start)
            else:
                reading.add(start, [(fields[place] or None) if place < len(fields) else None for place in places])
        start = reader.line_num + 1


def _record_fault(fields: Sequence[str], width: int, is_clean: bool) -> str | None:
    # Spreadsheets add empty fields at the end; these do not matter.
    if any(fields[width:]):
        return f"has {len(fields)} fields, but the header has {width}; quote fields that contain the separator"
    return None if is_clean else _text_fault(fields)


def _text_fault(fields: Sequence[str]) -> str | None:
    return _byte_fault("".join(fields).encode("utf-8", "surrogateescape"))


def _is_clean(path: Path) -> bool:
    """Whether the whole file is UTF-8 without a NUL, so that single records need no check."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as stream:
        try:
            while block := stream.read(BLOCK_BYTES):
                if b"\0" in block:
                    return False
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return False
    return True


def read_json_lines(reading: Reading) -> None:
    _take_objects(reading, _json_lines(reading))


def _json_lines(reading: Reading) -> Iterator[tuple[int, Any]]:
    for number, raw in text_lines(reading):
        if not raw.strip():
            continue
        try:
            yield number, _parse_json(raw)
        except (ValueError, RecursionError) as error:
            reading.refuse(f"is not JSON: {getattr(error, 'msg', error)}; write one record per line", number)


def read_json(reading: Reading) -> None:
    """Read a list of records, an object of columns, or one record per line as in JSONL."""
    content = reading.path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if fault := _byte_fault(content):
        reading.refuse(f"{reading.path} {fault}")
        return
    try:
        loaded = _parse_json(content)
    except (ValueError, RecursionError) as error:
        if "Extra data" in str(error):
            read_json_lines(reading)
        else:
            reading.refuse(f"{reading.path} cannot be read as json: {error}; correct it or save it again")
        return
    if isinstance(loaded, dict) and loaded and all(isinstance(column, list) for column in loaded.values()):
        if len({len(column) for column in loaded.values()}) > 1:
            reading.refuse(f"{reading.path} has columns of different lengths; correct it or save it again")
            return
        loaded = [dict(zip(loaded, row, strict=True)) for row in zip(*loaded.values(), strict=True)]
    records = loaded if isinstance(loaded, list) else [loaded]
    if not records:
        reading.refuse(f"{reading.path} has no rows; add rows or take it out of params.yaml")
        return
    _take_objects(reading, enumerate(records, start=1))


def _parse_json(content: bytes) -> Any:
    """Parse JSON; numbers stay as they are written, and NaN becomes an empty field."""
    return json.loads(
        content,
        parse_int=_Written,
        parse_float=_Written,
        parse_constant=lambda name: None if name == "NaN" else _Written(name),
        object_pairs_hook=_object,
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name appears twice in one object")
    return made


def _take_objects(reading: Reading, records: Iterable[tuple[int, Any]]) -> None:
    """Add JSON objects; a column exists if one of them has it."""
    objects: list[tuple[int, dict[str, Any]]] = []
    seen: dict[str, None] = {}
    asked = [*reading.columns, *reading.optional]
    for number, record in records:
        if isinstance(record, dict):
            seen |= dict.fromkeys(record)
            objects.append((number, {name: record[name] for name in asked if name in record}))
        else:
            reading.refuse(f"is {str(record)[:40]!r}, not an object with column names", number)
    if not objects:
        if not reading.faults:
            reading.refuse(f"{reading.path} has no rows; add rows or take it out of params.yaml")
        return
    chosen = reading.choose(list(seen))
    for number, record in objects:
        values = [_of_json(reading, number, name, record.get(name)) for name in chosen]
        # By identity, because `in` compares, and vectors cannot be compared.
        if all(value is not _Refused for value in values):
            reading.add(number, values)


# Marks a value that was refused.
_Refused = object()


def _of_json(reading: Reading, row: int, column: str, value: Any) -> Any:
    if column in reading.vectors:
        made = _as_vector(value)
        allowed = "a list of numbers"
    else:
        made = _json_text(value)
        allowed = "text and numbers"
    if made is _Refused:
        reading.refuse(f"cannot be read; allowed: {allowed}", row, column, str(value)[:60])
    return made


def _json_text(value: Any) -> Any:
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        return _Refused
    try:
        # JSON can escape half of a surrogate pair, which is not a character.
        value.encode()
    except UnicodeEncodeError:
        return _Refused
    return str(value)


def _as_vector(value: Any) -> Any:
    import numpy as np

    if value is None:
        return None
    if not isinstance(value, list) or any(type(number) is not _Written for number in value):
        return _Refused
    return np.asarray(value, dtype=np.float32) if value else _Refused


def read_parquet(reading: Reading) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    path = reading.path
    try:
        with parquet.ParquetFile(path) as file:
            # Only the requested columns, so that others may have any type.
            chosen = reading.choose(file.schema_arrow.names)
            if reading.faults:
                return
            if file.metadata.num_rows > max(ROWS_BEFORE_THEY_COUNT, MOST_ROWS_A_BYTE * path.stat().st_size):
                reading.refuse(f"{path} claims to have {file.metadata.num_rows:,} rows, too many for its size")
                return
            table = file.read(columns=chosen)
    except (pa.ArrowException, OSError) as error:
        _refuse_parquet(reading, error)
        return
    if not len(table):
        reading.refuse(f"{path} has no rows; add rows or take it out of params.yaml")
        return
    columns = [
        (_parquet_vectors if name in reading.vectors else _parquet_texts)(reading, name, table[name]) for name in chosen
    ]
    if not reading.faults:
        reading.rows = list(range(1, len(table) + 1))
        reading.values = dict(zip(chosen, columns, strict=True))


def _parquet_texts(reading: Reading, name: str, column: "pa.ChunkedArray") -> list[Any]:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind):
        return [value or None for value in column.to_pylist()]
    if types.is_floating(kind):
        # By numpy, because it prints a 32-bit float with the digits of a 32-bit float.
        return [None if math.isnan(value) else str(value) for value in column.to_numpy()]
    if types.is_integer(kind) or types.is_decimal(kind):
        return [None if value is None else str(value) for value in column.to_pylist()]
    if types.is_boolean(kind) or types.is_date(kind):
        return [value or None for value in column.cast(pa.string()).to_pylist()]
    reading.refuse(f"{reading.path}: column {name} has the type {kind}; allowed: text, numbers and dates")
    return []


def _parquet_vectors(reading: Reading, name: str, column: "pa.ChunkedArray") -> list[Any]:
    import numpy as np
    import pyarrow as pa

    types = pa.types
    kind = column.type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not is_list or not (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)):
        reading.refuse(f"{reading.path}: column {name} has the type {kind}; allowed: a list of numbers")
        return []
    vectors = column.to_numpy()
    return [None if value is None else np.asarray(value, dtype=np.float32) for value in vectors]
