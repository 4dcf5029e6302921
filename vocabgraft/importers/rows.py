"""The output of every importer: rows that validate_data accepts, written as raw files."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vocabgraft.config.datasets import DatasetParams, FileParams, HeldOutParams
from vocabgraft.config.losses import Format
from vocabgraft.config.stages import ValidateDataParams
from vocabgraft.data.splits import split_of, split_rows
from vocabgraft.data.texts import UNPRINTABLE, fold, side_of
from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.relation_texts import SYMMETRIC, describe_relation
from vocabgraft.storage.atomic import work_beside
from vocabgraft.tokens.new_token import NewToken, relation_token

VOCABULARY, TRIPLES, PAIRS, CONTEXTS = "vocabulary.csv", "relations.csv", "terms.csv", "contexts.txt"
HEADERS = {
    VOCABULARY: ("token", "kind", "description"),
    TRIPLES: ("head", "relation", "tail"),
    PAIRS: ("anchor", "positive", "group"),
}
# Name, format and file of each dataset.
DATASETS: tuple[tuple[str, Format, str], ...] = (("relations", "triples", TRIPLES), ("terms", "pairs", PAIRS))

# As in validate_data, uses are counted only in training rows, so the held-out shares must be known here.
HELD_OUT = HeldOutParams(validation=0.1, test=0.1)
# The default of validate_data.max_text_characters.
MAX_TEXT_CHARACTERS = 2000


@dataclass(frozen=True)
class Limits:
    """Limits for imported tokens.

    Attributes:
        min_pieces: least number of subword tokens of a word.
        min_uses: least number of distinct texts of the training split.
        max_tokens: largest number of words and relations together.
    """

    min_pieces: int = 3
    min_uses: int = 4
    max_tokens: int = 3000

    def __post_init__(self) -> None:
        """Refuse limits that no token can meet or that validate_data would not accept."""
        for name, lowest in (("min_pieces", 2), ("min_uses", 1), ("max_tokens", 1)):
            if (value := getattr(self, name)) < lowest:
                raise VocabgraftError(f"{name} is {value}; allowed: {lowest} or more")


@dataclass(frozen=True, slots=True)
class Triple:
    """A head, the name of a relation, and a tail, as texts."""

    head: str
    relation: str
    tail: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts that mean the same, and their group, whose rows stay in one split."""

    anchor: str
    positive: str
    group: str


@dataclass(frozen=True)
class ImportedRows:
    """The rows to write; `left_out` is the number of rows left out, by reason."""

    vocabulary: tuple[NewToken, ...]
    triples: tuple[Triple, ...] = ()
    pairs: tuple[Pair, ...] = ()
    contexts: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def tables(self) -> dict[str, list[tuple[str, ...]]]:
        """The rows of each non-empty file by its name."""
        tables: dict[str, list[tuple[str, ...]]] = {
            VOCABULARY: [(token.text, token.kind, token.description) for token in self.vocabulary],
            TRIPLES: [(row.head, row.relation, row.tail) for row in self.triples],
            PAIRS: [(row.anchor, row.positive, row.group) for row in self.pairs],
            CONTEXTS: [(text,) for text in self.contexts],
        }
        return {name: rows for name, rows in tables.items() if rows}


def tidy(text: str) -> str:
    """The text with each run of white space replaced by one space."""
    return " ".join(text.replace("\ufeff", "").split())


def unfit(text: str) -> str | None:
    """Why a text cannot be in a row, or None."""
    if not text:
        return "an empty text"
    if re.search(UNPRINTABLE, text):
        return "a control or replacement character"
    return f"a text over {MAX_TEXT_CHARACTERS} characters" if len(text) > MAX_TEXT_CHARACTERS else None


