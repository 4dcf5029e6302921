"""Benchmarks in BEIR's layout: read, written, and refused with file and line."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vocabgraft.data.beir import Benchmark, read_beir, read_benchmarks, write_benchmarks
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import new_folder

CORPUS = ['{"_id": "d1", "title": "Dogs", "text": "bark"}', "", '{"_id": "d2", "text": "cats sleep", "metadata": {}}']
QUERIES = ['{"_id": "q1", "text": "who barks"}', '{"_id": "q2", "text": "who sleeps"}', '{"_id": "q3", "text": "who"}']
QRELS = ["query-id\tcorpus-id\tscore", "q2\td2\t2", "q1\td1\t1", "q1\td2\t0"]


def write(root: Path, corpus: list[str] = CORPUS, queries: list[str] = QUERIES, qrels: list[str] = QRELS) -> Path:
    """Write a benchmark of these lines."""
    (root / "qrels").mkdir(parents=True, exist_ok=True)
    for name, lines in (("corpus.jsonl", corpus), ("queries.jsonl", queries), ("qrels/test.tsv", qrels)):
        (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def test_a_folder_is_read_as_it_says(tmp_path: Path) -> None:
    found = read_beir(write(tmp_path), "own")
    # A query that is not judged, or has nothing relevant, asks nothing; a score of 0 is not relevant.
    assert found == Benchmark("own", ["who sleeps", "who barks"], ["Dogs bark", "cats sleep"], [{1: 2}, {0: 1}])
    assert read_beir(write(tmp_path, qrels=QRELS[1:]), "own") == found


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    expected = read_beir(write(tmp_path), "own")
    for path in tmp_path.rglob("*.*"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert read_beir(tmp_path, "own") == expected


@pytest.mark.parametrize(
    ("file", "lines", "told"),
    [
        ("corpus", [*CORPUS, "{"], "corpus.jsonl line 4: it is not JSON"),
        ("corpus", [*CORPUS, "[1]"], "corpus.jsonl line 4: it is '[1]', not an object with _id and text"),
        ("corpus", [*CORPUS, '{"text": "x"}'], "corpus.jsonl line 4: _id is None; allowed: a text"),
        ("corpus", [*CORPUS, '{"_id": "d3", "title": "x"}'], "corpus.jsonl line 4: text is missing"),
        ("corpus", [*CORPUS, '{"_id": "d3", "text": ["x"]}'], "line 4: text is ['x']; allowed: a text, or null"),
        ("corpus", [*CORPUS, '{"_id": "d3", "text": "x", "title": {"a": 1}}'], "line 4: title is {'a': '1'}; allowed"),
        ("corpus", [*CORPUS, '{"_id": "d1", "text": "other"}'], "corpus.jsonl line 4: the _id 'd1' "),
        ("corpus", [""], "corpus.jsonl: it is empty"),
        ("qrels", [*QRELS, "q1 d1 1"], "qrels/test.tsv line 5: it has 1 columns; allowed: query-id, corpus-id, score"),
        ("qrels", [*QRELS, "q1\t0\td1\t1"], "qrels/test.tsv line 5: it has 4 columns"),
        ("qrels", [*QRELS, "q3\td1\thigh"], "qrels/test.tsv line 5: the score is 'high'; allowed: a whole number"),
        ("qrels", [*QRELS, "q2\td2\t1"], "qrels/test.tsv line 5: 'q2' and 'd2' "),
        ("qrels", [QRELS[0], "q1\td9\t1"], "1 lines left out: a judgement of a document that is not in corpus.jsonl"),
        ("qrels", [QRELS[0], "q1\td1\t0"], "no query has a relevant document"),
    ],
)
def test_a_bad_line_is_named(file: str, lines: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(VocabgraftError) as caught:
        read_beir(write(tmp_path, **{file: lines}), "own")
    assert told in str(caught.value)
    assert "evaluate_model.benchmarks" in str(caught.value) and "own" in str(caught.value)


@pytest.mark.parametrize(
    ("file", "lines", "left_out"),
    [
        ("qrels", [*QRELS, "q1\td9\t1"], {"a judgement of a document that is not in corpus.jsonl": 1}),
        ("qrels", [*QRELS, "q9\td1\t1"], {"a judgement of a query that is not in queries.jsonl": 1}),
        ("qrels", [*QRELS, QRELS[1], QRELS[2]], {"a repeated line of qrels/test.tsv": 2}),
        ("qrels", ["query_id\tdoc_id\trelevance", "q2\td2\t2.0", " q1\td1 \t1", "q1\td2\t-1"], {}),
        ("corpus", [*CORPUS, CORPUS[0]], {"a repeated line of corpus.jsonl": 1}),
        (
            "corpus",
            [line.replace("{", '{"title": null, ', 1) if "title" not in line and line else line for line in CORPUS],
            {},
        ),
        ("queries", [*QUERIES, '{"_id": "q4", "text": ""}'], {}),
    ],
)
def test_what_published_folders_have_is_accepted_and_counted(
    file: str, lines: list[str], left_out: dict[str, int], tmp_path: Path
) -> None:
    found = read_beir(write(tmp_path, **{file: lines}), "own")
    assert found == Benchmark("own", ["who sleeps", "who barks"], ["Dogs bark", "cats sleep"], [{1: 2}, {0: 1}])
    assert found.left_out == left_out


def test_empty_documents_keep_their_place_and_queries_without_a_text_ask_nothing(tmp_path: Path) -> None:
    corpus = ['{"_id": "d0", "title": "", "text": ""}', '{"_id": "d3", "title": null, "text": null}', *CORPUS]
    queries = [*QUERIES, '{"_id": "q4", "text": null}']
    found = read_beir(write(tmp_path, corpus, queries, [*QRELS, "q3\td0\t1", "q4\td1\t1"]), "own")
    assert found.documents == ["", "", "Dogs bark", "cats sleep"]
    assert (found.queries, found.relevance) == (["who sleeps", "who barks", "who"], [{3: 2}, {2: 1}, {0: 1}])
    assert found.left_out == {"a judgement of a query without a text": 1}


def test_ids_are_the_text_that_stands_in_the_files(tmp_path: Path) -> None:
    long = 900_000_000_000_207_008
    corpus = [f'{{"_id": {long}, "text": "a"}}', f'{{"_id": {long + 1}, "text": "b"}}', '{"_id": "007", "text": "c"}']
    found = read_beir(write(tmp_path, corpus, ['{"_id": 1, "text": "q"}'], [f"1\t{long + 1}\t1", "1\t007\t2"]), "own")
    assert found.relevance == [{1: 1, 2: 2}]


def test_the_first_ten_of_many_problems_are_shown(tmp_path: Path) -> None:
    with pytest.raises(VocabgraftError) as caught:
        read_beir(write(tmp_path, corpus=["{"] * 12), "own")
    told = str(caught.value)
    assert "12 problems" in told and "the first 10" in told
    assert "line 10:" in told and "line 11:" not in told


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_missing_or_misencoded_file_is_named(name: str, tmp_path: Path) -> None:
    (write(tmp_path) / name).write_bytes(b'{"_id": "d1", "text": "a"}\n\xff\n')
    with pytest.raises(VocabgraftError, match=r"line \d( is not UTF-8|: it has 1 columns)"):
        read_beir(tmp_path, "own")
    (tmp_path / name).unlink()
    with pytest.raises(VocabgraftError, match=r"BEIR's layout is corpus.jsonl, queries.jsonl and qrels/test.tsv"):
        read_beir(tmp_path, "own")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5).filter(str.strip)


@settings(max_examples=30, deadline=None)
@given(
    documents=st.lists(TEXTS, min_size=1, max_size=5), queries=st.lists(TEXTS, min_size=1, max_size=4), data=st.data()
)
def test_what_is_written_is_read_again(
    documents: list[str], queries: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("beir")
    places = st.dictionaries(st.integers(0, len(documents) - 1), st.integers(1, 3), min_size=1)
    judged = [data.draw(places) for _ in queries]
    lines = {
        "corpus": [json.dumps({"_id": f"d{place}", "text": text}) for place, text in enumerate(documents)],
        "queries": [json.dumps({"_id": f"q{place}", "text": text}) for place, text in enumerate(queries)],
        "qrels": [f"q{query}\td{place}\t{grade}" for query, of in enumerate(judged) for place, grade in of.items()],
    }
    found = read_beir(write(root / "raw", **lines), "own")
    assert found == Benchmark("own", [text.strip() for text in queries], [text.strip() for text in documents], judged)
    with new_folder(root / "artifact") as work:
        write_benchmarks(work / "benchmarks", [found])
    assert read_benchmarks(root / "artifact" / "benchmarks") == [found]
