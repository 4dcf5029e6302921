"""Reads assertions of ConceptNet 5 (gzip CSV): triples of one language, and relation tokens.

The format is described at github.com/commonsense/conceptnet5/wiki/Downloads: five tab-separated columns, which are the
assertion's URI, the relation (`/r/IsA`), the start (`/c/en/dog/n/wn/animal`), the end, and JSON with `weight`.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.rows import ImportedRows, Limits, Triple, relation_tokens, tidy, tidy_triples
from vocabgraft.importers.streams import Report, no_report, open_source, shown, text_lines

# Relations that lead to web pages, not to words.
NOT_BETWEEN_WORDS = frozenset({"ExternalURL"})


@dataclass(frozen=True)
class Selection:
    """The assertions to import.

    Attributes:
        language: code as in `/c/en/`.
        min_weight: least weight; one fully trusted source has weight 1.0.
        relations: names without `/r/`; empty for all relations between words.
    """

    language: str = "en"
    min_weight: float = 1.0
    relations: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Refuse a weight that is not a number and a language that cannot be part of a URI."""
        if not math.isfinite(self.min_weight):
            raise VocabgraftError(f"min_weight is {self.min_weight}; allowed: a number, such as 1.0")
        if not self.language or not self.language.replace("-", "").replace("_", "").isalnum():
            raise VocabgraftError(f"language is {self.language!r}; allowed: a code of ConceptNet, such as en or pt")

    def takes(self, relation: str) -> bool:
        """Whether a relation is selected."""
        return relation in self.relations if self.relations else relation not in NOT_BETWEEN_WORDS


@dataclass
class _Tally:
    """Counts for the messages."""

    assertions: int = 0
    relations: set[str] = field(default_factory=set)
    languages: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)


def read_conceptnet(
    path: Path, selection: Selection, limits: Limits | None = None, report: Report = no_report
) -> ImportedRows:
    """Read assertions line by line; only the selected triples are kept in memory.

    Args:
        path: `conceptnet-assertions-5.*.csv.gz`, or the same file unpacked.
        selection: the assertions to import.
        limits: only `min_uses` is used: the least number of training rows of a relation.
        report: called with the number of bytes read.

    Returns:
        Triples, the heaviest first, and one token per relation.

    Raises:
        VocabgraftError: for a file that is damaged, truncated or of another type, or if no row is left.
    """
    tally = _Tally()
    with open_source(path, report) as stream:
        weights = _heaviest(_selected(text_lines(stream, path), path, selection, tally))
    _refuse_unknown_relations(path, selection, tally)
    if not weights:
        raise VocabgraftError(_nothing_left(path, selection, tally))
    heaviest_first = sorted(weights, key=weights.__getitem__, reverse=True)
    triples = tidy_triples(heaviest_first, (limits or Limits()).min_uses, tally.left_out)
    if not triples:
        raise VocabgraftError(_nothing_left(path, selection, tally))
    return ImportedRows(relation_tokens(triples, {}), triples=tuple(triples), left_out=dict(tally.left_out))


def _heaviest(weighted: Iterable[tuple[Triple, float]]) -> dict[Triple, float]:
    best: dict[Triple, float] = {}
    for triple, weight in weighted:
        if weight > best.get(triple, -math.inf):
            best[triple] = weight
    return best


def _selected(
    lines: Iterable[tuple[int, str]], path: Path, selection: Selection, tally: _Tally
) -> Iterator[tuple[Triple, float]]:
    for number, line in lines:
        relation, start, end, metadata = _columns(line, f"{path}: line {number}")
        tally.assertions += 1
        tally.relations.add(relation)
        if not selection.takes(relation):
            tally.left_out["another relation"] += 1
        elif not (_is_in(start, selection, tally) and _is_in(end, selection, tally)):
            tally.left_out["another language"] += 1
        elif (weight := _weight(metadata, f"{path}: line {number}")) < selection.min_weight:
            tally.left_out["a lower weight"] += 1
        else:
            yield Triple(_term(start), relation, _term(end)), weight


def _columns(line: str, place: str) -> tuple[str, str, str, str]:
    columns = line.rstrip("\r\n").split("\t")
    if len(columns) != 5 or not columns[1].startswith("/r/"):
        raise VocabgraftError(
            f"{place} is {shown(line)} with {len(columns)} columns, not an assertion of ConceptNet 5 (its URI, /r/..., "
            "/c/..., /c/..., JSON, separated by tabs); the file is truncated or of another type, so fetch "
            "conceptnet-assertions-5.7.0.csv.gz again"
        )
    # Relations from DBpedia look like /r/dbpedia/genre; the last part is the name.
    return columns[1].rsplit("/", 1)[-1], columns[2], columns[3], columns[4]


def _is_in(uri: str, selection: Selection, tally: _Tally) -> bool:
    parts = uri.split("/", 4)
    if len(parts) < 4 or parts[1] != "c":
        return False
    tally.languages.add(parts[2])
    return parts[2] == selection.language


def _term(uri: str) -> str:
    """The term of a URI without its sense: `/c/en/hot_dog/n/wn/food` becomes `hot dog`."""
    return tidy(uri.split("/", 4)[3].replace("_", " "))


def _weight(metadata: str, place: str) -> float:
    try:
        return float(json.loads(metadata)["weight"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise VocabgraftError(
            f"{place}: the last column is {shown(metadata)}, not JSON with a number as weight; the file is damaged "
            "or truncated, so fetch it again"
        ) from error


def _refuse_unknown_relations(path: Path, selection: Selection, tally: _Tally) -> None:
    if unknown := sorted(selection.relations - tally.relations):
        raise VocabgraftError(
            f"{path} has no relation {', '.join(unknown)} (--relations); it has {', '.join(sorted(tally.relations))}"
        )


def _nothing_left(path: Path, selection: Selection, tally: _Tally) -> str:
    reasons = "; ".join(f"{count} left out for {reason}" for reason, count in tally.left_out.most_common())
    return (
        f"{path}: no row is left of {tally.assertions} assertions ({reasons or 'the file has none'}). Selected: "
        f"language {selection.language} (seen: {', '.join(sorted(tally.languages)[:20]) or 'none'}), weight "
        f"{selection.min_weight} or more, relations {', '.join(sorted(selection.relations)) or 'all'}; "
        "change --min-weight, --relations, --language or --min-uses"
    )
