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

from vocabgraft.data.raw_files import column_faults, find_files, read_lines, read_table, scan_lines, scan_table
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
ROWS = st.lists(st.tuples(FIELD, FIELD), min_size=1, max_size=4).filter(lambda rows: any(map(any, rows)))


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
    # A row of empty fields alone is no record, as a spreadsheet leaves it.
    expected = [(left or None, right or None) for left, right in rows if left or right]
    assert list(zip(read["a"], read["b"], strict=True)) == expected


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


def test_rows_are_reported_by_the_line_where_they_start(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("rows", ["1,2,3\n", "1,2\n4,5,6\n", "1,,3\n"])
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
        ("t.csv", "a,a,b\n1,2,3\n", "column a appears more than once"),
        ("t.csv", "a, b\n1,2\n", "column b is missing; it has a,  b; needed: a, b"),
        ("t.csv", b"a,b\n1,2\n3,\xff\n", "line 3 is not UTF-8 (byte 0xff)"),
        ("t.csv", b"a,b\n1,2\n3,\xc3", "line 3 is not UTF-8 (byte 0xc3)"),
        ("t.csv", "a,b\n1,2\n3,\0\n", "line 3 contains a NUL"),
        ("t.csv", 'a,b\n1,"2\n3,4\n', "cannot be read"),
        ("t.csv", 'a,b\n1,"' + "x" * 140_000 + '"\n', "line 2 cannot be read: field larger"),
        ("t.json", '[{"a": ', "cannot be read as json"),
        ("t.jsonl", '{"a": "x", "b": "y"}\n\n{"a": "x"\n', "line 3 is not JSON"),
        ("t.csv", b"\xff\xfea\x00,\x00b\x00", "is UTF-16; save the file as UTF-8"),
        ("t.jsonl", '{"a": "x", "b": [1]}\n', "line 1, column b \"['1']\" cannot be read; allowed: text and numbers"),
        ("t.jsonl", '{"a": "x", "b": {"c": 1}}\n', "line 1, column b"),
        ("t.jsonl", '{"a": "\\ud800", "b": "y"}\n', "line 1, column a"),
        ("t.jsonl", '{"a": "x", "b": "y", "a": "z"}\n', "line 1 is not JSON: a name appears twice"),
        ("t.jsonl", '["x", "y"]\n', "line 1 is \"['x', 'y']\", not an object"),
        ("t.json", '{"a": ["x"], "b": []}', "columns of different lengths"),
        ("t.parquet", b"PAR1 no parquet", "cannot be read as parquet"),
        ("t.xlsx", "a,b\n1,2\n", "ends in '.xlsx'; allowed: .csv, .tsv"),
        ("t.CSV", "a,b\n1,2\n", "ends in '.CSV'; allowed: .csv, .tsv"),
    ],
)
def test_a_file_that_cannot_be_read_is_reported_with_its_reason(
    tmp_path: Path, name: str, content: str | bytes, told: str
) -> None:
    assert told in refusal(tmp_path / name, content)


def test_all_faults_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    content = b'a,c\nx,y\n\xff,z\n1,2,3\nq\0,r\n"s"t,u\n'
    told = refusal(tmp_path / "t.csv", content)
    for fault in (
        "5 errors in ",
        "column b is missing; it has a, c",
        "line 3 is not UTF-8 (byte 0xff)",
        "line 4 has 3 fields, but the header has 2",
        "line 5 contains a NUL",
        "line 6 cannot be read",
    ):
        assert fault in told
    told = refusal(tmp_path / "t.jsonl", b'{"a": "x", "b": "y"}\n\xff\n{"a": oops}\n[]\n{"a": {}, "b": "z"}\n')
    for fault in ("4 errors in ", "line 2 is not UTF-8", "line 3 is not JSON", "line 4 is '[]'", "line 5, column a"):
        assert fault in told


def test_the_good_rows_of_a_file_with_faults_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'a,b\n1,2\n\xff,3\n4,5,6\n7,"8"9\n10,11\n')
    found = scan_table(tmp_path / "t.csv", ("a", "b"))
    assert (list(found.rows["a"]), list(found.rows["row"])) == (["1", "10"], [2, 6])
    assert [fault.row for fault in found.faults] == [3, 4, 5]
    assert found.is_whole
    (tmp_path / "t.txt").write_bytes(b"first\nsec\xffond\nthird\0\nlast\n")
    lines = scan_lines(tmp_path / "t.txt")
    assert (list(lines.rows["text"]), list(lines.rows["row"])) == (["first", "last"], [1, 4])
    assert [fault.row for fault in lines.faults] == [2, 3]


