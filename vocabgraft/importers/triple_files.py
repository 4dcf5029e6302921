"""Reads plain files of triples, tab-separated (.tsv, .txt) or CSV, with a header or named columns."""

import csv
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.relation_texts import relation_name
from vocabgraft.importers.rows import ImportedRows, Limits, Triple, relation_tokens, tidy, tidy_triples
from vocabgraft.importers.streams import Report, no_report, open_source, shown, text_lines

NEEDED = ("head", "relation", "tail")
WEIGHT, IGNORED = "weight", "-"
SEPARATORS = {".tsv": "\t", ".txt": "\t", ".csv": ","}
SHOWN_FAULTS = 10


@dataclass(frozen=True)
class TripleSelection:
    """The columns of a file, and the triples to import.

    Attributes:
        columns: columns in the order of the file, out of head, relation, tail, weight, and `-` for an ignored one;
            empty if the first line names them.
        relations: names of relations; empty for all.
        min_weight: least weight of a triple, if there is a column `weight`.
    """

    columns: tuple[str, ...] = ()
    relations: frozenset[str] = frozenset()
    min_weight: float = -math.inf

    def __post_init__(self) -> None:
        """Refuse columns that do not make a triple, and a weight that is not a number."""
        if math.isnan(self.min_weight):
            raise VocabgraftError(f"min_weight is {self.min_weight}; allowed: a number, such as 1.0")
        known = (*NEEDED, WEIGHT)
        named = [name for name in self.columns if name != IGNORED]
        if self.columns and (set(named) - set(known) or len(set(named)) < len(named) or not set(NEEDED) <= set(named)):
            raise VocabgraftError(
                f"columns is {','.join(self.columns)}; allowed: {', '.join(NEEDED)}, each once, optionally {WEIGHT}, "
                f"and {IGNORED} for an ignored column, in the order of the file"
            )
        if self.columns and self.min_weight > -math.inf and WEIGHT not in named:
            raise VocabgraftError(
                f"min_weight is {self.min_weight}, but no column is named {WEIGHT}; name it, or omit it"
            )


@dataclass
class _Reading:
    path: Path
    selection: TripleSelection
    rows: int = 0
    relations: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    faulty: int = 0

    def refuse(self, line: int, reason: str) -> None:
        """Record an error in a line."""
        self.faulty += 1
        if len(self.faults) < SHOWN_FAULTS:
            self.faults.append(f"  line {line} {reason}")


def read_triples(
    path: Path, selection: TripleSelection, limits: Limits | None = None, report: Report = no_report
) -> ImportedRows:
    """Read triples line by line; only the selected triples are kept in memory.

    Args:
        path: a `.tsv`, `.txt` or `.csv` file, gzipped (.gz) or not.
        selection: the columns, and the triples to import.
        limits: only `min_uses` is used: the least number of training rows of a relation.
        report: called with the number of bytes read.

    Returns:
        Triples in the order of the file (with weights, the heaviest first), and one token per relation.

    Raises:
        VocabgraftError: with the first ten errors of the file, or if no row is left.
    """
    separator = _separator(path)
    reading = _Reading(path, selection)
    weights: dict[Triple, float] = {}
    with open_source(path, report) as stream:
        for triple, weight in _selected(_rows(text_lines(stream, path), separator, reading), reading):
            reading.left_out["a repetition"] += triple in weights
            weights[triple] = max(weight, weights.get(triple, -math.inf))
    _refuse_faults(reading)
    reading.left_out += Counter()
    # Sorting is stable, so triples with equal weights keep their order.
    heaviest_first = sorted(weights, key=weights.__getitem__, reverse=True)
    triples = tidy_triples(heaviest_first, (limits or Limits()).min_uses, reading.left_out)
    if not triples:
        reasons = "; ".join(f"{count} left out for {reason}" for reason, count in reading.left_out.most_common())
        raise VocabgraftError(
            f"{path}: no row is left of {reading.rows} ({reasons or 'the file has none'}); change --relations, "
            "--min-weight or --min-uses"
        )
    return ImportedRows(relation_tokens(triples, {}), triples=tuple(triples), left_out=dict(reading.left_out))


