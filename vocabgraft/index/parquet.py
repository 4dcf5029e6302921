"""Checks and streams Parquet files of (id, text, vector), and writes them with some vectors replaced."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from vocabgraft.errors import VocabgraftError

Vectors = np.ndarray[Any, np.dtype[Any]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
ROWS_AT_A_TIME = 8_192
# Pages are read one after the other, since a row group may be too large for the memory.
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read; all others are copied unchanged."""

    id: str = "id"
    text: str = "text"
    vector: str = "vector"

    @property
    def names(self) -> list[str]:
        """All three."""
        return [self.id, self.text, self.vector]


@dataclass(frozen=True)
class VectorFiles:
    """One Parquet file, or the files of a folder, all with the same kind of vector.

    Attributes:
        root: the file or the folder.
        paths: the files in order of their names.
        columns: the columns to read.
        width: of a vector.
        dtype: of the vectors.
        rows: number of rows by file.
    """

    root: Path
    paths: tuple[Path, ...]
    columns: Columns
    width: int
    dtype: "np.dtype[Any]"
    rows: Mapping[Path, int]

    @property
    def total(self) -> int:
        """Rows of all files."""
        return sum(self.rows.values())


@dataclass(frozen=True)
class Rows:
    """Decoded rows: `vectors` of shape (rows, width); `first` is the index of the first row in its file, from 0."""

    path: Path
    first: int
    ids: pa.Array
    texts: list[str]
    vectors: Vectors


def open_vector_files(root: Path, columns: Columns) -> VectorFiles:
    """Find the files and check their columns; reads only the first row.

    Raises:
        VocabgraftError: for a path that is missing or not Parquet, a missing column, no rows, or vectors of two kinds.
    """
    paths = _find(root)
    fields: dict[Path, pa.Field] = {}
    rows: dict[Path, int] = {}
    for path in paths:
        with _opened(path) as file:
            fields[path] = _checked_schema(path, file.schema_arrow, columns)
            rows[path] = file.metadata.num_rows
    if not any(rows.values()):
        raise VocabgraftError(f"{root} has no rows; name a file or folder with vectors in it")
    numbers = {path: _number_type(path, field) for path, field in fields.items()}
    kinds = {path: (_width(path, fields[path], columns), numbers[path]) for path in paths if rows[path]}
    first, (width, number) = next(iter(kinds.items()))
    for path, kind in kinds.items():
        if kind != (width, number):
            raise VocabgraftError(
                f"{path} has vectors of width {kind[0]} and type {kind[1]}, {first} width {width} and type {number}; "
                "an index needs vectors of one kind: take one of the files out"
            )
    return VectorFiles(root, tuple(paths), columns, width, np.dtype(number.to_pandas_dtype()), rows)


def read_rows(files: VectorFiles) -> Iterator[Rows]:
    """Stream all rows, checked: no value is missing, every vector has the right width and only finite numbers.

    Raises:
        VocabgraftError: with the file and the row, counted from 1.
    """
    for path in files.paths:
        first = 0
        for batch in _batches(path, files.columns.names):
            texts, ids = (_plain(batch.column(name)) for name in (files.columns.text, files.columns.id))
            for name in files.columns.names:
                values = batch.column(name)
                if values.null_count:
                    number = int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
                    raise VocabgraftError(
                        f"{path}: row {first + number + 1} has no {name}; fill it or take the row out of the index"
                    )
            vectors = _as_matrix(batch.column(files.columns.vector), files.width, path, first)
            if not (finite := np.isfinite(vectors).all(axis=1)).all():
                where = f"{path}: row {first + int(np.argmin(finite)) + 1}"
                raise VocabgraftError(f"{where} has a vector with NaN or infinite numbers; it was stored damaged")
            yield Rows(path, first, ids, texts.to_pylist(), vectors)
            first += batch.num_rows


def read_texts(files: VectorFiles) -> Iterator[list[str]]:
    """Stream only the texts, in the order of `read_rows`."""
    for path in files.paths:
        for batch in _batches(path, [files.columns.text]):
            yield _plain(batch.column(0)).to_pylist()


