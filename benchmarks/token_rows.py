"""Trainable token rows: PEFT's forward and backward compared with a lookup of the few rows, alternating, as ratios.

python -m benchmarks.token_rows [--rounds 9]

Every round measures each side once at each size, so that other load on the machine affects all of them; a ratio is the
median of the rounds' ratios. The plain lookup in the table is only the forward of the frozen matrix, without trainable
rows and backward: no implementation can avoid its extra cost with a larger matrix.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from peft import TrainableTokensConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import nn

from vocabgraft.token_embeddings.trainable import fast_peft_rows

# MiniLM's matrix, that of XLM-RoBERTa large, and the first one's width at the second one's vocabulary.
SMALL, LARGE, WIDE = (30_522, 384), (250_002, 384), (250_002, 1_024)
GOALS = {SMALL: 20, WIDE: 100}
VOCABULARIES_GOAL = 1.15
NEW, BATCH, LENGTH = 1_000, 64, 16
# Ids of several consecutive batches: the rows of a single batch would stay in the cache.
BATCHES = 16
# Exponent of the rank in the frequency of words in text; Zipf's own value.
EXPONENT = 1.0
DRAWS = {"text": f"as in text (rank ** -{EXPONENT:g})", "uniform": "uniformly"}
PASSES = {"peft": 2, "lookup": 48, "plain": 48}


class Embedder(nn.Module):
    """A model with only an embedding, in the form that PEFT needs."""

    def __init__(self, rows: int, width: int) -> None:
        """A matrix of shape (rows, width)."""
        super().__init__()
        self.embedding = nn.Embedding(rows, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of shape (*ids.shape, width)."""
        embedded: torch.Tensor = self.embedding(ids)
        return embedded


class Layer:
    """One size of the row layer with its batches."""

    def __init__(self, rows: int, width: int) -> None:
        """A matrix of shape (rows, width), of which the last NEW rows are trainable."""
        config = TrainableTokensConfig(token_indices=list(range(rows - NEW, rows)), target_modules=["embedding"])
        self.model = get_peft_model(Embedder(rows, width), config)
        self.matrix = self.model.base_model.model.embedding.base_layer.weight
        self.batches = {name: _ids(rows, name) for name in DRAWS}
        # The gradient that the layer above would pass back.
        self.gradient = torch.randn(BATCH, LENGTH, width)

    def seconds(self, side: str, draw: str) -> float:
        """The seconds of one pass of PEFT's layer, of the lookup or of the plain lookup, over batches of that draw."""
        if side == "plain":
            return _seconds(self._plain_pass, self.batches[draw], PASSES[side])
        if side == "peft":
            return _seconds(self._pass, self.batches[draw], PASSES[side])
        with fast_peft_rows(self.model):
            return _seconds(self._pass, self.batches[draw], PASSES[side])

    def _pass(self, ids: torch.Tensor) -> None:
        self.model.zero_grad(set_to_none=True)
        self.model(ids).backward(self.gradient)

    def _plain_pass(self, ids: torch.Tensor) -> None:
        with torch.no_grad():
            nn.functional.embedding(ids, self.matrix)


def main() -> None:
    """Measure all sizes alternately and print two tables with the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    layers = {size: Layer(*size) for size in (SMALL, LARGE, WIDE)}
    times = _measure(layers, args.rounds)
    console = Console(width=120)
    console.print(f"{NEW:,} new rows, {BATCH} x {LENGTH} ids, {args.rounds} rounds, threads: {torch.get_num_threads()}")
    console.print(_sizes(times))
    console.print(_vocabularies(times))


Times = dict[tuple[tuple[int, int], str, str], list[float]]


def _measure(layers: dict[tuple[int, int], Layer], rounds: int) -> Times:
    """The seconds of each round by size, draw and side."""
    times: Times = {}
    # A garbage collection during one side is not a cost of that side.
    gc.disable()
    for _ in range(rounds):
        for draw in DRAWS:
            # PEFT's side last: it evicts everything else from the cache.
            for side in ("lookup", "plain", "peft"):
                for size, layer in layers.items():
                    times.setdefault((size, draw, side), []).append(layer.seconds(side, draw))
    gc.enable()
    return times


def _sizes(times: Times) -> Table:
    table = Table(title="forward and backward of the row layer")
    for heading in ("matrix", "ids drawn", "PEFT, ms", "lookup, ms", "PEFT / lookup", "lowest to highest", "goal"):
        table.add_column(heading, justify="right")
    for draw, drawn in DRAWS.items():
        for size in (SMALL, WIDE, LARGE):
            peft, lookup = times[size, draw, "peft"], times[size, draw, "lookup"]
            ratios = _ratios(peft, lookup)
            table.add_row(
                f"{size[0]:,} x {size[1]:,}",
                drawn,
                f"{1e3 * statistics.median(peft):.1f}",
                f"{1e3 * statistics.median(lookup):.2f}",
                f"{statistics.median(ratios):.0f}",
                f"{min(ratios):.0f} to {max(ratios):.0f}",
                f"{GOALS[size]}" if size in GOALS else "",
            )
    return table


def _vocabularies(times: Times) -> Table:
    table = Table(title=f"width {SMALL[1]}: time at {LARGE[0]:,} rows / time at {SMALL[0]:,} rows")
    for heading in ("ids drawn", "lookup", "lowest to highest", "goal", "plain lookup of the frozen matrix, forward"):
        table.add_column(heading, justify="right")
    for draw, drawn in DRAWS.items():
        ratios = _ratios(times[LARGE, draw, "lookup"], times[SMALL, draw, "lookup"])
        plain = _ratios(times[LARGE, draw, "plain"], times[SMALL, draw, "plain"])
        table.add_row(
            drawn,
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{VOCABULARIES_GOAL}",
            f"{statistics.median(plain):.2f}",
        )
    return table


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(above, below, strict=True)]


def _ids(rows: int, draw: str) -> torch.Tensor:
    """Batches of ids, of shape (BATCHES, BATCH, LENGTH), with a new one at the start of each text."""
    generator = torch.Generator().manual_seed(0)
    shape = (BATCHES, BATCH, LENGTH)
    if draw == "uniform":
        ids = torch.randint(0, rows, shape, generator=generator)
    else:
        # Frequent tokens are spread over the matrix, the worse case for the cache.
        by_rank = torch.randperm(rows - NEW, generator=generator)
        weights = torch.arange(1, rows - NEW + 1, dtype=torch.float64) ** -EXPONENT
        drawn = torch.multinomial(weights, BATCHES * BATCH * LENGTH, replacement=True, generator=generator)
        ids = by_rank[drawn].view(shape)
    ids[..., 0] = torch.randint(rows - NEW, rows, shape[:2], generator=generator)
    return ids


def _seconds(one_pass: Callable[[torch.Tensor], None], batches: torch.Tensor, times: int) -> float:
    """The seconds of one pass, after one that does not count."""
    one_pass(batches[-1])
    started = time.perf_counter()
    for number in range(times):
        one_pass(batches[number % len(batches)])
    return (time.perf_counter() - started) / times


if __name__ == "__main__":
    main()