def _separator(path: Path) -> str:
    ending = (Path(path.stem).suffix if path.suffix == ".gz" else path.suffix).lower()
    if ending not in SEPARATORS:
        raise VocabgraftError(f"{path} ends in '{ending}'; allowed: {', '.join(SEPARATORS)}, also with .gz")
    return SEPARATORS[ending]


def _rows(lines: Iterable[tuple[int, str]], separator: str, reading: _Reading) -> Iterator[tuple[int, list[str]]]:
    """The fields of each non-blank line, with its number."""
    if separator == "\t":
        # In such files a quotation mark is an ordinary character.
        for number, line in lines:
            if line.strip():
                yield number, line.rstrip("\r\n").split("\t")
        return
    reader = csv.reader((line for _, line in lines), strict=True)
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reading.refuse(start, f"cannot be read: {error}; check its quotes")
            continue
        if any(fields):
            yield start, fields


def _selected(rows: Iterator[tuple[int, list[str]]], reading: _Reading) -> Iterator[tuple[Triple, float]]:
    selection = reading.selection
    wanted = {name_of(relation) for relation in selection.relations}
    names, rows = _columns(rows, reading)
    for number, fields in rows:
        reading.rows += 1
        if (found := _triple(number, fields, names, reading)) is None:
            continue
        triple, weight = found
        reading.relations.add(triple.relation)
        if reason := _reason_to_leave_out(triple, weight, wanted, selection):
            reading.left_out[reason] += 1
        else:
            yield triple, weight
    if unknown := sorted(wanted - reading.relations):
        raise VocabgraftError(
            f"{reading.path} has no relation {', '.join(unknown)} (--relations); it has "
            f"{', '.join(sorted(reading.relations))}"
        )


def _columns(
    rows: Iterator[tuple[int, list[str]]], reading: _Reading
) -> tuple[Sequence[str], Iterator[tuple[int, list[str]]]]:
    """The name of each column, and the rows after a header, if there is one."""
    first = next(rows, None)
    if first is None:
        return NEEDED, rows
    named = [name.strip().casefold() for name in first[1]]
    is_header = set(NEEDED) <= set(named)
    if not is_header and not reading.selection.columns:
        raise VocabgraftError(
            f"{reading.path}: line {first[0]} is {shown(str(first[1]))}, which does not name the columns head, "
            "relation and tail; give their order, such as --columns relation,head,tail"
        )
    known = [name if name in (*NEEDED, WEIGHT) else IGNORED for name in named]
    return reading.selection.columns or known, rows if is_header else chain([first], rows)


def _triple(number: int, fields: Sequence[str], names: Sequence[str], reading: _Reading) -> tuple[Triple, float] | None:
    if len(fields) != len(names):
        reading.refuse(number, f"has {len(fields)} columns, not {len(names)} ({','.join(names)}): {shown(str(fields))}")
        return None
    values = dict(zip(names, fields, strict=True))
    try:
        weight = float(values[WEIGHT]) if WEIGHT in values else 1.0
    except ValueError:
        weight = math.nan
    if math.isnan(weight):
        reading.refuse(number, f"has the weight {shown(values[WEIGHT])}; allowed: a number")
        return None
    return Triple(tidy(values["head"]), name_of(values["relation"]), tidy(values["tail"])), weight


def _reason_to_leave_out(triple: Triple, weight: float, wanted: set[str], selection: TripleSelection) -> str | None:
    if not triple.relation:
        return "a row without a relation"
    if wanted and triple.relation not in wanted:
        return "another relation"
    return "a lower weight" if weight < selection.min_weight else None


def name_of(relation: str) -> str:
    """The name of a relation's token: `/r/AtLocation` becomes AtLocation, `is a` becomes IsA, `part_of` stays."""
    last = re.split(r"[/#]", relation.strip().rstrip("/#"))[-1]
    return last if re.fullmatch(r"\w*", last) else relation_name(last)


def _refuse_faults(reading: _Reading) -> None:
    if reading.faults:
        more = f", the first {SHOWN_FAULTS}" if reading.faulty > SHOWN_FAULTS else ""
        shown_faults = "\n".join(reading.faults)
        raise VocabgraftError(
            f"{reading.path}: {reading.faulty} lines cannot be read{more}:\n{shown_faults}\n"
            "Correct them, or give other columns with --columns"
        )
