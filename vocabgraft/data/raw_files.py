"""Raw files of a user: read with `datasets`, refused with the file and the row."""

import codecs
import csv
import glob
import json
import math
import numbers
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vocabgraft.config.datasets import COLUMNS, VECTORS
from vocabgraft.config.stages import ValidateDataParams
from vocabgraft.data.splits import SPLITS
from vocabgraft.errors import VocabgraftError, problems_of

if TYPE_CHECKING:
    import pandas as pd

TABLE_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
TEXT_ENDINGS = (".txt",)
SEPARATORS = {".csv": ",", ".tsv": "\t"}
VOCABULARY_COLUMNS = ("token", "kind", "description")
RETENTION_COLUMNS = ("sentence1", "sentence2", "score")


def read_table(
    path: Path, columns: Sequence[str], optional: Sequence[str] = (), vectors: Sequence[str] = ()
) -> "pd.DataFrame":
    """Read a table of text columns, and columns of vectors.

    Args:
        path: CSV, TSV, JSON, JSONL or Parquet, told by its ending.
        columns: names that must be there, in the order returned.
        optional: names taken where they are there.
        vectors: those of the columns that hold a list of numbers a row, which CSV and TSV cannot.

    Returns:
        The named columns as text, or as arrays of 32-bit floats, and `row`: the line where a record of a CSV, TSV or
        JSONL file starts, the header being line 1; elsewhere the record's number. An empty field is None, and a blank
        line is no record.

    Raises:
        VocabgraftError: for a file that is missing, empty, of another kind, not UTF-8, without a column, with a row
            of more fields than the header, or with values that are neither text nor numbers.
    """
    import pandas as pd

    _check_file(path, TABLE_ENDINGS)
    _check_encoding(path)
    _require_vectors(path, vectors)
    records = _csv_records(path) if path.suffix in SEPARATORS else None
    frame = _load(path)
    _require_columns(path, columns, list(map(str, frame.columns)))
    if frame.empty:
        raise VocabgraftError(f"{path} has a header and no rows; add rows or take it out of params.yaml")
    lines = _json_lines(path, len(frame)) if records is None else records
    if len(lines) != len(frame):
        raise VocabgraftError(f"{path} has {len(lines)} records, but {len(frame)} were read; check its quotes")
    frame = frame[[line is not None for line in lines]]
    chosen = [*columns, *(name for name in optional if name in frame.columns)]
    # Of the type object, since pandas' own text type makes NaN of None.
    readers = {name: _as_vector if name in vectors else _as_text for name in chosen}
    table = pd.DataFrame(
        {name: pd.Series([readers[name](value, path, name) for value in frame[name]], dtype=object) for name in chosen}
    )
    return table.assign(row=[line for line in lines if line is not None])