def require_distinct_ids(files: VectorFiles, keys: Sequence["np.ndarray[Any, np.dtype[np.uint64]]"]) -> None:
    """Refuse an id that occurs in two rows.

    Args:
        files: read again if two rows have the same key.
        keys: `id_keys` of all rows: 8 bytes per row stay in memory instead of the ids.
    """
    ordered = np.sort(np.concatenate(keys))
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return
    # Two ids may have the same key, so compare the ids themselves.
    counts: Counter[Any] = Counter()
    for path in files.paths:
        for batch in _batches(path, [files.columns.id]):
            ids = _plain(batch.column(0))
            counts.update(ids.filter(pa.array(np.isin(id_keys(ids), repeated))).to_pylist())
    if twice := [entry for entry, count in counts.items() if count > 1]:
        raise VocabgraftError(
            f"{files.root}: the {files.columns.id} {twice[0]!r} occurs in {counts[twice[0]]} rows "
            f"({len(twice)} repeated ids in total); each row of an index needs its own id"
        )


def id_keys(ids: pa.Array) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    """A 64-bit key for each id of `Rows.ids`, equal for equal ids."""
    import pandas as pd

    keys: np.ndarray[Any, np.dtype[np.uint64]] = pd.util.hash_array(
        ids.to_numpy(zero_copy_only=False), categorize=False
    )
    return keys


