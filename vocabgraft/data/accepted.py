"""Reads the data that `validate_data` accepted."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq

from vocabgraft.config.datasets import COLUMNS, DEFAULT_TEMPLATE, MORE_NEGATIVES, RETRIEVAL_FORMATS, Split, text_columns
from vocabgraft.config.losses import Format
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import read_json, require_artifact
from vocabgraft.tokens.new_token import NewToken, relation_token

ROWS_AT_ONCE = 10_000


@dataclass(frozen=True)
class AcceptedDataset:
    """A dataset's name, format and folder of Parquet splits, and the template that turns its triples into questions."""

    name: str
    format: Format
    folder: Path
    template: str = DEFAULT_TEMPLATE

    @property
    def is_retrieval(self) -> bool:
        """Whether a row is a query with its document."""
        return self.format in RETRIEVAL_FORMATS

    def path(self, split: Split) -> Path:
        """The Parquet file of a split."""
        return require_artifact(self.folder / f"{split}.parquet")

    def rows(self, split: Split) -> int:
        """The number of rows in a split."""
        return int(pq.read_metadata(self.path(split)).num_rows)

    def columns(self, split: Split) -> dict[str, list[Any]]:
        """The columns of a split as lists: texts, and the format's numbers, labels or vectors."""
        return cast(dict[str, list[Any]], pq.read_table(self.path(split)).to_pydict())

    def pairs(self, split: Split) -> list[tuple[str, str]]:
        """Anchor and positive of each row; for a triple, the filled template and `tail`.

        Raises:
            VocabgraftError: if rows of this format are not pairs.
        """
        if not self.is_retrieval:
            allowed = ", ".join(RETRIEVAL_FORMATS)
            raise VocabgraftError(
                f"dataset {self.name}: its format {self.format} has no pairs; formats with pairs: {allowed}"
            )
        return self._pairs(self.columns(split))

    def question(self, head: str, relation: str) -> str:
        """The question of a triple: the template with the head and the relation's token."""
        return fill_template(self.template, head, relation)

    def texts(self, split: Split) -> list[str]:
        """Every text of a split, row by row, as a model reads it; for triples, the texts of `pairs`."""
        return [text for block in self.text_blocks(split) for text in block]

    def text_blocks(self, split: Split) -> Iterator[list[str]]:
        """The texts of a split in blocks of rows, so that a file of any size fits into memory."""
        with pq.ParquetFile(self.path(split)) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                yield [text for row in self._row_texts(batch.to_pydict()) for text in row]

    def row_blocks(self, split: Split) -> Iterator[tuple[list[str], list[str]]]:
        """Blocks of rows: the group of each, as in `groups`, and its texts as one."""
        with pq.ParquetFile(self.path(split)) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE):
                columns = batch.to_pydict()
                yield self._groups(columns), [" ".join(row) for row in self._row_texts(columns)]

    def groups(self, split: Split) -> list[str]:
        """The group of each row: its `group`, or else its first text."""
        return self._groups(self.columns(split))

    def _groups(self, columns: Mapping[str, list[Any]]) -> list[str]:
        own = columns[COLUMNS[self.format][0]]
        return [group or text for group, text in zip(columns.get("group", own), own, strict=True)]

    def _pairs(self, columns: Mapping[str, list[Any]]) -> list[tuple[str, str]]:
        if self.format != "triples":
            return list(zip(columns["anchor"], columns["positive"], strict=True))
        return [
            (self.question(head, relation), tail)
            for head, relation, tail in zip(columns["head"], columns["relation"], columns["tail"], strict=True)
        ]

    def _row_texts(self, columns: Mapping[str, list[Any]]) -> Iterable[tuple[str, ...]]:
        if self.format == "triples":
            return self._pairs(columns)
        names = [*text_columns(self.format), *(name for name in MORE_NEGATIVES if name in columns)]
        return zip(*(columns[name] for name in names), strict=True)


def fill_template(template: str, head: str, relation: str) -> str:
    """Fill a template such as `{head} {relation}` with a triple's head and its relation's token."""
    return template.format(head=head, relation=relation_token(relation))


def read_datasets(folder: Path) -> list[AcceptedDataset]:
    """The datasets that `validate_data` accepted, in the order of `params.yaml`."""
    index = read_json(require_artifact(folder / "index.json"))
    return [
        AcceptedDataset(entry["name"], entry["format"], folder / entry["name"], entry.get("template", DEFAULT_TEMPLATE))
        for entry in index
    ]


def read_new_tokens(path: Path) -> list[NewToken]:
    """The accepted vocabulary, in the order of the raw file."""
    rows = pq.read_table(require_artifact(path)).to_pylist()
    return [NewToken(row["token"], row["kind"], row["description"]) for row in rows]


def read_contexts(path: Path) -> list[str]:
    """The accepted context sentences."""
    return cast(list[str], pq.read_table(require_artifact(path))["text"].to_pylist())


def read_general_texts(path: Path) -> list[str]:
    """The general texts that `train_adapter.retain` keeps near the base; empty if it is not set."""
    return cast(list[str], pq.read_table(require_artifact(path))["text"].to_pylist())


def read_retention(path: Path) -> tuple[list[str], list[str], list[float]]:
    """The accepted retention pairs: first sentences, second sentences, scores from 0 to 1."""
    columns = pq.read_table(require_artifact(path)).to_pydict()
    return columns["sentence1"], columns["sentence2"], columns["score"]


def training_texts(datasets: list[AcceptedDataset], contexts: list[str]) -> list[str]:
    """Every distinct text of the train splits and contexts, in order of first appearance."""
    texts: dict[str, None] = {}
    for dataset in datasets:
        if dataset.format == "triples":
            texts.update(dict.fromkeys(f"{question} {tail}" for question, tail in dataset.pairs("train")))
        else:
            texts.update(dict.fromkeys(dataset.texts("train")))
    texts.update(dict.fromkeys(contexts))
    return list(texts)
