"""Trainable token rows: PEFT's forward and backward beside a lookup of the few rows, in turn, as a ratio.

python -m benchmarks.token_rows [--repeats 7]
"""

import argparse
import statistics
import time

import torch
from peft import TrainableTokensConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import nn

from vocabgraft.token_rows import fast_peft_rows

# MiniLM's matrix, that of XLM-RoBERTa large, and the first one's width at the second one's vocabulary.
SIZES = ((30_522, 384, 20.0), (250_002, 1_024, 100.0), (250_002, 384, None))
NEW, BATCH, LENGTH = 1_000, 64, 16
WIDTHS_GOAL = 1.15


class Embedder(nn.Module):
    """An embedding alone, as PEFT wants a model."""

    def __init__(self, rows: int, width: int) -> None:
        """A matrix of shape (rows, width)."""
        super().__init__()
        self.embedding = nn.Embedding(rows, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of shape (*ids.shape, width)."""
        embedded: torch.Tensor = self.embedding(ids)
        return embedded


def main() -> None:
    """Measure each size and print one table beside the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    table = Table(title=f"forward and backward of the row layer, {NEW:,} new rows, {BATCH} x {LENGTH} ids, medians")
    for heading in ("matrix", "PEFT, ms", "lookup, ms", "ratio", "goal"):
        table.add_column(heading, justify="right")
    lookups = {}
    for rows, width, goal in SIZES:
        peft, lookup = _measure(rows, width, args.repeats)
        lookups[rows, width] = lookup
        shown = f"{goal:.0f}" if goal else ""
        table.add_row(
            f"{rows:,} x {width:,}", f"{1e3 * peft:.1f}", f"{1e3 * lookup:.2f}", f"{peft / lookup:.0f}", shown
        )
    console = Console()
    console.print(table)
    ratio = lookups[250_002, 384] / lookups[30_522, 384]
    console.print(f"width 384 at 250,002 rows / at 30,522: {ratio:.2f} (goal {WIDTHS_GOAL})")


def _measure(rows: int, width: int, repeats: int) -> tuple[float, float]:
    model = Embedder(rows, width)
    config = TrainableTokensConfig(token_indices=list(range(rows - NEW, rows)), target_modules=["embedding"])
    wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, rows, (BATCH, LENGTH), generator=generator)
    ids[:, 0] = torch.randint(rows - NEW, rows, (BATCH,), generator=generator)
    seen: dict[str, list[float]] = {"peft": [], "lookup": []}
    for _ in range(repeats):
        seen["peft"].append(_seconds(wrapped, ids, 2))
        with fast_peft_rows(wrapped):
            seen["lookup"].append(_seconds(wrapped, ids, 50))
    return statistics.median(seen["peft"]), statistics.median(seen["lookup"])


def _seconds(model: nn.Module, ids: torch.Tensor, times: int) -> float:
    """Of one pass, after one that is not counted."""
    model(ids).sum().backward()
    started = time.perf_counter()
    for _ in range(times):
        model.zero_grad(set_to_none=True)
        model(ids).sum().backward()
    return (time.perf_counter() - started) / times


if __name__ == "__main__":
    main()
