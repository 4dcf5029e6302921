"""An index of the tiny base in Parquet, and models that take its place."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from tests.conftest import WORDS
from vocabgraft.models.encode import encode

TEXTS = (
    *(f"the {first} of a {second}" for first, second in zip(WORDS, WORDS[7:], strict=False)),
    "a nephrolith in the kidney",
    "Nephrolith, thrombopenia and pain",
    "nephroliths are stones",
    "wood -> house",
    "dog <|IsA|> animal",
    "",
)
STALE = ("a nephrolith in the kidney", "Nephrolith, thrombopenia and pain", "wood -> house", "dog <|IsA|> animal")
FIXED, LISTS, LARGE = pa.list_(pa.float32(), 32), pa.list_(pa.float32()), pa.large_list(pa.float32())
HALVES, DOUBLES = pa.list_(pa.float16(), 32), pa.list_(pa.float64(), 32)


def vectors_of(model: Any, texts: Sequence[str] = TEXTS) -> Any:
    """Vectors as an index holds them: shape (texts, 32)."""
    return encode(model, texts, 16, "document")


def write_index(
    path: Path, vectors: Any, texts: Sequence[str] = TEXTS, kind: pa.DataType = FIXED, **options: Any
) -> Path:
    """Write (id, text, vector) with another column, ids from `first_id` on."""
    numbers = list(vectors.astype(kind.value_type.to_pandas_dtype()))
    first = options.pop("first_id", 0)
    columns = {
        "id": pa.array(range(first, first + len(texts)), pa.int64()),
        "title": pa.array([f"title {len(text)}" for text in texts]),
        "text": pa.array(list(texts), pa.string()),
        "vector": pa.array(numbers, kind),
    }
    table = pa.table(columns).replace_schema_metadata({"made by": "a test"})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, **options)
    return path


def read_vectors(path: Path) -> Any:
    """The vectors of a written index: shape (texts, 32)."""
    import numpy as np

    return np.stack(parquet.read_table(path).column("vector").to_numpy())
