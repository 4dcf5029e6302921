"""Finds and reads the user's raw files as text, and reports all errors of a file together.

No type is inferred: `007`, `2020-01-01` and 18-digit numbers stay as they are written, even if fields are empty.
"""

import glob
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vocabgraft.config.datasets import COLUMNS, VECTORS
from vocabgraft.config.stages import ValidateDataParams
from vocabgraft.data.raw_formats import (
    Fault,
    RawTable,
    Reading,
    choose_columns,
    read_csv,
    read_json,
    read_json_lines,
    read_parquet,
    text_lines,
)
from vocabgraft.data.splits import SPLITS
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.bounds import special_kind

if TYPE_CHECKING:
    import pandas as pd

READERS = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".json": read_json,
    ".jsonl": read_json_lines,
    ".parquet": read_parquet,
}
TABLE_ENDINGS = tuple(READERS)
TEXT_ENDINGS = (".txt",)
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
SHOWN_FAULTS = 10
VOCABULARY_COLUMNS = ("token", "kind", "description")
RETENTION_COLUMNS = ("sentence1", "sentence2", "score")


def read_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = (), vectors: Sequence[str] = ()
) -> "pd.DataFrame":
    """Read a table of text and vector columns, as `scan_table` does.

    Raises:
        VocabgraftError: with the first ten errors of the file.
    """
    return _without_faults(scan_table(path, columns, optional, vectors))


def scan_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = (), vectors: Sequence[str] = ()
) -> RawTable:
    """Read a table of text and vector columns; other columns are ignored.

    Args:
        path: a CSV, TSV, JSON, JSONL or Parquet file, recognized by its suffix.
        columns: required columns, in the order returned.
        optional: columns to read if they exist.
        vectors: columns with a list of numbers per row; CSV and TSV cannot have them.

    Returns:
        The columns as text, or as arrays of 32-bit floats, and `row`: for CSV, TSV and JSONL the line at which the
        record starts (the header is line 1), otherwise the number of the record. An empty field is None. Blank lines
        and rows of empty fields are not records. Rows with an error are left out.
    """
    reading = Reading(path, columns, optional, vectors)
    if fault := _file_fault(path, TABLE_ENDINGS):
        reading.refuse(fault)
        return reading.table()
    with _faults_noted(reading):
        READERS[path.suffix](reading)
    return reading.table()


@contextmanager
def _faults_noted(reading: Reading) -> Iterator[None]:
    """Turn an exception that prevents reading the file into an error of the file."""
    try:
        yield
    except PermissionError:
        reading.refuse(f"{reading.path} cannot be read: no permission")
    except RecursionError:
        reading.refuse(f"{reading.path} nests its values too deeply; write one text or number per column")
    except VocabgraftError as error:
        reading.refuse(str(error))


def check_raw_files(folder: Path, params: ValidateDataParams) -> list[str]:
    """The errors of raw files that show without reading rows (missing files, types, columns), one line each.

    Args:
        folder: data/raw.
        params: the section that names the files.
    """
    faults = column_faults(folder / params.vocabulary, VOCABULARY_COLUMNS)
    if params.retention is not None:
        faults += column_faults(folder / params.retention, RETENTION_COLUMNS)
    for name in find_files(folder, params.contexts):
        fault = _file_fault(folder / name, TEXT_ENDINGS)
        faults += [fault] if fault else []
    for dataset in params.datasets:
        columns = COLUMNS[dataset.format]
        vectors = [name for name in columns if name in VECTORS]
        for split in SPLITS:
            for name in find_files(folder, dataset.files_of(split)):
                faults += column_faults(folder / name, columns, vectors)
    return list(dict.fromkeys(faults))


def column_faults(path: Path, columns: Sequence[str], vectors: Sequence[str] = ()) -> list[str]:
    """The errors of a whole table in its type and columns; its rows are not read."""
    if fault := _file_fault(path, TABLE_ENDINGS):
        return [fault]
    reading = Reading(path, columns, (), vectors)
    with _faults_noted(reading):
        choose_columns(reading)
    return [str(fault) for fault in reading.faults if fault.row is None]


def read_lines(path: Path) -> "pd.DataFrame":
    """Read a text file as `scan_lines` does.

    Raises:
        VocabgraftError: with the first ten errors of the file.
    """
    return _without_faults(scan_lines(path))


def scan_lines(path: Path) -> RawTable:
    """Read a text file with one sentence per line as columns `text` and `row` (the line), without blank lines."""
    reading = Reading(path, ("text",), (), ())
    reading.choose(("text",))
    if fault := _file_fault(path, TEXT_ENDINGS):
        reading.refuse(fault)
        return reading.table()
    with _faults_noted(reading):
        for number, line in text_lines(reading):
            if text := line.decode().strip():
                reading.add(number, (text,))
    if not reading.rows and not reading.faults:
        reading.refuse(f"{path} has only blank lines; add sentences or take it out of params.yaml")
    return reading.table()


def find_files(folder: Path, names: Iterable[str]) -> list[str]:
    """The files below `folder` for names and patterns: each once, the matches of a pattern sorted.

    A pattern without matches, or one that is the name of a file, is returned unchanged.
    """
    return list(dict.fromkeys(found for name in names for found in _matches(folder, name) or [name]))


def _matches(folder: Path, name: str) -> list[str]:
    if not glob.has_magic(name) or (folder / name).exists():
        return []
    files = (path for path in folder.glob(name) if path.is_file() and not path.name.startswith("."))
    return sorted(path.relative_to(folder).as_posix() for path in files)


def explain_faults(faults: Sequence[Fault]) -> str:
    """One message with the first ten errors of a file."""
    if len(faults) == 1:
        return str(faults[0])
    more = f", the first {SHOWN_FAULTS}" if len(faults) > SHOWN_FAULTS else ""
    shown = "\n".join(f"  {fault}" for fault in faults[:SHOWN_FAULTS])
    return f"{len(faults)} errors in {faults[0].path}{more}:\n{shown}"


def _without_faults(table: RawTable) -> "pd.DataFrame":
    if table.faults:
        raise VocabgraftError(explain_faults(table.faults))
    return table.rows


def _file_fault(path: Path, endings: tuple[str, ...]) -> str | None:
    """The error of a file before any row is read, or None."""
    try:
        if kind := special_kind(path):
            return f"{path} is {kind}; put a file there, or take it out of params.yaml"
        if not path.exists():
            is_pattern = glob.has_magic(path.name)
            seen, remedy = ("matches no file", "the pattern") if is_pattern else ("is missing", "its name")
            return f"{path} {seen}; put it there, or correct {remedy} in params.yaml"
        if path.suffix not in endings:
            return f"{path} ends in '{path.suffix}'; allowed: {', '.join(endings)}"
        return f"{path} is not a file" if not path.is_file() else _content_fault(path)
    except PermissionError:
        return f"{path} cannot be read: no permission"


def _content_fault(path: Path) -> str | None:
    with path.open("rb") as stream:
        beginning = stream.read(2)
    if not beginning:
        return f"{path} is empty; add rows or take it out of params.yaml"
    return f"{path} is UTF-16; save the file as UTF-8" if beginning in UTF16_MARKS else None
