"""Reading what `validate_data` accepted."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow.parquet as pq

from vocabgraft.artifacts import read_json, require_artifact
from vocabgraft.params import Format
from vocabgraft.splits import Split
from vocabgraft.vocabulary import NewToken, relation_token


@dataclass(frozen=True)
class AcceptedDataset:
    """One dataset's name, format and folder of Parquet splits."""

    name: str
    format: Format
    folder: Path

    def path(self, split: Split) -> Path:
        """The Parquet file of a split."""
        return require_artifact(self.folder / f"{split}.parquet")

    def rows(self, split: Split) -> int:
        """How many rows a split has."""
        return int(pq.read_metadata(self.path(split)).num_rows)

    def columns(self, split: Split) -> dict[str, list[str]]:
        """The columns of a split as lists of text."""
        return cast(dict[str, list[str]], pq.read_table(self.path(split)).to_pydict())

    def pairs(self, split: Split) -> list[tuple[str, str]]:
        """Anchor and positive of each row; of a triple, `head relation-token` and `tail`."""
        columns = self.columns(split)
        if self.format == "pairs":
            return list(zip(columns["anchor"], columns["positive"], strict=True))
        return [
            (f"{head} {relation_token(relation)}", tail)
            for head, relation, tail in zip(columns["head"], columns["relation"], columns["tail"], strict=True)
        ]

    def groups(self, split: Split) -> list[str]:
        """The group of each row: that of the column `group` of pairs where it has one, otherwise the anchor or head."""
        columns = self.columns(split)
        own = columns["anchor" if self.format == "pairs" else "head"]
        return [group or text for group, text in zip(columns.get("group", own), own, strict=True)]


def read_datasets(folder: Path) -> list[AcceptedDataset]:
    """The datasets that `validate_data` accepted, in the order of `params.yaml`."""
    index = read_json(require_artifact(folder / "index.json"))
    return [AcceptedDataset(entry["name"], entry["format"], folder / entry["name"]) for entry in index]


def read_new_tokens(path: Path) -> list[NewToken]:
    """The accepted vocabulary, in the order of the raw file."""
    rows = pq.read_table(require_artifact(path)).to_pylist()
    return [NewToken(row["token"], row["kind"], row["description"]) for row in rows]


def read_contexts(path: Path) -> list[str]:
    """The accepted context sentences."""
    return cast(list[str], pq.read_table(require_artifact(path))["text"].to_pylist())


def read_retention(path: Path) -> tuple[list[str], list[str], list[float]]:
    """The accepted retention pairs: first sentences, second sentences, scores from 0 to 1."""
    columns = pq.read_table(require_artifact(path)).to_pydict()
    return columns["sentence1"], columns["sentence2"], columns["score"]


def training_texts(datasets: list[AcceptedDataset], contexts: list[str]) -> list[str]:
    """Every distinct text of the train splits and contexts, in order of first appearance."""
    texts: dict[str, None] = {}
    for dataset in datasets:
        for anchor, positive in dataset.pairs("train"):
            pair = (anchor, positive) if dataset.format == "pairs" else (f"{anchor} {positive}",)
            texts.update(dict.fromkeys(pair))
    texts.update(dict.fromkeys(contexts))
    return list(texts)
