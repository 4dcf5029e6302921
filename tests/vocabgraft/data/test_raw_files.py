"""Raw files: every field comes back as it was written, and what cannot be read is refused with its line."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vocabgraft.data.raw_files import check_table, read_lines, read_table
from vocabgraft.errors import VocabgraftError

FIELD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6) | st.sampled_from(
    [
        "NA",
        "null",
        "nan",
        "None",
        "1.0",
        "007",
        "true",
        "2020-01-01",
        ' "a',
        "'",
        ",",
        "\t",
        "\n",
        "\r\n",
        "#",
        "\ufeff",
    ]
)
ROWS = st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=4)


def table(path: Path, content: str | bytes) -> dict[str, list[Any]]:
    """Write a file and read its columns `a` and `b`."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    read: dict[str, list[Any]] = read_table(path, ("a", "b")).to_dict("list")
    return read


def refusal(path: Path, content: str | bytes) -> str:
    """Write a file and return why it is refused, which names it."""
    with pytest.raises(VocabgraftError) as caught:
        table(path, content)
    assert str(path) in str(caught.value)
    return str(caught.value)


@given(rows=ROWS, line_end=st.sampled_from(["\n", "\r\n"]), ending=st.sampled_from([".csv", ".tsv"]))
@example(rows=[("NA", "null"), ("", "nan")], line_end="\n", ending=".csv")
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_field_of_a_csv_comes_back_as_it_was_written(
    tmp_path: Path, rows: list[tuple[str, str]], line_end: str, ending: str
) -> None:
    path = tmp_path / f"rows{ending}"
    with path.open("w", encoding="utf-8", newline="") as stream:
        # The writer leaves a lone carriage return unquoted, which every reader takes for the end of a line.
        quoting = csv.QUOTE_ALL if any("\r" in field for row in rows for field in row) else csv.QUOTE_MINIMAL
        separator = "," if ending == ".csv" else "\t"
        writer = csv.writer(stream, delimiter=separator, lineterminator=line_end, quoting=quoting)
        writer.writerows([("a", "b"), *rows])
    read = read_table(path, ("a", "b"))
    assert list(zip(read["a"], read["b"], strict=True)) == [(left or None, right or None) for left, right in rows]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "a,b\n1,\nx y,NA\n"),
        ("t.tsv", "a\tb\n1\t\nx y\tNA\n"),
        ("t.jsonl", '{"a": 1, "b": ""}\n{"a": "x y", "b": "NA"}\n'),
        ("t.json", '[{"a": 1, "b": null}, {"a": "x y", "b": "NA"}]'),
    ],
)
def test_all_kinds_of_file_give_the_same_table(tmp_path: Path, name: str, content: str) -> None:
    read = table(tmp_path / name, content)
    assert (read["a"], read["b"]) == (["1", "x y"], [None, "NA"])


def test_parquet_is_read_as_text(tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"a": ["x", None], "b": [0.5, 1.0]}).to_parquet(tmp_path / "t.parquet")
    read = read_table(tmp_path / "t.parquet", ("a", "b"))
    assert read.to_dict("list") == {"a": ["x", None], "b": ["0.5", "1.0"], "row": [1, 2]}


def test_a_gap_is_none_and_never_nan(tmp_path: Path) -> None:
    # NaN is true, so `text or ""` would let it through to code that expects text.
    read = table(tmp_path / "t.csv", "a,b\n,x\ny,\n")
    assert read["a"][0] is None
    assert read["b"][1] is None


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    assert table(tmp_path / "t.csv", b"\xef\xbb\xbfa,b\n1,2\n")["a"] == ["1"]


def test_rows_are_told_by_the_line_where_they_start(tmp_path: Path) -> None:
    read = table(tmp_path / "t.csv", 'a,b\n1,2\n\n3,"4\n5"\n\n6,7\n\n')
    assert (read["a"], read["row"]) == (["1", "3", "6"], [2, 4, 7])
    read = table(tmp_path / "t.jsonl", '{"a": "1", "b": "2"}\n\n{"a": "3", "b": "4"}\n')
    assert read["row"] == [1, 3]


@pytest.mark.parametrize("name", ["t[1].csv", "t*.csv", "t?.csv", "t x ü.csv"])
def test_a_name_with_signs_of_a_pattern_is_read(tmp_path: Path, name: str) -> None:
    assert table(tmp_path / name, "a,b\n1,2\n")["b"] == ["2"]


def test_a_name_that_matches_another_file_as_a_pattern_reads_its_own(tmp_path: Path) -> None:
    table(tmp_path / "t1.csv", "a,b\nwrong,wrong\n")
    assert table(tmp_path / "t[1].csv", "a,b\n1,2\n")["a"] == ["1"]


