"""The gain of an adapter that acts only on texts with a new token, on CHMO and the shipped example.

python -m benchmarks.gated [--on chmo|example] [--seeds 1 2 3] [--methods tokens gated ...] [--split validation]
    [--set epochs=2 ...] [--rows FOLDER]

`gated` trains new rows and LoRA; texts without a new token keep the base's embedding, in training and in use. The other
methods are those of benchmarks.chmo_training; `control` is LoRA without a new word. All share words, distilled rows,
pairs and epochs. With `gated` and `tokens` the vectors of texts without a new token stay valid. The second table splits
the queries by whether they and their answer hold a new token, since these cases mix the two paths. `example` uses the
held-out terms of the shipped example. `--rows` keeps the distilled rows in a folder for a second run.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks import chmo_training
from benchmarks.chmo import DEFAULT_DATA, load_chmo, load_sts, new_words, paired_interval
from benchmarks.robustness import copy_project
from benchmarks.row_bounds import run_here
from vocabgraft.config.params import load_params
from vocabgraft.config.training import TrainAdapterParams
from vocabgraft.data.accepted import AcceptedDataset, read_datasets
from vocabgraft.evaluation.retrieval import RetrievalSet, ranks, retrieval_set
from vocabgraft.models.base import load_model, locate_base, tokenizer_file
from vocabgraft.models.encode import encode_apart
from vocabgraft.models.resize import extended_copy
from vocabgraft.tokens.tokenizer import (
    extend_tokenizer,
    holds_new_token,
    load_raw_tokenizer,
    load_tokenizer,
    read_tokens,
)
from vocabgraft.training.adapters import adapter_off
from vocabgraft.training.embedding_cache import constant_texts
from vocabgraft.training.fit import Session, train_adapter

METHODS = ("tokens", "gated", "lora_and_tokens", "control")
KEEPS_INDEX = ("base", "tokens", "gated")
STAGES = ("validate_data", "extend_tokenizer", "resize_base")
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Held:
    """Held-out items: queries over documents, and pairs with a score; whether each text holds a new token."""

    retrieval: RetrievalSet
    sts: tuple[list[str], list[str], list[float]]
    queries: Array
    answers: Array
    documents: Array
    first: Array
    second: Array


@dataclass(frozen=True)
class Task:
    """The inputs of a method: the base, the resized base, the pairs, the ids of the new tokens."""

    base: Any
    resized: Any
    datasets: Sequence[AcceptedDataset]
    new_ids: Sequence[int]
    held: Held
    seed: int


@dataclass(frozen=True)
class Figures:
    """The metrics of one model: ranks of the answers, Spearman's rho, share of documents kept, seconds."""

    ranks: Array
    spearman: float
    valid: float
    seconds: float


