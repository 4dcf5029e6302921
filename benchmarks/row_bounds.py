"""Methods that keep the embedding of a new token from becoming an attention sink, and their cost.

python -m benchmarks.row_bounds [--bounds none guard ...] [--seeds 1 2 3] [--on chmo|example] [--split validation]

`chmo` trains on the Chemical Methods Ontology as benchmarks.chmo_training does; `example` runs the stages of dvc.yaml
on the shipped example up to the evaluation. The bounds: `none`; `guard`, the shipped one; `no_radius`, the guard, but
rows may move any distance from their start; `half_radius`, half a row's length instead of three quarters; `still`, no
radius, and a row moves only in steps that read it; `smaller_steps`, a third of each step; `trust_region`, a radius of
half a row's length and nothing else; `penalty`, a gradient against activations above the usual ones at the word's
position, for 64 tokens per step. The table has the sinks after distillation and after training, the fidelity to
the base, the median distance that training moved a row (in lengths of the row), the MRR of queries with a new word, and
the seconds of both trainings.
"""

import argparse
import contextlib
import runpy
import shlex
import statistics
import sys
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

from benchmarks import chmo_training
from benchmarks.chmo import DEFAULT_DATA, load_chmo, load_sts, new_words
from benchmarks.robustness import BENEFIT, STAGES, copy_project, set_params
from vocabgraft.models.base import load_model, locate_base, tokenizer_file
from vocabgraft.models.resize import extended_copy
from vocabgraft.storage.artifacts import read_json
from vocabgraft.token_embeddings.sinks import ALONE_AND_IN_SENTENCE, RowGuard, SinkProbe, sink_limits
from vocabgraft.tokens.tokenizer import (
    added_tokens,
    extend_tokenizer,
    holds_new_token,
    load_raw_tokenizer,
    load_tokenizer,
    read_tokens,
)
from vocabgraft.training.fit import train_adapter

# A row that moves only in steps that read it takes a larger rate: with seed 1, 1e-2 gave 69.4, 3e-2 71.6, 6e-2 72.9.
RATE, RATES = 1e-2, {"still": 1e-1}
PLACES = ("vocabgraft.token_embeddings.distill.RowGuard", "vocabgraft.training.fit.RowGuard")


class Radius(RowGuard):
    """The guard with another radius in training; distillation has none."""

    RADIUS = float("inf")

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **{"most_moved": self.RADIUS} | options)


class HalfRadius(Radius):
    """Rows stay within half their length of their start."""

    RADIUS = 0.5


class Still(Radius):
    """A row moves only in steps whose batch contains its token; distillation is as shipped."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.still = "most_moved" not in options

    @torch.no_grad()
    def after_step(self) -> None:
        """Undo the step of rows without a gradient."""
        super().after_step()
        if self.still and self.rows.grad is not None:
            unread = (self.rows.grad == 0).all(dim=1)
            self.rows[unread] = self._before[unread]


class NoBound(Radius):
    """The optimizer's unchanged step."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.longest = float("inf")

    def look(self, optimizer: Any) -> None:
        """Do nothing."""

    def finish(self, optimizer: Any) -> None:
        """Do nothing."""