def test_columns_come_in_the_order_asked_and_optional_ones_only_where_they_are(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("c,b,a\n1,2,3\n", encoding="utf-8")
    assert list(read_table(path, ("a", "b"), ("c", "d")).columns) == ["a", "b", "c", "row"]


@pytest.mark.parametrize("rows", ["1,2,3\n", "1,2\n4,5,6\n", "1,2,\n"])
def test_a_row_longer_than_the_header_does_not_shift_its_columns(tmp_path: Path, rows: str) -> None:
    line = 1 + rows.count("\n")
    assert f"line {line} has 3 fields, but the header has 2" in refusal(tmp_path / "t.csv", "a,b\n" + rows)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.csv", "", "is empty"),
        ("t.csv", "a,b\n", "has a header and no rows"),
        ("t.csv", "a,b\n\n\n", "has a header and no rows"),
        ("t.csv", "\na,b\n1,2\n", "line 1 is blank"),
        ("t.csv", "a,a,b\n1,2,3\n", "names column a more than once"),
        ("t.csv", "a, b\n1,2\n", "column b is missing; it has a,  b; needed: a, b"),
        ("t.csv", b"a,b\n1,2\n3,\xff\n", "line 3 is not UTF-8 (byte 0xff)"),
        ("t.csv", b"a,b\n1,2\n3,\xc3", "line 3 is not UTF-8 (byte 0xc3)"),
        ("t.csv", "a,b\n1,2\n3,\0\n", "line 3 holds a NUL"),
        ("t.csv", 'a,b\n1,"2\n3,4\n', "cannot be read"),
        ("t.csv", 'a,b\n1,"' + "x" * 140_000 + '"\n', "line 2 cannot be read: field larger"),
        ("t.json", '[{"a": ', "cannot be read as json"),
        ("t.jsonl", '{"a": "x", "b": "y"}\n\n{"a": "x"\n', "line 3 is not JSON"),
        ("t.jsonl", '{"a": "x", "b": [1]}\n', "column b holds"),
        ("t.jsonl", '{"a": "x", "b": "2020-01-01"}\n', "read as Timestamp; allowed: text and numbers"),
        ("t.parquet", b"PAR1 no parquet", "cannot be read as parquet"),
        ("t.xlsx", "a,b\n1,2\n", "ends in '.xlsx'; allowed: .csv, .tsv"),
        ("t.CSV", "a,b\n1,2\n", "ends in '.CSV'; allowed: .csv, .tsv"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_its_reason(
    tmp_path: Path, name: str, content: str | bytes, told: str
) -> None:
    assert told in refusal(tmp_path / name, content)


def test_a_bad_byte_is_found_beyond_the_first_block(tmp_path: Path) -> None:
    content = b"a,b\n" + b"1,2\n" * (1 << 18) + b"3,\xff\n"
    assert f"line {2 + (1 << 18)} is not UTF-8" in refusal(tmp_path / "t.csv", content)


def test_a_letter_on_the_border_of_two_blocks_is_no_bad_byte(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(b"x" * ((1 << 20) - 1) + "ü\nlast".encode())
    assert list(read_lines(path)["row"]) == [1, 2]


@pytest.mark.parametrize("read", [read_lines, lambda path: read_table(path, ("a",))])
def test_a_missing_file_and_a_folder_are_told(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    for name in ("t.txt", "t.csv"):
        with pytest.raises(VocabgraftError, match=r"missing|ends in"):
            read(tmp_path / name)
        (tmp_path / name).mkdir()
        with pytest.raises(VocabgraftError, match=r"is not a file|ends in"):
            read(tmp_path / name)


def test_lines_are_stripped_and_keep_their_number(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("\ufefffirst \r\n\n  \n third\u2028still third\n".encode())
    read = read_lines(path)
    assert list(zip(read["row"], read["text"], strict=True)) == [(1, "first"), (4, "third\u2028still third")]


def test_a_text_of_blank_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(VocabgraftError, match="holds blank lines only"):
        read_lines(tmp_path / "t.txt")


def test_a_string_of_json_keeps_its_line_breaks(tmp_path: Path) -> None:
    assert table(tmp_path / "t.jsonl", json.dumps({"a": "x\ny", "b": "z"}) + "\n")["a"] == ["x\ny"]


# The same two columns, whole and with one of them misspelt.
KINDS: dict[str, tuple[str, str]] = {
    ".csv": ("a,b\n1,2\n", "a,c\n1,2\n"),
    ".tsv": ("a\tb\n1\t2\n", "a\tc\n1\t2\n"),
    ".json": ('[{"a": "1"}, {"b": "2"}]', '[{"a": "1", "c": "2"}]'),
    ".jsonl": ('{"a": "1"}\n\n{"b": "2"}\n', '{"a": "1"}\n{"c": "2"}\n'),
}


@pytest.mark.parametrize("ending", [*KINDS, ".parquet"])
def test_columns_are_found_and_missed_without_reading_the_rows(ending: str, tmp_path: Path) -> None:
    good, bad = tmp_path / f"good{ending}", tmp_path / f"bad{ending}"
    if ending == ".parquet":
        for path, names in ((good, ("a", "b")), (bad, ("a", "c"))):
            pq.write_table(pa.table({name: ["1"] for name in names}), path)
    else:
        for path, text in zip((good, bad), KINDS[ending], strict=True):
            path.write_text(text, encoding="utf-8")
    check_table(good, ("a", "b"))
    with pytest.raises(VocabgraftError, match=r"column b is missing; it has a, c; needed: a, b"):
        check_table(bad, ("a", "b"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.csv", None, "is missing; put it there"),
        ("empty.csv", b"", "is empty"),
        ("words.xlsx", b"x", "allowed: .csv"),
        ("latin.csv", "a,\xfc\n1,2\n".encode("latin-1"), "is not UTF-8"),
        ("twice.csv", b"a,b,a\n", "more than once"),
        ("broken.jsonl", b'{"a": \n', "line 1 is not JSON"),
        ("broken.json", b"[", "cannot be read as json"),
        ("broken.parquet", b"PAR1", "cannot be read as parquet"),
    ],
)
def test_a_file_that_cannot_be_the_table_is_refused_as_it_is_when_it_is_read(
    name: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for refuses in (lambda: check_table(path, ("a", "b")), lambda: read_table(path, ("a", "b"))):
        with pytest.raises(VocabgraftError) as caught:
            refuses()
        assert str(path) in str(caught.value) and said in str(caught.value)


def test_vectors_in_a_table_of_text_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "vectors.csv"
    path.write_text('text,embedding\na,"[1, 2]"\n', encoding="utf-8")
    with pytest.raises(VocabgraftError, match=r"embedding holds lists of numbers"):
        check_table(path, ("text", "embedding"), ("embedding",))
