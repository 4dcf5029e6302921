"""Retrieval benchmarks in BEIR's layout (Thakur et al., 2021): corpus.jsonl, queries.jsonl and qrels/test.tsv."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import read_json, require_artifact, write_json
from vocabgraft.storage.bounds import bounded_lines, special_kind

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels/test.tsv"
HEADER = ("query-id", "corpus-id", "score")
GRADE = re.compile(r"[+-]?\d{1,9}(\.0*)?")
INDEX = "index.json"
SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class Benchmark:
    """Queries with relevance judgements over documents.

    Attributes:
        name: name in params.yaml.
        queries: the queries that have a relevant document.
        documents: title and text of each document; may be empty.
        relevance: for each query, the grades (above 0) of its relevant documents by index.
        left_out: number of ignored lines by reason; not stored.
    """

    name: str
    queries: list[str]
    documents: list[str]
    relevance: list[dict[int, int]]
    left_out: dict[str, int] = field(default_factory=dict, compare=False)


@dataclass
class _Reading:
    """The problems and ignored lines found so far in a folder."""

    folder: Path
    name: str
    problems: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def read_beir(folder: Path, name: str) -> Benchmark:
    """Read a published folder in BEIR's layout.

    Judgements of documents or queries that the folder lacks are left out and counted, as are repeated lines and queries
    without text. Documents may be empty, and titles null.

    Raises:
        VocabgraftError: with file and line of the first ten problems.
    """
    reading = _Reading(folder, name)
    documents = _texts(reading, CORPUS, ("title", "text"))
    queries = _texts(reading, QUERIES, ("text",))
    judged = _judgements(reading, queries, documents)
    if not reading.problems and not judged:
        reading.problems.append(_nothing_judged(reading.left_out))
    if problems := reading.problems:
        more = f", the first {SHOWN_PROBLEMS}" if len(problems) > SHOWN_PROBLEMS else ""
        shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN_PROBLEMS])
        raise VocabgraftError(
            f"evaluate_model.benchmarks: {len(problems)} problems of {name} in {folder}{more}:\n{shown}\n"
            f"Correct them, or take {name} out of params.yaml"
        )
    place = {key: number for number, key in enumerate(documents)}
    relevance = [{place[document]: grade for document, grade in grades.items()} for grades in judged.values()]
    left_out = dict(sorted(reading.left_out.items()))
    return Benchmark(name, [queries[key] for key in judged], list(documents.values()), relevance, left_out)


def _nothing_judged(left_out: Counter[str]) -> str:
    reasons = "; ".join(f"{count} lines left out: {reason}" for reason, count in sorted(left_out.items()))
    told = f" ({reasons})" if reasons else ""
    return f"{QRELS}: no query has a relevant document (a score above 0){told}, so nothing can be evaluated"


def write_benchmarks(folder: Path, benchmarks: Sequence[Benchmark]) -> None:
    """Write benchmarks as Parquet, with an index."""
    folder.mkdir(parents=True)
    for entry in benchmarks:
        own = folder / entry.name
        own.mkdir()
        pq.write_table(pa.table({"text": pa.array(entry.documents, pa.string())}), own / "documents.parquet")
        grades = [list(found.items()) for found in entry.relevance]
        columns = {
            "text": pa.array(entry.queries, pa.string()),
            "documents": pa.array([[place for place, _ in found] for found in grades], pa.list_(pa.int64())),
            "grades": pa.array([[grade for _, grade in found] for found in grades], pa.list_(pa.int64())),
        }
        pq.write_table(pa.table(columns), own / "queries.parquet")
    write_json(folder / INDEX, [entry.name for entry in benchmarks])


def read_benchmarks(folder: Path) -> list[Benchmark]:
    """The benchmarks that `write_benchmarks` wrote, in their order."""
    found = []
    for name in read_json(require_artifact(folder / INDEX)):
        queries = pq.read_table(folder / name / "queries.parquet").to_pydict()
        documents = pq.read_table(folder / name / "documents.parquet").to_pydict()["text"]
        places = zip(queries["documents"], queries["grades"], strict=True)
        relevance = [dict(zip(of, grades, strict=True)) for of, grades in places]
        found.append(Benchmark(name, queries["text"], documents, relevance))
    return found


def _texts(reading: _Reading, file: str, fields: tuple[str, ...]) -> dict[str, str]:
    """Texts by `_id`, as written; adds the errors of lines to the problems."""
    found: dict[str, str] = {}
    for number, line in _lines(reading.folder / file, reading.name):
        problem, key, text = _entry(line, fields)
        if problem is None and found.get(key, text) != text:
            problem = f"the _id {key!r} appears again with another text; give each text its own"
        if problem is not None:
            reading.problems.append(f"{file} line {number}: {problem}")
        elif key in found:
            reading.left_out[f"a repeated line of {file}"] += 1
        else:
            found[key] = text
    if not found and not reading.problems:
        reading.problems.append(f"{file}: it is empty")
    return found


def _entry(line: str, fields: tuple[str, ...]) -> tuple[str | None, str, str]:
    try:
        # Numbers stay as they are written, because the judgements refer to them like that.
        entry: Any = json.loads(line, parse_int=str, parse_float=str)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON ({error}); write one object per line", "", ""
    if not isinstance(entry, dict):
        return f"it is {line[:40]!r}, not an object with _id and text", "", ""
    if not isinstance(entry.get("_id"), str):
        return f"_id is {entry.get('_id')!r}; allowed: a text or a number", "", ""
    if "text" not in entry:
        return "text is missing; allowed: a text, which may be empty or null", "", ""
    parts = [entry.get(name) or "" for name in fields]
    for name, part in zip(fields, parts, strict=True):
        if not isinstance(part, str):
            return f"{name} is {entry[name]!r}; allowed: a text, or null", "", ""
    return None, entry["_id"], " ".join(part.strip() for part in parts).strip()


def _judgements(reading: _Reading, queries: dict[str, str], documents: dict[str, str]) -> dict[str, dict[str, int]]:
    """Grades above 0 by query and document."""
    seen: dict[tuple[str, str], int] = {}
    found: dict[str, dict[str, int]] = {}
    for position, (number, line) in enumerate(_lines(reading.folder / QRELS, reading.name)):
        cells = [cell.strip() for cell in line.split("\t")]
        if position == 0 and len(cells) == len(HEADER) and GRADE.fullmatch(cells[2]) is None:
            continue
        problem = _judgement_problem(cells, seen)
        if problem is not None:
            reading.problems.append(f"{QRELS} line {number}: {problem}")
            continue
        query, document, grade = cells[0], cells[1], int(cells[2].split(".")[0])
        reason = _reason_to_leave_out(query, document, queries, documents, seen)
        seen[query, document] = grade
        if reason is not None:
            reading.left_out[reason] += 1
        elif grade > 0:
            found.setdefault(query, {})[document] = grade
    return found


def _judgement_problem(cells: Sequence[str], seen: Mapping[tuple[str, str], int]) -> str | None:
    if len(cells) != len(HEADER):
        return f"it has {len(cells)} columns; allowed: {', '.join(HEADER)}, separated by tabs"
    query, document, grade = cells
    if GRADE.fullmatch(grade) is None:
        return f"the score is {grade!r}; allowed: a whole number, above 0 for a relevant document"
    if seen.get((query, document), whole := int(grade.split(".")[0])) != whole:
        return f"{query!r} and {document!r} appear again with another score; keep one line"
    return None


def _reason_to_leave_out(
    query: str,
    document: str,
    queries: Mapping[str, str],
    documents: Mapping[str, str],
    seen: Mapping[tuple[str, str], int],
) -> str | None:
    if (query, document) in seen:
        return f"a repeated line of {QRELS}"
    if document not in documents:
        return f"a judgement of a document that is not in {CORPUS}"
    if query not in queries:
        return f"a judgement of a query that is not in {QUERIES}"
    return None if queries[query] else "a judgement of a query without a text"


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """The non-blank lines with their numbers."""
    number = 0
    try:
        if kind := special_kind(path):
            raise VocabgraftError(f"evaluate_model.benchmarks: {path} is {kind}; put a file there")
        with path.open("rb") as stream:
            for number, raw in bounded_lines(stream, path):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if line.strip():
                    yield number, line
    except (FileNotFoundError, NotADirectoryError) as error:
        raise VocabgraftError(
            f"evaluate_model.benchmarks: {name} has no {path}; BEIR's layout is {CORPUS}, {QUERIES} and {QRELS} in "
            "the benchmark's folder inside data/raw"
        ) from error
    except UnicodeDecodeError as error:
        raise VocabgraftError(
            f"evaluate_model.benchmarks: {path} line {number} is not UTF-8 ({error}); save the file as UTF-8"
        ) from error