class SmallerSteps(NoBound):
    """A third of the optimizer's step."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.rates /= 3


class TrustRegion(NoBound):
    """Rows stay within half their own length of their start."""

    def before_step(self) -> None:
        """Remember nothing."""

    @torch.no_grad()
    def after_step(self) -> None:
        """Project the rows onto the region."""
        moved = self.rows - self.start
        most = 0.5 * self.start.norm(dim=1, keepdim=True)
        lengths = moved.norm(dim=1, keepdim=True).clamp(min=1e-12)
        self.rows.copy_(self.start + moved * (most / lengths).clamp(max=1))


class Penalty(NoBound):
    """A gradient against activations above those of the base's own words, for 64 tokens per step."""

    WEIGHT = 1.0

    def before_step(self) -> None:
        """Add the gradient of the mean excess of the ratio, squared."""
        super().before_step()
        count = len(self.often.batches)
        batch, positions = self.often.batches[self.steps % count], self.often.positions[self.steps % count]
        with torch.enable_grad():
            states = self.model[0].auto_model(**batch, output_hidden_states=True).hidden_states
            largest = torch.stack([state.float().abs().amax(dim=-1) for state in states]).amax(dim=0)
            at = torch.arange(len(positions))
            ratio = largest[at, positions] / largest[at, batch["attention_mask"].argmax(dim=1)].detach()
            loss = self.WEIGHT * (ratio - self.limits.usual).clamp(min=0).square().mean()
            if loss.requires_grad and float(loss.detach()) > 0:
                (gradient,) = torch.autograd.grad(loss, [self.rows])
                self.rows.grad = gradient if self.rows.grad is None else self.rows.grad + gradient
        self.steps += 1


BOUNDS: dict[str, type[RowGuard]] = {
    "none": NoBound,
    "guard": RowGuard,
    "no_radius": Radius,
    "half_radius": HalfRadius,
    "still": Still,
    "smaller_steps": SmallerSteps,
    "trust_region": TrustRegion,
    "penalty": Penalty,
}


@dataclass(frozen=True)
class Result:
    """The result of one bound with one seed."""

    distilled_sinks: int
    trained_sinks: int
    tokens: int
    fidelity: float
    moved: float
    mrr: float
    seconds: float


