"""Retrieval benchmarks in BEIR's layout (Thakur et al., 2021): corpus.jsonl, queries.jsonl and qrels/test.tsv."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import read_json, require_artifact, write_json

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels/test.tsv"
HEADER = ("query-id", "corpus-id", "score")
INDEX = "index.json"
SHOWN_PROBLEMS = 10


@dataclass(frozen=True)
class Benchmark:
    """Judged queries over documents.

    Attributes:
        name: as params.yaml has it.
        queries: those that have a relevant document.
        documents: title and text of each.
        relevance: for each query the places of its relevant documents with their grades, which are above 0.
    """

    name: str
    queries: list[str]
    documents: list[str]
    relevance: list[dict[int, int]]


def read_beir(folder: Path, name: str) -> Benchmark:
    """Read a folder in BEIR's layout.

    Raises:
        VocabgraftError: with file and line of each problem, the first ten.
    """
    problems: list[str] = []
    documents = _texts(folder / CORPUS, name, ("title", "text"), problems)
    queries = _texts(folder / QUERIES, name, ("text",), problems)
    judged = _judgements(folder / QRELS, name, queries, documents, problems)
    if not problems and not judged:
        problems.append(f"{QRELS}: no query has a relevant document (a score above 0), so nothing can be found")
    if problems:
        more = f", the first {SHOWN_PROBLEMS}" if len(problems) > SHOWN_PROBLEMS else ""
        shown = "\n".join(f"  {problem}" for problem in problems[:SHOWN_PROBLEMS])
        raise VocabgraftError(
            f"evaluate_model.benchmarks: problems of {name} in {folder}, {len(problems)} in all{more}:\n{shown}\n"
            f"Mend them, or take {name} out of params.yaml"
        )
    place = {key: number for number, key in enumerate(documents)}
    relevance = [{place[document]: grade for document, grade in grades.items()} for grades in judged.values()]
    return Benchmark(name, [queries[key] for key in judged], list(documents.values()), relevance)


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


def _texts(path: Path, name: str, fields: tuple[str, ...], problems: list[str]) -> dict[str, str]:
    """Texts by `_id`; what is wrong with a line is put to `problems`."""
    found: dict[str, str] = {}
    for number, line in _lines(path, name):
        problem, key, text = _entry(line, fields)
        if problem is None and key in found:
            problem = f"the _id {key!r} is there already; give each its own"
        if problem is not None:
            problems.append(f"{path.name} line {number}: {problem}")
            continue
        found[key] = text
    if not found and not problems:
        problems.append(f"{path.name}: it is empty")
    return found


def _entry(line: str, fields: tuple[str, ...]) -> tuple[str | None, str, str]:
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        return f"it is not JSON ({error}); give one object a line", "", ""
    if not isinstance(entry, dict):
        return f"it is {line[:40]!r}, not an object with _id and text", "", ""
    for field in ("_id", "text"):
        if not isinstance(entry.get(field), str):
            return f"{field} is {entry.get(field)!r}; allowed: a text", "", ""
    parts = [entry.get(field, "") for field in fields]
    if not all(isinstance(part, str) for part in parts):
        return f"title is {entry['title']!r}; allowed: a text, or none", "", ""
    text = " ".join(part.strip() for part in parts).strip()
    return (None, entry["_id"], text) if text else (f"{' and '.join(fields)} are empty", "", "")


def _judgements(
    path: Path, name: str, queries: dict[str, str], documents: dict[str, str], problems: list[str]
) -> dict[str, dict[str, int]]:
    """Grades above 0 by query and document."""
    seen: set[tuple[str, str]] = set()
    found: dict[str, dict[str, int]] = {}
    for position, (number, line) in enumerate(_lines(path, name)):
        cells = line.split("\t")
        if position == 0 and tuple(cells) == HEADER:
            continue
        problem = _judgement_problem(cells, queries, documents, seen)
        if problem is not None:
            problems.append(f"{QRELS} line {number}: {problem}")
            continue
        query, document, grade = cells[0], cells[1], int(cells[2])
        seen.add((query, document))
        if grade > 0:
            found.setdefault(query, {})[document] = grade
    return found


def _judgement_problem(
    cells: Sequence[str], queries: dict[str, str], documents: dict[str, str], seen: set[tuple[str, str]]
) -> str | None:
    if len(cells) != len(HEADER):
        return f"it has {len(cells)} columns; allowed: {', '.join(HEADER)}, with a tab between them"
    query, document, grade = cells
    if query not in queries:
        return f"the query {query!r} is not in {QUERIES} (or its line has a problem)"
    if document not in documents:
        return f"the document {document!r} is not in {CORPUS} (or its line has a problem)"
    if not grade.strip().lstrip("-").isdecimal():
        return f"the score is {grade!r}; allowed: a whole number, above 0 for a relevant document"
    if (query, document) in seen:
        return f"{query!r} and {document!r} are judged already; keep one line"
    return None


def _lines(path: Path, name: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers."""
    number = 0
    try:
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
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