def write_replaced(
    files: VectorFiles, destination: Path, chosen: Iterator[BoolArray], vectors: Iterator[Vectors]
) -> Iterator[int]:
    """Write the files again below `destination` with the vectors of some rows replaced; yields the rows written so far.

    Types, other columns, their order, metadata and compression stay; row groups have `ROWS_AT_A_TIME` rows.

    Args:
        files: to read.
        destination: a file if `files.root` is one, else an existing empty folder.
        chosen: for each batch of `read_rows`, the rows that get another vector.
        vectors: the new vectors of each batch, of shape (chosen rows, width).
    """
    for path in files.paths:
        target = destination if path == files.root else destination / path.relative_to(files.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        schema, compression = _layout(path)
        place = schema.names.index(files.columns.vector)
        # Vectors do not repeat, so a dictionary of them would cost time and save nothing.
        repeating = [name for name in schema.names if name != files.columns.vector]
        with parquet.ParquetWriter(target, schema, compression=compression, use_dictionary=repeating) as writer:
            for batch in _batches(path, schema.names):
                rows, written = next(chosen), batch
                if rows.any():
                    replaced = _replaced(batch.column(place), rows, next(vectors), files.width)
                    written = batch.set_column(place, schema.field(place), replaced)
                writer.write_batch(written)
                yield batch.num_rows


def _find(root: Path) -> list[Path]:
    if not root.exists():
        raise VocabgraftError(f"{root} is missing; name a Parquet file or a folder of them")
    if not root.is_dir():
        return [root]
    found = sorted(path for path in root.rglob("*.parquet") if path.is_file() and path.name[0] not in "._")
    if not found:
        raise VocabgraftError(f"{root} has no file that ends in .parquet; name a Parquet file or a folder of them")
    return found


@contextmanager
def _opened(path: Path) -> Iterator[parquet.ParquetFile]:
    try:
        with parquet.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise VocabgraftError(f"{path} cannot be read as Parquet: {error}") from error


def _batches(path: Path, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Batches of `ROWS_AT_A_TIME` rows, except for the last, whichever columns are read.

    The reader ends a batch where a dictionary ends, which is at a different row for each choice of columns.
    """
    held: list[pa.RecordBatch] = []
    missing = ROWS_AT_A_TIME
    with _opened(path) as file:
        for batch in file.iter_batches(ROWS_AT_A_TIME, columns=list(names)):
            taken = 0
            while taken < batch.num_rows:
                part = batch.slice(taken, missing)
                held.append(part)
                taken, missing = taken + part.num_rows, missing - part.num_rows
                if not missing:
                    yield _joined(held)
                    held, missing = [], ROWS_AT_A_TIME
    if held:
        yield _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    if len(batches) == 1:
        return batches[0]
    return pa.Table.from_batches(batches).unify_dictionaries().combine_chunks().to_batches()[0]


def _checked_schema(path: Path, schema: pa.Schema, columns: Columns) -> pa.Field:
    if missing := [name for name in columns.names if name not in schema.names]:
        raise VocabgraftError(
            f"{path}: column {', '.join(missing)} is missing; it has {', '.join(schema.names)}; "
            "name the columns with --id-column, --text-column and --vector-column"
        )
    text, identifier = (_plain_type(schema.field(name).type) for name in (columns.text, columns.id))
    if text != pa.large_string():
        raise VocabgraftError(f"{path}: column {columns.text} has type {text}; allowed: text (string)")
    if not (pa.types.is_integer(identifier) or identifier in (pa.large_string(), pa.large_binary())):
        raise VocabgraftError(
            f"{path}: column {columns.id} has type {identifier}; allowed: integers, text (string) and bytes (binary)"
        )
    return schema.field(columns.vector)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values regardless of how they are stored: a dictionary, a view, a fixed or a small size."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.large_string()
    is_bytes = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return pa.large_binary() if is_bytes or types.is_fixed_size_binary(kind) else kind


def _plain(values: pa.Array) -> pa.Array:
    """Values of a text or id column, converted to `_plain_type`."""
    if isinstance(values, pa.ExtensionArray):
        return _plain(values.storage)
    if isinstance(values, pa.DictionaryArray):
        return _plain(values.dictionary_decode())
    return values.cast(_plain_type(values.type))


def _number_type(path: Path, field: pa.Field) -> pa.DataType:
    kind = field.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not pa.types.is_floating(kind.value_type):
        raise VocabgraftError(
            f"{path}: column {field.name} has type {kind}; allowed: lists of 16-, 32- or 64-bit floats "
            "(make quantized vectors again from those)"
        )
    return kind.value_type


def _width(path: Path, field: pa.Field, columns: Columns) -> int:
    if pa.types.is_fixed_size_list(field.type):
        return int(field.type.list_size)
    with _opened(path) as file:
        first = next(file.iter_batches(1, columns=[columns.vector])).column(0)[0].as_py()
    if not first:
        raise VocabgraftError(f"{path}: row 1 has no {field.name}; fill it or take the row out of the index")
    return len(first)


def _as_matrix(lists: pa.Array, width: int, path: Path, first: int) -> Vectors:
    if not pa.types.is_fixed_size_list(lists.type):
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        if (lengths != width).any():
            number = int(np.argmax(lengths != width))
            raise VocabgraftError(
                f"{path}: row {first + number + 1} has a vector of width {lengths[number]}, others have width {width}; "
                "all vectors of an index need one width"
            )
    flat = lists.flatten()
    if flat.null_count:
        number = int(np.argmax(flat.is_null().to_numpy(zero_copy_only=False))) // width
        raise VocabgraftError(f"{path}: row {first + number + 1} has a vector with a null in it; it was stored damaged")
    matrix: Vectors = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
    return matrix


def _replaced(lists: pa.Array, rows: BoolArray, vectors: Vectors, width: int) -> pa.Array:
    matrix = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, width).copy()
    matrix[rows] = vectors.astype(matrix.dtype)
    values = pa.array(matrix.reshape(-1), lists.type.value_type)
    if pa.types.is_fixed_size_list(lists.type):
        return pa.FixedSizeListArray.from_arrays(values, type=lists.type)
    offsets = np.arange(0, len(values) + 1, width)
    if pa.types.is_large_list(lists.type):
        return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values, type=lists.type)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, type=lists.type)


def _layout(path: Path) -> tuple[pa.Schema, dict[str, str] | str]:
    """A file's schema, and the compression of each column in its first row group."""
    with _opened(path) as file:
        if not file.metadata.num_row_groups:
            return file.schema_arrow, "snappy"
        group = file.metadata.row_group(0)
        parts = [group.column(number) for number in range(group.num_columns)]
        return file.schema_arrow, {part.path_in_schema: part.compression for part in parts}
