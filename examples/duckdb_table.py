"""Keep vectors in a DuckDB table valid after a new model: only the rows whose text holds a new word are updated.

python examples/duckdb_table.py PREVIOUS_MODEL NEW_MODEL       (pip install duckdb)

The same statements serve PostgreSQL with pgvector: there the column is vector(384).
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
from sentence_transformers import SentenceTransformer

from vocabgraft.index.model_diff import compare_models
from vocabgraft.index.reembed import updated_vectors

TEXTS = (
    "a dog on the beach",
    "the patient has nephrolithiasis",
    "low blood sugar in the morning",
    "nephrolithiasis with hydronephrosis",
)


def build(connection: duckdb.DuckDBPyConnection, model: SentenceTransformer, texts: tuple[str, ...]) -> None:
    """A table as it was made with the previous model."""
    width = model.get_embedding_dimension()
    connection.execute(f"CREATE TABLE texts (id INTEGER PRIMARY KEY, text TEXT, vector FLOAT[{width}])")
    rows = zip(range(len(texts)), texts, model.encode_document(list(texts)).tolist(), strict=True)
    connection.executemany("INSERT INTO texts VALUES (?, ?, ?)", list(rows))


def read(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[int, str]]:
    """All (id, text), a thousand at a time."""
    # A cursor of its own, so that the updates do not end the reading.
    reading = connection.cursor().execute("SELECT id, text FROM texts ORDER BY id")
    while rows := reading.fetchmany(1_000):
        yield from rows


def update(connection: duckdb.DuckDBPyConnection, previous: SentenceTransformer, new: SentenceTransformer) -> list[int]:
    """Update what the new model embeds differently, all or nothing; gives the ids updated."""
    changed = updated_vectors(read(connection), compare_models(previous, new), new)
    rows = [(vector.tolist(), number) for number, vector in changed]
    if rows:
        connection.begin()
        connection.executemany("UPDATE texts SET vector = ? WHERE id = ?", rows)
        connection.commit()
    return [number for _, number in rows]


def main() -> None:
    """Build a table with one model and update it for the other."""
    # Full paths: sentence-transformers takes other names for those of the Hub.
    previous, new = (SentenceTransformer(str(Path(name).resolve()), device="cpu") for name in sys.argv[1:3])
    connection = duckdb.connect()
    build(connection, previous, TEXTS)
    changed = update(connection, previous, new)
    print(f"{len(changed)} of {len(TEXTS)} vectors updated: {changed}")
    width = new.get_embedding_dimension()
    query = new.encode_query("nephrolithiasis").tolist()
    nearest = f"SELECT array_cosine_similarity(vector, ?::FLOAT[{width}]) AS score, text FROM texts ORDER BY 1 DESC"
    for score, text in connection.execute(f"{nearest} LIMIT 2", [query]).fetchall():
        print(f"{score:.3f} {text}")


if __name__ == "__main__":
    main()