def main() -> None:
    """Run every bound with every seed, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder that holds chmo/ and stsb-dev/")
    parser.add_argument("--on", choices=("chmo", "example"), default="chmo")
    parser.add_argument("--bounds", nargs="+", choices=list(BOUNDS), default=list(BOUNDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--split", choices=("validation", "test"), default="validation", help="of CHMO")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    found: dict[str, list[Result]] = {}
    for bound in args.bounds:
        for seed in args.seeds:
            with bounded(bound):
                result = on_chmo(args, bound, seed) if args.on == "chmo" else on_example(seed, args.precision)
            found.setdefault(bound, []).append(result)
            print(f"{bound}, seed {seed}: {result}", flush=True)
    Console(width=150).print(table(found, args.on))


@contextlib.contextmanager
def bounded(bound: str) -> Iterator[None]:
    """Distill and train with this bound."""
    with contextlib.ExitStack() as patches:
        for place in PLACES:
            patches.enter_context(mock.patch(place, BOUNDS[bound]))
        yield


def on_chmo(args: argparse.Namespace, bound: str, seed: int) -> Result:
    """Distill and train on CHMO, with the budget of benchmarks.chmo_training."""
    chmo, folder = load_chmo(args.data, seed), locate_base(chmo_training.BASE)
    base, tokenizer, raw = load_model(folder), load_tokenizer(folder), load_raw_tokenizer(tokenizer_file(folder))
    tokens = extend_tokenizer(tokenizer, raw, new_words(chmo, raw, least_pieces=2, least_uses=2), 64)
    ids, texts = [token.id for token in tokens], [token.text for token in tokens]
    queries, answers = chmo.queries(chmo.test if args.split == "test" else chmo.validation)
    items = chmo_training.Items(queries, answers, chmo.names, load_sts(args.data))
    started = time.perf_counter()
    rows, report = chmo_training.distilled(base, tokenizer, tokens, chmo, seed, args.precision)
    model = extended_copy(base, tokenizer, rows)
    seconds = time.perf_counter() - started
    distilled = count_sinks(model, ids, texts)
    with tempfile.TemporaryDirectory() as scratch:
        pairs = chmo_training.dataset(Path(scratch), chmo.train)
        started = time.perf_counter()
        params = chmo_training.params(
            "tokens", {"precision": args.precision, "rows_learning_rate": RATES.get(bound, RATE)}
        )
        train_adapter(model, [pairs], ids, params, seed)
        seconds += time.perf_counter() - started
    held = holds_new_token(tokenizer, queries, ids)
    figures = chmo_training.score(model, items, held, 1.0, seconds)
    trained = count_sinks(model, ids, texts)
    fidelity = report["after"]["all"]["mean"]
    far = moved(rows, rows_of(model, ids))
    return Result(distilled, trained, len(ids), fidelity, far, chmo_training.mrr(figures, new_word=True), seconds)


def on_example(seed: int, precision: str) -> Result:
    """Run the stages on the shipped example in this process, so that the bound applies to them."""
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch) / "project"
        copy_project(project)
        set_params(project / "params.yaml", seed, precision)
        commands = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        seconds = 0.0
        with contextlib.chdir(project):
            for stage in STAGES:
                started = time.perf_counter()
                run_here(commands[stage]["cmd"])
                seconds += time.perf_counter() - started if stage in ("resize_base", "train_adapter") else 0.0
            return read_example(project / "data", seconds)


def run_here(command: str) -> None:
    """Run `python -m MODULE ARGUMENTS` in this process; an error at its end may be a failed check."""
    _, _, module, *given = shlex.split(command)
    with mock.patch.object(sys, "argv", [module, *given]), contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__", alter_sys=False)


def read_example(data: Path, seconds: float) -> Result:
    """Read the result of a run from its folders."""
    tokens = added_tokens(read_tokens(data / "extend_tokenizer" / "tokens.json"))
    ids, texts = [token.id for token in tokens], [token.text for token in tokens]
    models = [load_model(data / place) for place in ("resize_base", "merge_adapter")]
    sinks, far = [count_sinks(model, ids, texts) for model in models], moved(*(rows_of(model, ids) for model in models))
    items = read_json(data / "evaluate_model" / "comparison.json")["items"]
    benefit = next(item for item in items if (item["dataset"], item["subset"], item["metric"]) == BENEFIT)
    fidelity = read_json(data / "resize_base" / "report.json")["distillation"]["after"]["all"]["mean"]
    return Result(sinks[0], sinks[1], len(ids), fidelity, far, benefit["merged"], seconds)


def rows_of(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """The input embeddings of the ids: (ids, width)."""
    with torch.no_grad():
        found: torch.Tensor = model[0].auto_model.get_input_embeddings()(torch.tensor(list(ids)))
    return found


def moved(before: torch.Tensor, after: torch.Tensor) -> float:
    """The median distance between a row before and after, in lengths of the row."""
    return float(((after - before).norm(dim=1) / before.norm(dim=1)).median())


def count_sinks(model: Any, ids: Sequence[int], texts: Sequence[str]) -> int:
    """The number of tokens whose ratio, alone or in a sentence, is above the limit of the check `attention_sinks`."""
    ratios = SinkProbe.of(model, ids, texts, ALONE_AND_IN_SENTENCE).ratios(model)
    return int(np.sum(ratios > sink_limits(model, ids).sink))


def table(found: dict[str, list[Result]], on: str) -> Table:
    """One row per bound: sinks of each seed, medians of the rest."""
    seeds, tokens = max(map(len, found.values())), next(iter(found.values()))[0].tokens
    shown = Table(title=f"bounds of the rows on {on}: {tokens} tokens, {seeds} seeds; medians")
    for heading in ("bound", "sinks, distilled", "sinks, trained", "fidelity", "moved", "MRR, new word", "seconds"):
        shown.add_column(heading)
    for bound, results in found.items():
        distilled = ", ".join(str(entry.distilled_sinks) for entry in results)
        trained = ", ".join(str(entry.trained_sinks) for entry in results)
        fidelity, far, mrr, seconds = (
            statistics.median(getattr(entry, name) for entry in results)
            for name in ("fidelity", "moved", "mrr", "seconds")
        )
        shown.add_row(bound, distilled, trained, f"{fidelity:.4f}", f"{far:.2f}", f"{mrr:.2f}", f"{seconds:.0f}")
    return shown


if __name__ == "__main__":
    main()
