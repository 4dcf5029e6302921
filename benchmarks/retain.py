"""Gain lost and forgetting avoided by `train_adapter.retain`: the frontier over its weight, on CHMO.

python -m benchmarks.retain [--method lora_and_tokens] [--weights 0 1 10 100] [--seed 1] [--set epochs=2 ...]

The general texts are the sentences of the general pairs that come with the package; none of them is in STS-B dev, on
which forgetting is measured: Spearman's rho, the mean cosine of its sentences to the base's embeddings, and the share
of each sentence's 10 nearest neighbors that the base has too. Weight 0 is training without `retain`.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from benchmarks import chmo_training
from benchmarks.chmo import DEFAULT_DATA
from benchmarks.gated import Task, mrr, of_chmo, rows_of, score
from vocabgraft.data.texts import GENERAL_PAIRS
from vocabgraft.models.base import load_model, locate_base
from vocabgraft.models.encode import encode
from vocabgraft.models.resize import extended_copy
from vocabgraft.training.fit import train_adapter

NEIGHBORS = 10
Array = np.ndarray[Any, np.dtype[Any]]


def main() -> None:
    """Train with each weight and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder that holds chmo/ and stsb-dev/")
    parser.add_argument("--method", choices=("lora", "lora_and_tokens", "full"), default="lora_and_tokens")
    parser.add_argument("--weights", type=float, nargs="+", default=[0, 1, 10, 100])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="other settings of train_adapter")
    parser.add_argument("--rows", type=Path, help="folder of the distilled rows")
    args = parser.parse_args()
    settings = {key: json.loads(value) for key, _, value in (text.partition("=") for text in args.set)}
    shown = Table(title=f"retain with {args.method}, CHMO, seed {args.seed}")
    for heading in ("weight", "new word: MRR", "no new word: MRR", "STS-B", "cosine to base", "neighbors %", "seconds"):
        shown.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as scratch:
        task = of_chmo(args, args.seed, Path(scratch))
        sentences = list(dict.fromkeys([*task.held.sts[0], *task.held.sts[1]]))
        before = unit(encode(task.base, sentences, 64))
        for weight in (None, *args.weights):
            cells = measure(task, args.method, weight, settings, sentences, before)
            shown.add_row(*cells)
            print(" | ".join(cells), flush=True)
    Console(width=150).print(shown)


def measure(
    task: Task, method: str, weight: float | None, settings: dict[str, Any], sentences: list[str], before: Array
) -> list[str]:
    """A row of the table: training with a weight; without one, the base."""
    model, seconds = task.base, 0.0
    if weight is not None:
        model = extended_copy(load_model(locate_base(chmo_training.BASE)), task.resized.tokenizer, rows_of(task))
        retain = {"retain": {"weight": weight}} if weight else {}
        started = time.perf_counter()
        params = chmo_training.params(method, settings | retain)
        train_adapter(model, task.datasets, task.new_ids, params, task.seed, general_texts=general_texts())
        seconds = time.perf_counter() - started
    figures = score(task, model, False, 0.0, seconds)
    after = unit(encode(model, sentences, 64))
    return [
        "base" if weight is None else f"{weight:g}",
        f"{mrr(figures, task.held.queries):.2f}",
        f"{mrr(figures, ~task.held.queries):.2f}",
        f"{figures.spearman:.2f}",
        f"{float((before * after).sum(axis=1).mean()):.4f}",
        f"{100 * neighbors_kept(before, after):.1f}",
        f"{seconds:.0f}",
    ]


def general_texts() -> list[str]:
    """The sentences of the package's general pairs."""
    pairs = pd.read_csv(GENERAL_PAIRS)
    return list(dict.fromkeys([*pairs["sentence1"], *pairs["sentence2"]]))


def unit(embeddings: Array) -> Array:
    """The embeddings scaled to length 1."""
    found: Array = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return found


def neighbors_kept(before: Array, after: Array) -> float:
    """Mean share of each text's nearest neighbors that both models have."""
    near = [_nearest(embeddings) for embeddings in (before, after)]
    return float(np.mean([len(set(old) & set(new)) / NEIGHBORS for old, new in zip(*near, strict=True)]))


def _nearest(embeddings: Array) -> list[list[int]]:
    scores = embeddings @ embeddings.T
    np.fill_diagonal(scores, -np.inf)
    found: list[list[int]] = np.argpartition(-scores, NEIGHBORS, axis=1)[:, :NEIGHBORS].tolist()
    return found


if __name__ == "__main__":
    main()
