"""Raw files of a user: read with `datasets`, refused with the file and the row."""

import codecs
import csv
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vocabgraft.errors import VocabgraftError

if TYPE_CHECKING:
    import pandas as pd

TABLE_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
TEXT_ENDINGS = (".txt",)
HEADER_LINES = {".csv": 1, ".tsv": 1}


def read_table(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> "pd.DataFrame":
    """Read a table of text columns.

    Args:
        path: CSV, TSV, JSON, JSONL or Parquet, told by its ending.
        columns: names that must be there, in the order returned.
        optional: names taken where they are there.

    Returns:
        The named columns as text and `row`: the line of a CSV, TSV or JSONL file, the header being line 1, as long
        as no field holds a line break; elsewhere the record's number. An empty field is None.

    Raises:
        VocabgraftError: for a file that is missing, empty, of another kind, not UTF-8 or without a column.
    """
    _check_file(path, TABLE_ENDINGS)
    frame = _load(path)
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise VocabgraftError(
            f"{path}: column {', '.join(missing)} is missing; it has {', '.join(map(str, frame.columns))}; "
            f"needed: {', '.join(columns)}"
        )
    if frame.empty:
        raise VocabgraftError(f"{path} has a header and no rows; add rows or take it out of params.yaml")
    chosen = [*columns, *(name for name in optional if name in frame.columns)]
    table = frame[chosen].map(_as_text)
    table["row"] = range(1 + HEADER_LINES.get(path.suffix, 0), len(table) + 1 + HEADER_LINES.get(path.suffix, 0))
    return table


def read_lines(path: Path) -> "pd.DataFrame":
    """Read a text file, one sentence a line, as columns `text` and `row` (the line); blank lines are left out."""
    import pandas as pd

    _check_file(path, TEXT_ENDINGS)
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    rows = [(line.strip(), number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise VocabgraftError(f"{path} holds blank lines only; add sentences or take it out of params.yaml")
    return pd.DataFrame(rows, columns=["text", "row"])


def _check_file(path: Path, endings: tuple[str, ...]) -> None:
    if not path.exists():
        raise VocabgraftError(f"{path} is missing; put it there, or correct its name in params.yaml")
    if path.suffix not in endings:
        raise VocabgraftError(f"{path} ends in '{path.suffix}'; allowed: {', '.join(endings)}")
    if not path.is_file():
        raise VocabgraftError(f"{path} is not a file")
    try:
        if path.stat().st_size == 0:
            raise VocabgraftError(f"{path} is empty; add rows or take it out of params.yaml")
        if path.suffix != ".parquet":
            _check_encoding(path)
    except PermissionError as error:
        raise VocabgraftError(f"{path} cannot be read: no permission") from error


def _check_encoding(path: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            if (position := block.find(b"\0")) >= 0:
                raise VocabgraftError(f"{path}: line {lines + 1 + block[:position].count(10)} holds a NUL; text only")
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                _refuse_encoding(path, lines + 1 + error.object[: error.start].count(10), error)
            lines += block.count(b"\n")
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        _refuse_encoding(path, lines + 1, error)


def _refuse_encoding(path: Path, line: int, error: UnicodeDecodeError) -> None:
    seen = error.object[error.start : error.start + 1].hex()
    raise VocabgraftError(f"{path}: line {line} is not UTF-8 (byte 0x{seen}); save the file as UTF-8") from error


def _load(path: Path) -> "pd.DataFrame":
    import datasets

    builder = {".tsv": "csv", ".jsonl": "json"}.get(path.suffix, path.suffix.removeprefix("."))
    options: dict[str, Any] = {}
    if builder == "csv":
        # Everything is read as text: "" is an empty field, while "NA" and "null" are words that a corpus may hold.
        separator = "\t" if path.suffix == ".tsv" else ","
        as_text = datasets.Features({name: datasets.Value("string") for name in _header(path, separator)})
        options = {"sep": separator, "features": as_text, "keep_default_na": False, "encoding": "utf-8-sig"}
    with tempfile.TemporaryDirectory() as cache:
        datasets.disable_progress_bars()
        try:
            loaded = datasets.load_dataset(
                builder, data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True, **options
            )
        except (datasets.exceptions.DatasetGenerationError, ValueError, TypeError, KeyError) as error:
            raise VocabgraftError(f"{path} cannot be read as {builder}: {error.__cause__ or error}") from error
        return loaded.to_pandas()


def _header(path: Path, separator: str) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return next(csv.reader(stream, delimiter=separator), [])


def _as_text(value: Any) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, str) else str(value)
