"""Reading a corpus: what is found, how it is divided, what is refused."""

import csv
import gzip
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vocabgraft.errors import VocabgraftError
from vocabgraft.planning import corpus
from vocabgraft.planning.corpus import find_files, read_blocks, split_files

LINES = st.lists(st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), max_size=12), max_size=30)


def texts_of(paths: list[Path], columns: tuple[str, ...] = ("text",), part_bytes: int = corpus.PART_BYTES) -> list[str]:
    parts = split_files(find_files(paths), columns, part_bytes)
    return [text for part in parts for block in read_blocks(part, columns) for text in block.texts]


def write_rows(path: Path, rows: list[str]) -> Path:
    """The rows as column `text` in the format of the path's ending."""
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table({"id": list(range(len(rows))), "text": rows}), path, row_group_size=3)
        return path
    with (
        gzip.open(path, "wt", encoding="utf-8", newline="")
        if path.suffix == ".gz"
        else path.open("w", encoding="utf-8", newline="") as stream
    ):
        if name.endswith(".txt"):
            stream.writelines(f"{row}\n" for row in rows)
        elif name.endswith(".jsonl"):
            stream.writelines(json.dumps({"id": i, "text": row}) + "\n" for i, row in enumerate(rows))
        else:
            writer = csv.writer(stream, delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writerows([["id", "text"], *([i, row] for i, row in enumerate(rows))])
    return path


@pytest.mark.parametrize("ending", "txt csv tsv jsonl parquet txt.gz csv.gz tsv.gz jsonl.gz".split())
def test_every_format_gives_the_same_texts(tmp_path: Path, ending: str) -> None:
    rows = ["the kidney stone", "Rückenmark, 'quoted' \"twice\"", "", "  spaces around  ", "血 blood", "last"]
    path = write_rows(tmp_path / f"corpus.{ending}", rows)
    assert texts_of([path]) == [row.strip() for row in rows if row.strip()]


@settings(max_examples=150, deadline=None)
@given(lines=LINES, part_bytes=st.integers(1, 40), ends=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
def test_dividing_a_file_loses_no_line_and_repeats_none(
    lines: list[str], part_bytes: int, ends: str, last: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus.txt"
        path.write_bytes((ends.join(["first", *lines]) + (ends if last else "")).encode())
        expected = [line.strip() for line in ["first", *lines] if line.strip()]
        assert texts_of([path], part_bytes=part_bytes) == expected
        parts = split_files([path], (), part_bytes)
        assert sum(part.size for part in parts) == path.stat().st_size
        assert sum(block.size for part in parts for block in read_blocks(part, ())) == path.stat().st_size


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=20), size=st.integers(1, 60)
)
def test_dividing_json_lines_loses_no_record(rows: list[str], size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_rows(Path(folder) / "corpus.jsonl", ["first", *rows])
        assert texts_of([path], part_bytes=size) == [row.strip() for row in ["first", *rows] if row.strip()]


@pytest.mark.parametrize("part_bytes", [7, 64, 10_000])
def test_a_line_too_long_for_memory_is_cut_at_spaces_and_keeps_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    monkeypatch.setattr(corpus, "LONGEST_TEXT_LINE", 32)
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 16)
    words = [f"wört{i}" for i in range(200)]
    path = tmp_path / "corpus.txt"
    path.write_text("short\n" + " ".join(words), encoding="utf-8")
    texts = texts_of([path], part_bytes=part_bytes)
    assert " ".join(texts).split() == ["short", *words]
    assert max(map(len, texts)) <= 64


def test_a_line_without_spaces_is_cut_between_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "LONGEST_TEXT_LINE", 8)
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 8)
    path = tmp_path / "corpus.txt"
    path.write_text("血液" * 40, encoding="utf-8")
    assert "".join(texts_of([path], part_bytes=20)) == "血液" * 40


