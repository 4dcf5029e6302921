"""An index written again: what is computed, what is kept, what a kill leaves, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.vocabgraft import reembedding_samples as samples
from tests.vocabgraft.conftest import Graft, load
from tests.vocabgraft.reembedding_samples import STALE, TEXTS, read_vectors, vectors_of, write_index
from vocabgraft.errors import VocabgraftError
from vocabgraft.index import reembed as reembedding
from vocabgraft.index.model_diff import ModelDifference, compare_models
from vocabgraft.index.parquet import Columns
from vocabgraft.index.reembed import (
    EncodingSettings,
    Reembedded,
    ReembeddingJob,
    largest_deviation,
    reembed,
    updated_vectors,
)


class Models:
    """The previous model, the new one, their difference, and an index of the previous one."""

    def __init__(self, graft: Graft) -> None:
        self.previous, self.new = load(graft.base), load(graft.merged["tokens"])
        self.difference = compare_models(self.previous, self.new)
        self.vectors = vectors_of(self.previous)


@pytest.fixture(scope="session")
def models(graft: Graft) -> Models:
    return Models(graft)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 10 rows, parts of 3 texts."""
    monkeypatch.setattr("vocabgraft.index.parquet.ROWS_AT_A_TIME", 10)
    monkeypatch.setattr(reembedding, "TEXTS_AT_A_TIME", 3)
    monkeypatch.setattr(reembedding, "LOOKED_AT_TOGETHER", 10)


def job_of(folder: Path, **changes: Any) -> ReembeddingJob:
    given = {"source": folder / "index.parquet", "destination": folder / "new.parquet", "models": "a, b"}
    return ReembeddingJob(**given | changes)