def main() -> None:
    """Train every method with every seed and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder that holds chmo/ and stsb-dev/")
    parser.add_argument("--on", choices=("chmo", "example"), default="chmo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="of CHMO")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="other settings of train_adapter")
    parser.add_argument("--rows", type=Path, help="folder of the distilled rows")
    args = parser.parse_args()
    settings = {key: json.loads(value) for key, _, value in (text.partition("=") for text in args.set)}
    found: dict[str, list[Figures]] = {}
    tasks: list[Held] = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            task = (of_chmo if args.on == "chmo" else of_example)(args, seed, Path(scratch))
            tasks.append(task.held)
            for method in ("base", *args.methods):
                figures = measure(task, method, settings, args.on)
                found.setdefault(method, []).append(figures)
                print(f"seed {seed}, {method}: {told(figures, task.held)}", flush=True)
        # After each seed, since all of them take long.
        for shown in (table(found, tasks), crossed(found, tasks)):
            Console(width=150).print(shown)


def of_chmo(args: argparse.Namespace, seed: int, scratch: Path) -> Task:
    """Concepts held out; words of 2 or more subword tokens, rows distilled."""
    chmo, folder = load_chmo(args.data, seed), locate_base(chmo_training.BASE)
    base, tokenizer, raw = load_model(folder), load_tokenizer(folder), load_raw_tokenizer(tokenizer_file(folder))
    tokens = extend_tokenizer(tokenizer, raw, new_words(chmo, raw, least_pieces=2, least_uses=2), 64)
    ids = [token.id for token in tokens]
    kept = args.rows / f"chmo-{seed}.npy" if args.rows else None
    if kept and kept.is_file():
        rows = torch.from_numpy(np.load(kept))
    else:
        rows, _ = chmo_training.distilled(base, tokenizer, tokens, chmo, seed)
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.save(kept, rows.numpy())
    queries, answers = chmo.queries(chmo.test if args.split == "test" else chmo.validation)
    groups = [chmo.names[place] for place in answers]
    asked = RetrievalSet("chmo", queries, chmo.names, [[place] for place in answers], [[] for _ in queries], groups)
    held = held_of(tokenizer, ids, asked, load_sts(args.data))
    pairs = chmo_training.dataset(scratch, chmo.train)
    return Task(base, extended_copy(base, tokenizer, rows), [pairs], ids, held, seed)


def of_example(args: argparse.Namespace, seed: int, scratch: Path) -> Task:
    """The stages of dvc.yaml up to resize_base in a copy of the project; its held-out terms."""
    project = scratch / "project"
    copy_project(project)
    params = project / "params.yaml"
    params.write_text(params.read_text(encoding="utf-8").replace("seed: 17", f"seed: {seed}", 1), encoding="utf-8")
    commands = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    with contextlib.chdir(project):
        for stage in STAGES:
            run_here(commands[stage]["cmd"])
    resized = load_model(project / "data" / "resize_base")
    ids = [token.id for token in read_tokens(project / "data" / "extend_tokenizer" / "tokens.json")]
    datasets = read_datasets(project / "data" / "validate_data")
    terms = next(entry for entry in datasets if entry.name == "terms")
    held = held_of(resized.tokenizer, ids, retrieval_set(terms), load_sts(args.data))
    return Task(load_model(locate_base(chmo_training.BASE)), resized, datasets, ids, held, seed)


def held_of(
    tokenizer: Any, ids: Sequence[int], asked: RetrievalSet, sts: tuple[list[str], list[str], list[float]]
) -> Held:
    """Which texts hold a new token."""
    queries, documents, first, second = (
        holds_new_token(tokenizer, texts, ids) for texts in (asked.queries, asked.documents, *sts[:2])
    )
    answers = np.array([bool(documents[places].all()) for places in asked.relevant])
    return Held(asked, sts, queries, answers, documents, first, second)


def measure(task: Task, method: str, settings: dict[str, Any], on: str) -> Figures:
    """Train one method and evaluate its model."""
    if method == "base":
        return score(task, task.base, False, 1.0, 0.0)
    # A deep copy, since an adapter wraps modules in place.
    model = load_model(locate_base(chmo_training.BASE))
    if method != "control":
        model = extended_copy(model, task.resized.tokenizer, rows_of(task))
    params = params_of(method, settings, on)
    started = time.perf_counter()
    with gate() if method == "gated" else contextlib.nullcontext():
        train_adapter(model, task.datasets, task.new_ids, params, task.seed)
    seconds = time.perf_counter() - started
    valid = float(1 - task.held.documents.mean()) if method in KEEPS_INDEX else 0.0
    return score(task, model, method == "gated", valid, seconds)


def rows_of(task: Task) -> torch.Tensor:
    """(new tokens, width), after distillation."""
    weight: torch.Tensor = task.resized[0].auto_model.get_input_embeddings().weight.detach()
    return weight[list(task.new_ids)]


def params_of(method: str, settings: dict[str, Any], on: str) -> TrainAdapterParams:
    """The recipe of benchmarks.chmo_training, or the shipped one for the shipped example."""
    shown = {"gated": "lora_and_tokens"}.get(method, method)
    if on == "chmo":
        return chmo_training.params(shown, settings)
    shipped = load_params(chmo_training.ROOT / "params.yaml").train_adapter.model_dump()
    own = {"method": "lora" if method == "control" else shown}
    return TrainAdapterParams.model_validate(shipped | settings | own)


@contextlib.contextmanager
def gate() -> Iterator[None]:
    """Within the block, training embeds each text without a new token once, with the base only."""

    def constants(session: Session, checkpoints: Any) -> Any:
        return constant_texts(session.model, session.new_ids, while_computed=lambda: adapter_off(session.model))

    with mock.patch("vocabgraft.training.fit._constants", constants):
        yield


def score(task: Task, model: Any, gated: bool, valid: float, seconds: float) -> Figures:
    """Evaluate a model; with `gated`, the base embeds every text without a new token."""
    held = task.held

    def embed(texts: list[str], with_new: Array) -> Array:
        found = encode_apart(model, texts, with_new, 64)
        if gated:
            places = np.flatnonzero(~with_new)
            found[places] = encode_apart(task.base, [texts[place] for place in places], with_new[places], 64)
        return found

    asked = held.retrieval
    ranked = ranks(asked, embed(asked.queries, held.queries), embed(asked.documents, held.documents))
    similar = (embed(held.sts[0], held.first) * embed(held.sts[1], held.second)).sum(axis=1)
    return Figures(ranked, 100 * float(spearmanr(similar, held.sts[2]).statistic), valid, seconds)


def mrr(figures: Figures, chosen: Array) -> float:
    """The MRR of the chosen queries, in percent; NaN if none is chosen."""
    return 100 * float((1 / figures.ranks[chosen]).mean()) if chosen.any() else float("nan")


def told(figures: Figures, held: Held) -> str:
    """One line about a model."""
    return (
        f"MRR with a new word {mrr(figures, held.queries):.2f}, without {mrr(figures, ~held.queries):.2f}, "
        f"STS-B {figures.spearman:.2f}, {figures.seconds:.0f} s"
    )


def table(found: dict[str, list[Figures]], tasks: Sequence[Held]) -> Table:
    """One row per method: medians over the seeds; the gain's interval is paired over all queries with a new word."""
    beside = "tokens" if "tokens" in found else "base"
    shown = Table(title=f"{tasks[0].retrieval.name}, {len(tasks)} seeds: medians; gain over {beside}")
    for heading in (
        "",
        "new word: MRR",
        "Recall@10",
        "gain",
        "95 %",
        "no new word: MRR",
        "STS-B",
        "valid %",
        "seconds",
    ):
        shown.add_column(heading, justify="right" if heading else "left")
    for name, runs in found.items():
        gains = np.concatenate(
            [
                100 * (1 / run.ranks[held.queries] - 1 / other.ranks[held.queries])
                for run, other, held in zip(runs, found[beside], tasks, strict=True)
            ]
        )
        low, high = paired_interval(gains)
        cells = zip(runs, tasks, strict=True)
        medians = np.median(
            [
                (
                    mrr(run, held.queries),
                    100 * float((run.ranks[held.queries] <= 10).mean()),
                    mrr(run, ~held.queries),
                    run.spearman,
                    100 * run.valid,
                    run.seconds,
                )
                for run, held in cells
            ],
            axis=0,
        )
        first, second, *rest = (f"{value:.2f}" for value in medians)
        shown.add_row(name, first, second, f"{gains.mean():+.2f}", f"{low:+.2f} .. {high:+.2f}", *rest)
    return shown


def crossed(found: dict[str, list[Figures]], tasks: Sequence[Held]) -> Table:
    """MRR of the queries by whether they and their answer hold a new token."""
    cells = {
        f"{'new' if query else 'old'} -> {'new' if answer else 'old'}": [
            (held.queries == query) & (held.answers == answer) for held in tasks
        ]
        for query in (True, False)
        for answer in (True, False)
    }
    counts = {name: statistics.median(int(mask.sum()) for mask in masks) for name, masks in cells.items()}
    shown = Table(title="MRR by query -> answer, with or without a new token")
    shown.add_column("")
    for name, count in counts.items():
        shown.add_column(f"{name} ({count:.0f})", justify="right")
    for method, runs in found.items():
        values = [
            statistics.median(mrr(run, mask) for run, mask in zip(runs, masks, strict=True)) for masks in cells.values()
        ]
        shown.add_row(method, *(f"{value:.2f}" for value in values))
    return shown


if __name__ == "__main__":
    main()