def read_lines(path: Path) -> "pd.DataFrame":
    """Read a text file, one sentence a line, as columns `text` and `row` (the line); blank lines are left out."""
    import pandas as pd

    _check_file(path, TEXT_ENDINGS)
    _check_encoding(path)
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    rows = [(line.strip(), number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise VocabgraftError(f"{path} holds blank lines only; add sentences or take it out of params.yaml")
    return pd.DataFrame(rows, columns=["text", "row"])


def check_raw_files(folder: Path, params: ValidateDataParams) -> list[str]:
    """What is wrong with the raw files that can be told without reading their rows, a line each.

    Args:
        folder: data/raw.
        params: which files there are.
    """
    checks: list[Callable[[], None]] = [
        partial(check_table, folder / params.vocabulary, VOCABULARY_COLUMNS),
        *(partial(check_lines, folder / name) for name in params.contexts),
        partial(check_table, folder / params.retention, RETENTION_COLUMNS),
    ]
    for dataset in params.datasets:
        columns = COLUMNS[dataset.format]
        files = [getattr(dataset.files, split) for split in SPLITS]
        vectors = [name for name in columns if name in VECTORS]
        checks += [partial(check_table, folder / name, columns, vectors) for name in files if name]
    return problems_of(checks)


def check_table(path: Path, columns: Sequence[str], vectors: Sequence[str] = ()) -> None:
    """Refuse what `read_table` would refuse before it reads rows: the file, its kind and its columns.

    Of JSON and JSONL, where any record may have a column, as much is read as it takes to find them all.

    Raises:
        VocabgraftError: as `read_table`.
    """
    _check_file(path, TABLE_ENDINGS)
    _require_vectors(path, vectors)
    try:
        _require_columns(path, columns, _columns_of(path, columns))
    except UnicodeDecodeError:
        _check_encoding(path)


def check_lines(path: Path) -> None:
    """Refuse what `read_lines` would refuse before it reads lines.

    Raises:
        VocabgraftError: as `read_lines`.
    """
    _check_file(path, TEXT_ENDINGS)


def _columns_of(path: Path, wanted: Sequence[str]) -> list[str]:
    if path.suffix in SEPARATORS:
        return _checked_header(path)
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            return list(pq.read_schema(path).names)
        except (OSError, ValueError) as error:
            raise VocabgraftError(_explain_unreadable(path, "parquet", str(error))) from error
    found: dict[str, None] = {}
    for record in _json_records(path):
        found |= dict.fromkeys(map(str, record))
        if all(name in found for name in wanted):
            break
    return list(found)


def _json_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSON or JSONL file that are mappings."""
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            yield from (record for record in content if isinstance(record, dict))
            return
        with path.open(encoding="utf-8-sig") as stream:
            for line in stream:
                record = json.loads(line) if line.strip() else None
                if isinstance(record, dict):
                    yield record
    except json.JSONDecodeError as error:
        raise VocabgraftError(_explain_unreadable(path, "json", str(error))) from error


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
        with path.open("rb"):
            return
    except PermissionError as error:
        raise VocabgraftError(f"{path} cannot be read: no permission") from error


def _require_vectors(path: Path, vectors: Sequence[str]) -> None:
    if vectors and path.suffix in SEPARATORS:
        raise VocabgraftError(
            f"{path}: column {', '.join(vectors)} holds lists of numbers, which {path.suffix} cannot; "
            "save it as .parquet or .jsonl"
        )


def _require_columns(path: Path, columns: Sequence[str], present: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in present]:
        raise VocabgraftError(
            f"{path}: column {', '.join(missing)} is missing; it has {', '.join(present)}; needed: {', '.join(columns)}"
        )


def _check_encoding(path: Path) -> None:
    if path.suffix == ".parquet":
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = 0
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            if (position := block.find(b"\0")) >= 0:
                raise VocabgraftError(
                    f"{path}: line {lines + 1 + block[:position].count(10)} holds a NUL; save the file as UTF-8"
                )
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
    if separator := SEPARATORS.get(path.suffix):
        # Everything is read as text: "" is an empty field, while "NA" and "null" are words that a corpus may hold.
        as_text = datasets.Features({name: datasets.Value("string") for name in _header(path)})
        options = {"sep": separator, "features": as_text, "keep_default_na": False, "encoding": "utf-8-sig"}
        # A blank line is kept, so that each record can be given its line.
        options["skip_blank_lines"] = False
    with tempfile.TemporaryDirectory() as cache:
        datasets.disable_progress_bars()
        # It logs what it raises, with the path of its cache; the error below says it once.
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)
        try:
            # It reads a name as a pattern, in which brackets stand for other letters.
            name = glob.escape(str(path.absolute()))
            loaded = datasets.load_dataset(
                builder, data_files=name, split="train", cache_dir=cache, keep_in_memory=True, **options
            )
        except (datasets.exceptions.DatasetGenerationError, ValueError, TypeError, KeyError) as error:
            cause = error.__cause__ or error
            if isinstance(cause, OSError) and cause.errno is not None:
                raise cause from None
            raise VocabgraftError(_explain_unreadable(path, builder, str(cause))) from error
        return loaded.to_pandas()


def _explain_unreadable(path: Path, builder: str, problem: str) -> str:
    if "corresponds to no data" in problem:
        return f"{path} holds no rows; add rows or take it out of params.yaml"
    if path.suffix == ".jsonl":
        # Counted here, since the parser counts from 0 and anew in each block.
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
            try:
                json.loads(line or "{}")
            except json.JSONDecodeError as error:
                return f"{path}: line {number} is not JSON: {error.msg}; write one record a line"
    return f"{path} cannot be read as {builder}: {' '.join(problem.split())}; mend it or save it anew"


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return next(csv.reader(stream, delimiter=SEPARATORS[path.suffix]), [])


def _checked_header(path: Path) -> list[str]:
    header = _header(path)
    if not header:
        raise VocabgraftError(f"{path}: line 1 is blank; it must name the columns")
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise VocabgraftError(f"{path}: line 1 names column {', '.join(repeated)} more than once; keep one")
    return header


def _csv_records(path: Path) -> list[int | None]:
    """The line where each record after the header starts; None for a blank line.

    pandas takes the first field of a row that is longer than its header for an index, which moves every column by one.
    """
    header = _checked_header(path)
    records: list[int | None] = []
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=SEPARATORS[path.suffix], strict=True)
        try:
            next(reader)
            start = reader.line_num + 1
            for fields in reader:
                if len(fields) > len(header):
                    raise VocabgraftError(
                        f"{path}: line {start} has {len(fields)} fields, but the header has {len(header)}; "
                        "put a field that holds the separator in quotes"
                    )
                records.append(start if fields else None)
                start = reader.line_num + 1
        except csv.Error as error:
            raise VocabgraftError(f"{path}: line {start} cannot be read: {error}; check its quotes") from error
    if not any(records):
        raise VocabgraftError(f"{path} has a header and no rows; add rows or take it out of params.yaml")
    return records


def _json_lines(path: Path, records: int) -> Sequence[int]:
    """The line of each record of JSONL; the record's number of other kinds, and where a record spans lines."""
    if path.suffix != ".jsonl":
        return range(1, records + 1)
    with path.open("rb") as stream:
        lines = [number for number, line in enumerate(stream, start=1) if line.strip()]
    return lines if len(lines) == records else range(1, records + 1)


def _as_text(value: Any, path: Path, column: str) -> str | None:
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, numbers.Number):
        return None if isinstance(value, float) and math.isnan(value) else str(value)
    raise VocabgraftError(
        f"{path}: column {column} holds {value!r}, read as {type(value).__name__}; allowed: text and numbers"
    )


def _as_vector(value: Any, path: Path, column: str) -> Any:
    import numpy as np

    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, (list, tuple, np.ndarray)):
        try:
            vector = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError):
            vector = np.zeros((0, 0), dtype=np.float32)
        if vector.ndim == 1 and len(vector):
            return vector
    raise VocabgraftError(
        f"{path}: column {column} holds {str(value)[:60]!r}, read as {type(value).__name__}; allowed: a list of numbers"
    )
