"""Forms batches: without shared texts, by label, by length, and split between processes."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.sampler import (
    DefaultBatchSampler,
    GroupByLabelBatchSampler,
    NoDuplicatesBatchSampler,
)

# Rows are sorted within blocks of this many batches, so a batch is still a random sample of similar lengths.
STRETCH = 50
ROWS_READ = 10_000
TRIPLE = {"head", "relation", "tail"}


class LengthGroupedBatchSampler(DefaultBatchSampler):  # type: ignore[misc]
    """Batches of rows of similar length, in random order; with `apart`, no two rows of a batch share a text.

    A batch is padded to its longest text, so mixed lengths would mostly compute padding. The length of a row is that of
    its longest text in characters.
    """

    def __init__(self, dataset: Any, batch_size: int, apart: bool = True, **options: Any) -> None:
        """Take the arguments of sentence-transformers' samplers."""
        super().__init__(dataset, batch_size=batch_size, **options)
        self.apart = apart
        labels = set(self.valid_label_columns or ())
        self.columns = [
            name
            for name, feature in dataset.features.items()
            if name not in labels and getattr(feature, "dtype", None) in ("string", "large_string")
        ]
        self.dataset = dataset
        self.lengths = self._lengths()

    def __len__(self) -> int:
        """The number of full batches; rows that share texts can add a few."""
        rows = len(self.lengths)
        full: int = rows // self.batch_size
        return full if self.drop_last or rows % self.batch_size == 0 else full + 1

    def __iter__(self) -> Iterator[list[int]]:
        """Row indices, batch by batch."""
        if self.generator and self.seed is not None:
            self.generator.manual_seed(self.seed + self.epoch)
        batches = list(self._batches(self._order()))
        for place in torch.randperm(len(batches), generator=self.generator).tolist():
            yield batches[place]

    def _lengths(self) -> "np.ndarray[Any, Any]":
        found = []
        for start in range(0, len(self.dataset), ROWS_READ):
            rows = self.dataset[start : start + ROWS_READ]
            found.append(np.max([[len(text) for text in rows[name]] for name in self.columns], axis=0))
        return np.concatenate(found)

    def _order(self) -> "np.ndarray[Any, Any]":
        shuffled = torch.randperm(len(self.lengths), generator=self.generator).numpy()
        stretch = STRETCH * self.batch_size
        parts = [shuffled[start : start + stretch] for start in range(0, len(shuffled), stretch)]
        return np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in parts])

    def _batches(self, order: "np.ndarray[Any, Any]") -> Iterator[list[int]]:
        """Rows in order; a row that shares a text with its batch waits for the next one."""
        waiting: deque[int] = deque()
        rest = iter(order.tolist())
        while True:
            batch: list[int] = []
            seen: set[str] = set()
            again: deque[int] = deque()
            while len(batch) < self.batch_size:
                row = waiting.popleft() if waiting else next(rest, None)
                if row is None:
                    break
                texts = self._texts(row)
                if seen.isdisjoint(texts):
                    batch.append(row)
                    seen |= texts
                else:
                    again.append(row)
            waiting = again + waiting
            if not batch:
                return
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch

    def _texts(self, row: int) -> set[str]:
        if not self.apart:
            return set()
        values = self.dataset[row]
        return {values[name] for name in self.columns}


class SharesOfBatches:
    """One process's share of every batch: all processes see the same batches, and their shares have equal length.

    It has no `batch_size`: accelerate would treat the last shares as padded and leave some losses out of the mean.
    """

    def __init__(self, batches: Any, rank: int, world: int) -> None:
        """Take a batch sampler."""
        self.batches, self.rank, self.world = batches, rank, world

    def __len__(self) -> int:
        """The number of batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """The share of each batch; surplus rows are left out, and fewer rows than processes are repeated."""
        for batch in self.batches:
            rows = batch if len(batch) >= self.world else (list(batch) * self.world)[: self.world]
            share = len(rows) // self.world
            yield list(rows[self.rank * share : (self.rank + 1) * share])

    def set_epoch(self, epoch: int) -> None:
        """Shuffle differently in each epoch."""
        self.batches.set_epoch(epoch)


class RandomBatches(DefaultBatchSampler):  # type: ignore[misc]
    """Batches in random order, stored in 4 bytes per row; torch's own sampler makes a list with 40 bytes per row."""

    def __iter__(self) -> Iterator[list[int]]:
        """Row indices, batch by batch."""
        if self.generator is not None and self.seed is not None:
            self.generator.manual_seed(self.seed + self.epoch)
        rows = len(self.sampler)
        number = torch.int32 if rows <= torch.iinfo(torch.int32).max else torch.int64
        order = torch.randperm(rows, generator=self.generator, dtype=number)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield order[start : start + self.batch_size].tolist()


def batches_of(dataset: Any, batch_size: int, by_length: bool = False, **options: Any) -> Any:
    """The batch sampler for a dataset's columns.

    A batch of labeled texts has several of each label. Triples are drawn at random, since their losses know the right
    answers, and a batch has many rows of one relation. In all other batches no two rows share a text: otherwise the
    positive of one row would count as a negative of another.
    """
    kinds = dataset.features
    labelled = {"text", "label"} <= set(kinds) and str(getattr(kinds["label"], "dtype", "")).startswith("int")
    if labelled and batch_size >= 4 and batch_size % 2 == 0 and _has_two_groups(dataset["label"]):
        return GroupByLabelBatchSampler(dataset, batch_size=batch_size, **options)
    triples = set(kinds) >= TRIPLE
    if by_length:
        return LengthGroupedBatchSampler(dataset, batch_size=batch_size, apart=not triples, **options)
    if triples:
        return RandomBatches(dataset, batch_size=batch_size, **options)
    return NoDuplicatesBatchSampler(dataset, batch_size=batch_size, **options)


def _has_two_groups(labels: Sequence[int]) -> bool:
    counts: dict[int, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    return sum(count > 1 for count in counts.values()) > 1