def run(models: Models, job: ReembeddingJob) -> Reembedded:
    return reembed(job, models.difference, models.new)


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    "kind", [samples.FIXED, samples.LISTS, samples.LARGE, samples.HALVES, samples.DOUBLES], ids=str
)
def test_texts_with_a_new_word_get_the_new_vector_and_all_else_stays(
    models: Models, tmp_path: Path, kind: pa.DataType
) -> None:
    source = write_index(tmp_path / "index.parquet", models.vectors, kind=kind, compression="zstd", row_group_size=7)
    done = run(models, job_of(tmp_path))
    before, after = parquet.read_table(source), parquet.read_table(tmp_path / "new.parquet")
    assert after.schema.equals(before.schema, check_metadata=True)
    assert after.drop_columns("vector").equals(before.drop_columns("vector"))
    stale = np.isin(TEXTS, STALE)
    new, old = read_vectors(tmp_path / "new.parquet"), read_vectors(source)
    assert new.dtype == old.dtype
    assert np.array_equal(new[~stale], old[~stale])
    expected = vectors_of(models.new)
    assert np.abs(new[stale] - expected[stale]).max() < (1e-3 if new.dtype == np.float16 else 1e-6)
    assert np.abs(new[stale] - old[stale]).min(axis=0).max() > 1e-3
    assert parquet.ParquetFile(tmp_path / "new.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
    assert (done.texts, done.recomputed, done.resumed, done.everything) == (len(TEXTS), len(STALE), 0, None)
    assert done.sampled == len(TEXTS) - len(STALE) and done.deviation < 1e-6
    assert done.seconds_for_all is not None and left_over(tmp_path) == []


def identifiers(kind: pa.DataType) -> pa.Array:
    """A different id for each text."""
    return pa.array([f"{place:016}".encode() for place in range(len(TEXTS))]).cast(kind)


TEXT_TYPES = {
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "small dictionary": pa.dictionary(pa.int8(), pa.string()),
    "view": pa.string_view(),
    "large": pa.large_string(),
}
ID_TYPES = {
    "dictionary": identifiers(pa.string()).dictionary_encode(),
    "dictionary of numbers": pa.array(range(len(TEXTS))).dictionary_encode(),
    "view": identifiers(pa.string_view()),
    "fixed size": identifiers(pa.binary(16)),
    "bytes": identifiers(pa.binary()),
    "UUID": pa.ExtensionArray.from_storage(pa.uuid(), identifiers(pa.binary(16))),
}


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(
    ("text", "identifier"), [*((name, None) for name in TEXT_TYPES), *((None, name) for name in ID_TYPES)]
)
def test_texts_and_ids_of_every_storage_are_taken_and_keep_it(
    text: str | None, identifier: str | None, models: Models, tmp_path: Path
) -> None:
    source = write_index(tmp_path / "index.parquet", models.vectors, kind=samples.LISTS)
    table = parquet.read_table(source)
    if text is not None:
        values = table["text"].combine_chunks()
        kind = TEXT_TYPES[text]
        stored = values.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else values.cast(kind)
        table = table.set_column(2, "text", stored)
    if identifier is not None:
        table = table.set_column(0, "id", ID_TYPES[identifier])
    parquet.write_table(table, source, row_group_size=7)
    assert run(models, job_of(tmp_path)).recomputed == len(STALE)
    before, after = parquet.read_table(source), parquet.read_table(tmp_path / "new.parquet")
    assert before.schema.field(2).type == table.schema.field(2).type
    assert after.schema.equals(before.schema, check_metadata=True)
    for name in ("id", "title", "text"):
        assert after[name].to_pylist() == before[name].to_pylist()
    assert np.abs(read_vectors(tmp_path / "new.parquet") - vectors_of(models.new)).max() < 1e-6


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("column", ["id", "title", "text"])
def test_a_dictionary_that_changes_from_row_group_to_row_group_moves_no_row(
    column: str, models: Models, tmp_path: Path
) -> None:
    source = write_index(tmp_path / "index.parquet", models.vectors, row_group_size=5)
    table = parquet.read_table(source)
    place = table.schema.get_field_index(column)
    parquet.write_table(table.set_column(place, column, table[column].dictionary_encode()), source, row_group_size=5)
    run(models, job_of(tmp_path))
    assert parquet.read_table(tmp_path / "new.parquet")[column].to_pylist() == table[column].to_pylist()
    assert np.abs(read_vectors(tmp_path / "new.parquet") - vectors_of(models.new)).max() < 1e-6


@pytest.mark.usefixtures("small_parts")
def test_a_folder_keeps_its_files(models: Models, tmp_path: Path) -> None:
    half = len(TEXTS) // 2
    for name, part in {
        "a.parquet": slice(0, half),
        "deep/b.parquet": slice(half, None),
        "empty.parquet": slice(0, 0),
    }.items():
        start = part.start or 0
        write_index(tmp_path / "index" / name, models.vectors[part], TEXTS[part], first_id=start)
    run(models, job_of(tmp_path, source=tmp_path / "index", destination=tmp_path / "new"))
    found = sorted(str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*") if path.is_file())
    assert found == ["a.parquet", "deep/b.parquet", "empty.parquet"]
    vectors = np.concatenate([read_vectors(tmp_path / "new" / name) for name in found[:2]])
    assert np.abs(vectors - vectors_of(models.new)).max() < 1e-6


@pytest.mark.usefixtures("small_parts")
def test_with_other_weights_everything_is_computed_and_it_says_why(models: Models, tmp_path: Path) -> None:
    write_index(tmp_path / "index.parquet", models.vectors)
    everything = ModelDifference("the weight x, which affects every text, differs")
    done = reembed(job_of(tmp_path), everything, models.new)
    assert done.everything == everything.everything
    assert (done.recomputed, done.sampled, done.seconds_for_all) == (len(TEXTS), 0, None)
    assert np.abs(read_vectors(tmp_path / "new.parquet") - vectors_of(models.new)).max() < 1e-6


def test_with_nothing_to_compute_the_index_is_copied(models: Models, tmp_path: Path) -> None:
    source = write_index(tmp_path / "index.parquet", models.vectors)
    done = reembed(job_of(tmp_path), compare_models(models.previous, models.previous), models.previous)
    assert done.recomputed == 0
    assert parquet.read_table(tmp_path / "new.parquet").equals(parquet.read_table(source))


class Killed(BaseException):
    pass


def kill_after(monkeypatch: pytest.MonkeyPatch, parts: int) -> list[int]:
    """Let the work end while the part after so many is computed; gives the sizes of what is embedded."""
    embedded: list[int] = []
    own = reembedding._encode

    def encode(model: Any, texts: list[str], settings: EncodingSettings) -> Any:
        # The first call is the verification.
        if len(embedded) == parts + 1:
            raise Killed
        embedded.append(len(texts))
        return own(model, texts, settings)

    monkeypatch.setattr(reembedding, "_encode", encode)
    return embedded


def start_and_kill(models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        kill_after(context, 1)
        with pytest.raises(Killed):
            run(models, job_of(folder))
    assert not (folder / "new.parquet").exists() and len(left_over(folder)) == 1


@pytest.mark.usefixtures("small_parts")
def test_after_a_kill_it_goes_on_to_the_same_bytes(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_index(tmp_path / "index.parquet", models.vectors)
    start_and_kill(models, tmp_path, monkeypatch)
    embedded = kill_after(monkeypatch, 99)
    done = run(models, job_of(tmp_path))
    assert done.resumed == 3 and embedded[1:] == [len(STALE) - 3]
    run(models, job_of(tmp_path, destination=tmp_path / "at once.parquet"))
    assert (tmp_path / "new.parquet").read_bytes() == (tmp_path / "at once.parquet").read_bytes()
    assert left_over(tmp_path) == []


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("change", ["input", "model", "settings", "damaged part"])
def test_what_changed_after_a_kill_is_computed_anew(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    write_index(tmp_path / "index.parquet", models.vectors)
    start_and_kill(models, tmp_path, monkeypatch)
    job = job_of(tmp_path)
    if change == "input":
        texts = ["the nephrolith of a cat" if text == STALE[0] else text for text in TEXTS]
        write_index(tmp_path / "index.parquet", models.vectors, texts)
    elif change == "model":
        job = job_of(tmp_path, models="a, c")
    elif change == "settings":
        job = job_of(tmp_path, settings=EncodingSettings(batch_size=3))
    else:
        part = next(tmp_path.glob(".*/part-*"))
        part.write_bytes(part.read_bytes()[:-5])
    assert run(models, job).resumed == 0
    assert left_over(tmp_path) == []


def test_a_vector_that_is_not_the_models_is_found_and_nothing_is_written(models: Models, tmp_path: Path) -> None:
    wrong = models.vectors.copy()
    wrong[3] += 2e-6
    write_index(tmp_path / "index.parquet", wrong)
    with pytest.raises(
        VocabgraftError, match=r"differs from the new model's by (2\.\d|1\.9)e-06 of its length; allowed: 1e-06"
    ):
        run(models, job_of(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["index.parquet"]
    assert run(models, job_of(tmp_path, tolerance=1e-5)).deviation > 1.5e-6


def test_the_sample_is_drawn_from_all_that_stays() -> None:
    """Each of 20 rows that stay, of 3 batches, is in about a quarter of the samples of 5, and no other is."""
    generator = np.random.default_rng(3)
    drawn: list[int] = []
    for _ in range(400):
        sample = reembedding._Sample(5)
        for first in (0, 10, 20):
            rows = np.arange(first, first + 10)
            texts = [str(row) for row in rows]
            sample.offer(generator.random(10), texts, np.repeat(rows[:, None], 2, axis=1), rows % 3 != 1)
        assert [str(vector[0]) for vector in sample.vectors] == sample.texts and len(sample.texts) == 5
        drawn += map(int, sample.texts)
    times = np.bincount(drawn, minlength=30)
    stays = np.arange(30) % 3 != 1
    assert times[~stays].sum() == 0
    assert times[stays].min() > 60 and times[stays].max() < 140


def test_what_a_16_bit_float_cannot_hold_is_no_deviation(models: Models) -> None:
    texts = list(TEXTS[:9])
    halves = models.vectors[:9].astype(np.float16)
    assert largest_deviation(models.new, texts, halves) < 1e-6
    halves[2, 5] += np.float16(2e-3)
    assert largest_deviation(models.new, texts, halves) > 1e-3


def test_vectors_scaled_to_length_1_are_kept_so(models: Models, tmp_path: Path) -> None:
    class Longer:
        """The new model without its Normalize."""

        def __getattr__(self, name: str) -> Any:
            return getattr(models.new, name)

        def encode_document(self, texts: list[str], **options: Any) -> Any:
            return 3 * models.new.encode_document(texts, **options)

    write_index(tmp_path / "index.parquet", models.vectors)
    settings = EncodingSettings(normalise=True)
    reembed(job_of(tmp_path, settings=settings), models.difference, Longer())  # type: ignore[arg-type]
    assert np.linalg.norm(read_vectors(tmp_path / "new.parquet"), axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.usefixtures("small_parts")
def test_an_iterator_gives_the_vectors_to_replace(models: Models) -> None:
    read: list[int] = []

    def items() -> Any:
        for number, text in enumerate(TEXTS):
            read.append(number)
            yield f"id {number}", text

    found = updated_vectors(items(), models.difference, models.new)
    assert read == []
    given = dict(found)
    assert list(given) == [f"id {TEXTS.index(text)}" for text in STALE]
    assert np.stack(list(given.values())) == pytest.approx(vectors_of(models.new, STALE), abs=1e-6)


def without(name: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.drop_columns(name)


def put(name: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.names.index(name)
        values = table.column(name).to_pylist()
        values[row] = value
        return table.set_column(place, table.schema.field(name), [pa.array(values, table.schema.field(name).type)])

    return change


def cast(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.names.index(name)
        return table.set_column(place, name, table.column(name).cast(kind))

    return change


BAD: list[tuple[Callable[[pa.Table], pa.Table], str]] = [
    (without("vector"), "column vector is missing; it has id, title, text; name the columns with"),
    (without("text"), "column text is missing"),
    (lambda table: table.slice(0, 0), "has no rows"),
    (put("id", 4, None), "row 5 has no id"),
    (put("text", 12, None), "row 13 has no text"),
    (put("vector", 11, None), "row 12 has no vector"),
    (put("vector", 11, [0.0] * 31 + [None]), "row 12 has a vector with a null in it"),
    (put("vector", 11, [0.0] * 31 + [float("nan")]), "row 12 has a vector with NaN"),
    (put("vector", 11, [0.0] * 31), "row 12 has a vector of width 31, others have width 32"),
    (put("vector", 0, [0.0] * 31), "vectors have width 31, the model gives 32"),
    (put("id", 20, 3), "the id 3 occurs in 2 rows"),
    (cast("id", pa.float64()), "column id has type double; allowed: integers, text (string) and bytes"),
    (cast("text", pa.binary()), "column text has type large_binary; allowed: text"),
    (
        lambda table: table.set_column(0, "id", pa.array([b"0123"] * len(TEXTS), pa.binary(4))),
        f"the id b'0123' occurs in {len(TEXTS)} rows",
    ),
    (cast("vector", pa.list_(pa.int32())), "column vector has type list<element: int32>; allowed: lists of 16-"),
    (
        lambda table: cast("vector", pa.list_(pa.float32()))(table).set_column(
            3, "vector", pa.array([[0.0] * 16] * len(TEXTS), pa.list_(pa.float32()))
        ),
        "vectors have width 16, the model gives 32",
    ),
]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(("damage", "says"), BAD, ids=[says[:40] for _, says in BAD])
def test_a_bad_index_is_refused_with_its_row_and_nothing_is_left(
    models: Models, tmp_path: Path, damage: Callable[[pa.Table], pa.Table], says: str
) -> None:
    kind = samples.LISTS
    write_index(tmp_path / "whole.parquet", np.zeros((len(TEXTS), 32)), kind=kind)
    parquet.write_table(damage(parquet.read_table(tmp_path / "whole.parquet")), tmp_path / "index.parquet")
    with pytest.raises(VocabgraftError) as refused:
        run(models, job_of(tmp_path))
    # Dates back to pyarrow whether the field of a list is called item or element.
    assert says in str(refused.value).replace("item:", "element:")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.parquet", "whole.parquet"]


def test_two_ids_with_one_key_are_two_ids(models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reembedding, "id_keys", lambda ids: np.zeros(len(ids), np.uint64))
    monkeypatch.setattr("vocabgraft.index.parquet.id_keys", lambda ids: np.zeros(len(ids), np.uint64))
    write_index(tmp_path / "index.parquet", models.vectors)
    assert run(models, job_of(tmp_path)).texts == len(TEXTS)


def test_files_with_vectors_of_two_kinds_are_refused(models: Models, tmp_path: Path) -> None:
    write_index(tmp_path / "index" / "a.parquet", models.vectors)
    write_index(tmp_path / "index" / "b.parquet", models.vectors, kind=samples.HALVES, first_id=900)
    with pytest.raises(VocabgraftError, match=r"b\.parquet has vectors of width 32 and type half"):
        run(models, job_of(tmp_path, source=tmp_path / "index", destination=tmp_path / "new"))


@pytest.mark.parametrize("content", [b"", b"PAR1 something else PAR1"])
def test_a_file_that_is_no_parquet_is_named(models: Models, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "index.parquet").write_bytes(content)
    with pytest.raises(VocabgraftError, match=r"index\.parquet cannot be read as Parquet"):
        run(models, job_of(tmp_path))


def test_a_truncated_file_is_named(models: Models, tmp_path: Path) -> None:
    path = write_index(tmp_path / "index.parquet", models.vectors)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(VocabgraftError, match=r"index\.parquet cannot be read as Parquet"):
        run(models, job_of(tmp_path))


def test_a_destination_that_is_taken_or_inside_the_source_is_refused(models: Models, tmp_path: Path) -> None:
    write_index(tmp_path / "index.parquet", models.vectors)
    with pytest.raises(VocabgraftError, match="exists already"):
        run(models, job_of(tmp_path, destination=tmp_path / "index.parquet"))
    with pytest.raises(VocabgraftError, match="lies inside"):
        run(models, job_of(tmp_path, source=tmp_path))
    with pytest.raises(VocabgraftError, match="is missing"):
        run(models, job_of(tmp_path, source=tmp_path / "nowhere"))
    (tmp_path / "none").mkdir()
    with pytest.raises(VocabgraftError, match=r"has no file that ends in \.parquet"):
        run(models, job_of(tmp_path, source=tmp_path / "none"))


def test_an_input_that_changes_meanwhile_is_refused(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_index(tmp_path / "index.parquet", models.vectors)
    own = reembedding._compute

    def compute(*arguments: Any) -> int:
        found = own(*arguments)
        write_index(path, models.vectors, [text.upper() for text in TEXTS])
        return found

    monkeypatch.setattr(reembedding, "_compute", compute)
    with pytest.raises(VocabgraftError, match="changed while it was read"):
        run(models, job_of(tmp_path))
    assert not (tmp_path / "new.parquet").exists()


def test_other_columns_may_be_named(models: Models, tmp_path: Path) -> None:
    path = write_index(tmp_path / "index.parquet", models.vectors)
    parquet.write_table(parquet.read_table(path).rename_columns(["key", "title", "body", "embedding"]), path)
    assert run(models, job_of(tmp_path, columns=Columns("key", "body", "embedding"))).recomputed == len(STALE)