def test_columns_that_nobody_asked_for_do_not_matter(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # As pandas writes its index, as a spreadsheet leaves empty columns and rows, a name twice, more commas than names.
    for content in (",a,b\n0,x,y\n", "a,b,\nx,y,\n", "a,,b,,\nx,,y,,\n,,,,\n", "c,a,c,b\n1,x,2,y\n", "a,b\nx,y,,,\n"):
        assert table(tmp_path / "t.csv", content) == {"a": ["x"], "b": ["y"], "row": [2]}
    maps = pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"a": ["x"], "odd": maps, "b": ["y"]}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", ("a", "b")).to_dict("list") == {"a": ["x"], "b": ["y"], "row": [1]}
    assert table(tmp_path / "t.jsonl", '{"a": "x", "b": "y", "c": [{"d": 1}, 2.5]}\n') == {
        "a": ["x"],
        "b": ["y"],
        "row": [1],
    }


LONG = 900_000_000_000_207_008


def test_whole_numbers_keep_their_digits_beside_a_gap_in_every_format(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    expected = [str(LONG), None, "1", "-7"]
    rows = [LONG, None, 1, -7]
    written = {
        "t.csv": "a,b\n" + "".join(f"{'' if row is None else row},x\n" for row in rows),
        "t.jsonl": "".join(json.dumps({"a": row, "b": "x"}) + "\n" for row in rows),
        "t.json": json.dumps([{"a": row, "b": "x"} for row in rows]),
    }
    for name, content in written.items():
        assert table(tmp_path / name, content)["a"] == expected, name
    assert table(tmp_path / "u.json", json.dumps({"a": rows, "b": ["x"] * 4}))["a"] == expected
    for kind in (pa.int64(), pa.decimal128(20, 0)):
        pq.write_table(pa.table({"a": pa.array(rows, kind), "b": ["x"] * 4}), tmp_path / "t.parquet")
        assert list(read_table(tmp_path / "t.parquet", ("a", "b"))["a"]) == expected


def test_a_value_is_the_text_that_stands_in_the_file(tmp_path: Path) -> None:
    written = ["2020-01-01", "007", "1", "1.50", "1e3", "true", "NaN", "0x1F", "12:30"]
    numbers = '{"a": 1.50, "b": 1e3}\n{"a": true, "b": -0.0}\n{"a": NaN, "b": 12345678901234567890123}\n'
    expected = {"a": ["1.50", "true", None], "b": ["1e3", "-0.0", "12345678901234567890123"], "row": [1, 2, 3]}
    assert table(tmp_path / "n.jsonl", numbers) == expected
    for name, content in {
        "t.csv": "a,b\n" + "".join(f"{text},x\n" for text in written),
        "t.jsonl": "".join(json.dumps({"a": text, "b": "x"}) + "\n" for text in written),
    }.items():
        assert table(tmp_path / name, content)["a"] == written


def test_parquet_gives_the_text_of_each_type_and_refuses_the_others(tmp_path: Path) -> None:
    import datetime

    import pyarrow as pa
    import pyarrow.parquet as pq

    day = datetime.date(2020, 1, 31)
    columns = {
        "dictionary": (pa.array(["x", None, "x"]).dictionary_encode(), ["x", None, "x"]),
        "view": (pa.array(["x", None, ""], pa.string_view()), ["x", None, None]),
        "large": (pa.array(["007", None, "y"], pa.large_string()), ["007", None, "y"]),
        "short float": (pa.array([0.1, None, 2.0], pa.float32()), ["0.1", None, "2.0"]),
        "boolean": (pa.array([True, None, False]), ["true", None, "false"]),
        "date": (pa.array([day, None, day]), ["2020-01-31", None, "2020-01-31"]),
        "unsigned": (pa.array([2**64 - 1, None, 0], pa.uint64()), [str(2**64 - 1), None, "0"]),
        "nothing": (pa.nulls(3), [None, None, None]),
    }
    for name, (values, expected) in columns.items():
        pq.write_table(pa.table({"a": values, "b": ["p", "q", "r"]}), tmp_path / "t.parquet")
        assert list(read_table(tmp_path / "t.parquet", ("a", "b"))["a"]) == expected, name
    for values in (pa.array([[1]]), pa.array([b"x"]), pa.array([{"c": 1}])):
        pq.write_table(pa.table({"a": values, "b": ["p"]}), tmp_path / "t.parquet")
        with pytest.raises(VocabgraftError, match=r"column a has the type .*; allowed: text, numbers and dates"):
            read_table(tmp_path / "t.parquet", ("a", "b"))


def test_vectors_are_lists_of_numbers_as_32_bit_floats(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "t.jsonl").write_text('{"a": [1, 0.5, -1e-3]}\n{"a": null}\n', encoding="utf-8")
    pq.write_table(pa.table({"a": pa.array([[1.0, 0.5, -1e-3], None], pa.list_(pa.float64()))}), tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        first, second = read_table(tmp_path / name, ("a",), vectors=("a",))["a"]
        assert first.dtype == "float32"
        assert first.tolist() == pytest.approx([1, 0.5, -1e-3])
        assert second is None
    for bad in ('["1"]', "[null]", "[]", '"x"', "[[1]]"):
        (tmp_path / "t.jsonl").write_text(f'{{"a": {bad}}}\n', encoding="utf-8")
        with pytest.raises(VocabgraftError, match=r"line 1, column a .*allowed: a list of numbers"):
            read_table(tmp_path / "t.jsonl", ("a",), vectors=("a",))


def test_json_of_records_of_columns_and_of_lines_is_one(tmp_path: Path) -> None:
    for content in ('[{"a": "x", "b": 1}]', '{"a": ["x"], "b": [1]}', '{"a": "x", "b": 1}', '{"a": "x", "b": 1}\n'):
        assert table(tmp_path / "t.json", content) == {"a": ["x"], "b": ["1"], "row": [1]}
    assert table(tmp_path / "t.json", '{"a": "x", "b": 1}\n{"a": "y"}\n')["b"] == ["1", None]


def test_patterns_stand_for_their_sorted_matches_and_names_for_themselves(tmp_path: Path) -> None:
    for name in ("part-2.csv", "part-10.csv", "part-1.csv", "other.csv", "deep/part-3.csv", "t[1].csv", "t1.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_files(tmp_path, ["part-*.csv"]) == ["part-1.csv", "part-10.csv", "part-2.csv"]
    assert find_files(tmp_path, ["other.csv", "o*.csv", "part-1.csv"]) == ["other.csv", "part-1.csv"]
    assert find_files(tmp_path, ["**/part-3.csv"]) == ["deep/part-3.csv"]
    assert find_files(tmp_path, ["t[1].csv", "none.csv", "none*.csv"]) == ["t[1].csv", "none.csv", "none*.csv"]
    with pytest.raises(VocabgraftError, match=r"none\*.csv matches no file"):
        read_table(tmp_path / "none*.csv", ("a",))


def test_a_bad_byte_is_found_beyond_the_first_block(tmp_path: Path) -> None:
    content = b"a,b\n" + b"1,2\n" * (1 << 18) + b"3,\xff\n"
    assert f"line {2 + (1 << 18)} is not UTF-8" in refusal(tmp_path / "t.csv", content)


def test_a_letter_on_the_border_of_two_blocks_is_no_bad_byte(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes((b"x" * 1023 + b"\n") * 1023 + b"x" * 1023 + "ü\nlast".encode())
    assert list(read_lines(path)["row"]) == [*range(1, 1026)]


@pytest.mark.parametrize("read", [read_lines, lambda path: read_table(path, ("a",))])
def test_a_missing_file_and_a_folder_are_reported(tmp_path: Path, read: Callable[[Path], Any]) -> None:
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
    with pytest.raises(VocabgraftError, match="has only blank lines"):
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
def test_columns_are_found_and_missed_without_the_rows(ending: str, tmp_path: Path) -> None:
    good, bad = tmp_path / f"good{ending}", tmp_path / f"bad{ending}"
    if ending == ".parquet":
        for path, names in ((good, ("a", "b")), (bad, ("a", "c"))):
            pq.write_table(pa.table({name: ["1"] for name in names}), path)
    else:
        for path, text in zip((good, bad), KINDS[ending], strict=True):
            path.write_text(text, encoding="utf-8")
    assert column_faults(good, ("a", "b")) == []
    (fault,) = column_faults(bad, ("a", "b"))
    assert f"{bad}: column b is missing; it has a, c; needed: a, b" in fault


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.csv", None, "is missing; put it there"),
        ("empty.csv", b"", "is empty"),
        ("words.xlsx", b"x", "allowed: .csv"),
        ("twice.csv", b"a,b,a\n1,2,3\n", "more than once"),
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
    (fault,) = column_faults(path, ("a", "b"))
    assert str(path) in fault and said in fault
    with pytest.raises(VocabgraftError) as caught:
        read_table(path, ("a", "b"))
    assert fault in str(caught.value)


def test_vectors_in_a_table_of_text_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "vectors.csv"
    path.write_text('text,embedding\na,"[1, 2]"\n', encoding="utf-8")
    (fault,) = column_faults(path, ("text", "embedding"), ("embedding",))
    assert "embedding needs lists of numbers" in fault