def training_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs in the training split of validate_data, with the shares of `params_section`."""
    texts = [(pair.anchor, pair.positive) for pair in pairs]
    _, splits = split_rows([pair.group for pair in pairs], texts, HELD_OUT.validation, HELD_OUT.test)
    return [pair for pair, split in zip(pairs, splits, strict=True) if split == "train"]


def training_triples(triples: Iterable[Triple]) -> list[Triple]:
    """The triples in the training split of validate_data.

    Only heads join triples, so the group of a triple is its head, and no graph of millions of triples is needed.
    """
    return [triple for triple in triples if split_of(triple.head, HELD_OUT.validation, HELD_OUT.test) == "train"]


def tidy_triples(triples: Iterable[Triple], min_uses: int, left_out: Counter[str]) -> list[Triple]:
    """Leave out triples that validate_data would refuse; of two conflicting ones, the first is kept.

    Args:
        triples: triples in order of preference.
        min_uses: least number of training rows of a relation.
        left_out: gets the number of rows left out, by reason.
    """
    kept: dict[tuple[str, str, str], Triple] = {}
    names: dict[str, str] = {}
    sides: dict[tuple[str, str], str] = {}
    for triple in triples:
        head, tail = fold(triple.head), fold(triple.tail)
        # The tokens <|partOf|> and <|PartOf|> are the same for an uncased base.
        relation = names.setdefault(triple.relation.casefold(), triple.relation)
        first, second = sorted((head, tail)) if relation in SYMMETRIC else (head, tail)
        if reason := _refuse_triple(triple, (first, relation, second) in kept, sides):
            left_out[reason] += 1
        else:
            kept[first, relation, second] = Triple(triple.head, relation, triple.tail)
    return _of_frequent_relations(list(kept.values()), min_uses, left_out)


def _refuse_triple(triple: Triple, repeated: bool, sides: dict[tuple[str, str], str]) -> str | None:
    if reason := unfit(triple.head) or unfit(triple.tail):
        return reason
    head, tail = fold(triple.head), fold(triple.tail)
    if head == tail:
        return "a head that equals its tail"
    if repeated:
        return "a repetition"
    side = side_of(triple.relation)
    first, second = sorted((head, tail))
    if side and sides.setdefault((first, second), side) != side:
        return "a contradiction, such as Synonym and Antonym of the same two"
    return None


def _of_frequent_relations(triples: list[Triple], min_uses: int, left_out: Counter[str]) -> list[Triple]:
    uses = Counter(triple.relation for triple in training_triples(triples))
    kept = [triple for triple in triples if uses[triple.relation] >= min_uses]
    if len(kept) < len(triples):
        left_out[f"a relation with fewer than {min_uses} training rows"] += len(triples) - len(kept)
    return kept


def check_absent(folder: Path, names: Iterable[str], overwrite: bool) -> None:
    """Refuse to overwrite existing files.

    Raises:
        VocabgraftError: with their names, unless `overwrite`.
    """
    if folder.exists() and not folder.is_dir():
        raise VocabgraftError(f"{folder} is a file; give --out a folder")
    if not overwrite and (there := [name for name in names if (folder / name).exists()]):
        raise VocabgraftError(f"{folder} already has {', '.join(there)}; give another --out, or --overwrite")


def write_raw(rows: ImportedRows, folder: Path, overwrite: bool = False) -> dict[str, int]:
    """Write the files that have rows, each whole or not at all.

    Returns:
        The number of rows of each written file.

    Raises:
        VocabgraftError: if a file already exists, or the folder cannot be written.
    """
    tables = rows.tables()
    check_absent(folder, tables, overwrite)
    try:
        with work_beside(folder) as work:
            for name, table in tables.items():
                _write(work / name, HEADERS.get(name), table)
            folder.mkdir(exist_ok=True)
            for name in tables:
                (work / name).replace(folder / name)
    except OSError as error:
        raise VocabgraftError(f"{folder} cannot be written ({error.strerror}); give another --out") from error
    return {name: len(table) for name, table in tables.items()}


def _write(path: Path, header: tuple[str, ...] | None, rows: Sequence[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        if header is None:
            stream.writelines(f"{row[0]}\n" for row in rows)
        else:
            csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def params_section(rows: ImportedRows, inside_raw: Path) -> ValidateDataParams:
    """The section `validate_data` of params.yaml for the files; `inside_raw` is their folder below data/raw."""
    files = rows.tables()
    name_of = {name: (inside_raw / name).as_posix() for name in files}
    datasets = [
        DatasetParams(name=name, format=kind, files=FileParams(train=[name_of[file]]), held_out=HELD_OUT)
        for name, kind, file in DATASETS
        if file in files
    ]
    return ValidateDataParams(
        vocabulary=name_of[VOCABULARY],
        contexts=[name_of[CONTEXTS]] if CONTEXTS in files else [],
        datasets=datasets,
        max_text_characters=MAX_TEXT_CHARACTERS,
        max_new_tokens=max(len(rows.vocabulary), ValidateDataParams.model_fields["max_new_tokens"].default),
    )


def relation_tokens(triples: Iterable[Triple], descriptions: Mapping[str, str]) -> tuple[NewToken, ...]:
    """The relations' tokens in the order of first use, described from `descriptions` or the table."""
    names = dict.fromkeys(triple.relation for triple in triples)
    return tuple(
        NewToken(relation_token(name), "special", descriptions.get(name) or describe_relation(name)) for name in names
    )