def test_a_folder_gives_its_corpus_files_and_leaves_out_the_rest(tmp_path: Path) -> None:
    for name in ("b.txt", "inner/a.txt.gz", ".hidden.txt", "LICENSE", "empty.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"" if name == "empty.txt" else gzip.compress(b"a\n") if name.endswith("gz") else b"b\n")
    assert [path.name for path in find_files([tmp_path])] == ["b.txt", "a.txt.gz"]


def test_a_file_named_twice_is_read_once(tmp_path: Path) -> None:
    write_rows(tmp_path / "corpus.txt", ["a"])
    assert texts_of([tmp_path / "corpus.txt", tmp_path]) == ["a"]


def test_several_columns_give_a_text_each(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("anchor,positive\nleft,right\nalone,\n", encoding="utf-8")
    assert sorted(texts_of([path], ("anchor", "positive"))) == ["alone", "left", "right"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(b"\xef\xbb\xbfword\n")
    assert texts_of([path]) == ["word"]


def refused(name: str, content: bytes, folder: Path, columns: tuple[str, ...] = ("text",)) -> str:
    path = folder / name
    path.write_bytes(content)
    with pytest.raises(VocabgraftError) as caught:
        texts_of([path], columns)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("corpus.txt", b"", "is empty (0 bytes)"),
        ("corpus.docx", b"word", "ends in '.docx'; allowed: .txt, .csv"),
        ("corpus.zip.gz", b"word", "ends in '.zip.gz'; allowed"),
        ("corpus.parquet.gz", b"word", "ends in '.parquet.gz'; allowed"),
        ("corpus.txt", b"one\ntwo\0\n", "line 2 contains a NUL"),
        ("corpus.txt", b"one\ntwo\n\xff\xfe\n", "line 3 is not UTF-8 (byte 0xff)"),
        ("corpus.txt", b"a\n" * 40_000 + b"\xe9t\xe9\n", "line 40001 is not UTF-8 (byte 0xe9)"),
        ("corpus.txt", b"a\n" * 40_000 + b"\0\n", "line 40001 contains a NUL"),
        ("corpus.txt.gz", b"no gzip", "gzip"),
        ("corpus.txt.gz", gzip.compress(b"word\n" * 99, mtime=0)[:-9], "gzip"),
        ("corpus.csv", b"title,body\na,b\n", "column text is missing; it has title, body"),
        ("corpus.csv", b"id,text\n1,a\n2,b,c\n", "line 3 has 3 fields, but the header has 2"),
        ("corpus.csv", b"text\n" + b"a\n" * 40_000 + b"\xff\n", "line 40002 is not UTF-8 (byte 0xff)"),
        ("corpus.csv", b"text\n" + b"a\n" * 40_000 + b"\0\n", "line 40002 contains a NUL"),
        ("corpus.csv", b'text\n"open' + b" word\n" * 40_000, "check that quotes are closed"),
        ("corpus.csv", b"text\n" + b"a" * (1 << 20), "line 2 is longer than 1,048,576 bytes"),
        ("corpus.jsonl", b'{"title": "a"}\n', "column text is missing; it has title"),
        ("corpus.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("corpus.jsonl", b'{"text": "a"}\n["b"]\n', "line 2 is a list; allowed: one JSON object per line"),
        ("corpus.parquet", b"PAR1 and no more", "corpus.parquet cannot be read as .parquet"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_what_is_wrong(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    message = refused(name, content, tmp_path)
    assert says in message
    assert name in message


def test_a_column_of_numbers_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"text": [1, 2]}), tmp_path / "corpus.parquet")
    with pytest.raises(VocabgraftError, match=r"column text has the type int64; allowed: text"):
        texts_of([tmp_path / "corpus.parquet"])


def test_what_is_not_there_or_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabgraftError, match="is missing"):
        find_files([tmp_path / "corpus.txt"])
    with pytest.raises(VocabgraftError, match="has no corpus file"):
        find_files([tmp_path])
