"""Resizing a generated sharded model, compared with copying its files: seconds and peak memory.

python -m benchmarks.surgery [--gigabytes 4] [--repeats 5]

Each measurement is a separate process that writes to an empty folder. The seconds are those of the call only: the
libraries are loaded before, as in a stage, which needs them for its tokenizer.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
# XLM-RoBERTa large, whose input embeddings are the largest among the usual bases.
VOCABULARY, WIDTH, HEADS, INNER = 250_002, 1_024, 16, 4_096
LAYER_BYTES = 4 * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER + 9 * WIDTH + INNER)
NEW = 1_000
TIME_GOAL, MEMORY_GOAL_MIB = 1.5, 400.0


def main() -> None:
    """Generate the model, measure alternately, and print the medians with the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="bytes of the model's weights / 1e9, from 1.1 on")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each kind, alternating")
    parser.add_argument("--measure", nargs=3, metavar=("WHAT", "SOURCE", "DESTINATION"), help=argparse.SUPPRESS)
    parser.add_argument("--generate", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        what, source, destination = args.measure
        print(json.dumps(_measure(what, Path(source), Path(destination))))
        return
    if args.generate:
        _generate(Path(args.generate), args.gigabytes)
        return
    with tempfile.TemporaryDirectory() as folder:
        model, written = Path(folder) / "model", Path(folder) / "written"
        # In a separate process: a child inherits its parent's peak memory.
        _run("--generate", str(model), "--gigabytes", str(args.gigabytes))
        seen: dict[str, list[dict[str, float]]] = {"copy": [], "surgery": []}
        for _ in range(args.repeats):
            for what, runs in seen.items():
                runs.append(_in_process(what, model, written))
        seen["artifact"] = [_in_process("artifact", model, written)]
        Console().print(_table(seen, _size(model)))


def _generate(folder: Path, gigabytes: float) -> None:
    """Save an XLM-RoBERTa with as many layers as fit, in shards of 1 GB, with at most one shard in memory."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModel, XLMRobertaConfig

    layers = max(1, round((gigabytes * 1e9 - VOCABULARY * WIDTH * 4) / LAYER_BYTES))
    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": INNER}
    config = XLMRobertaConfig(
        vocab_size=VOCABULARY, num_hidden_layers=layers, architectures=["XLMRobertaModel"], **sizes
    )
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AutoModel.from_config(config).state_dict().items()}
    weight_map: dict[str, str] = {}
    for number, names in enumerate(_shards(shapes)):
        file = f"model-{number:05}.safetensors"
        generator = torch.Generator().manual_seed(number)
        save_file(
            {name: torch.rand(shapes[name], generator=generator) for name in names}, folder / file, {"format": "pt"}
        )
        weight_map |= dict.fromkeys(names, file)
    total = sum(shape.numel() * 4 for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _shards(shapes: dict[str, Any]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if shards[-1] and size + shape.numel() * 4 > 1.1e9:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += shape.numel() * 4
    return shards


def _in_process(what: str, model: Path, destination: Path) -> dict[str, float]:
    # Pending writes of an earlier run must not reach the disk during this one.
    os.sync()
    seen: dict[str, float] = json.loads(_run("--measure", what, str(model), str(destination)))
    shutil.rmtree(destination)
    return seen


def _run(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.surgery", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def _measure(what: str, source: Path, destination: Path) -> dict[str, float]:
    """Seconds of one task in this process, and its peak memory in MiB."""
    return _measure_copy(source, destination) if what == "copy" else _measure_surgery(what, source, destination)


def _measure_copy(source: Path, destination: Path) -> dict[str, float]:
    destination.mkdir()
    started = time.perf_counter()
    for path in source.iterdir():
        shutil.copyfile(path, destination / path.name)
    return _figures(started)


def _measure_surgery(what: str, source: Path, destination: Path) -> dict[str, float]:
    import torch
    from transformers import XLMRobertaModel  # noqa: F401 # this import is the slow one

    from vocabgraft.model_folder.resize_files import resize_folder
    from vocabgraft.storage.artifacts import new_folder

    rows = torch.zeros(NEW, WIDTH)
    started = time.perf_counter()
    if what == "artifact":
        with new_folder(destination) as work:
            resize_folder(source, work, rows, VOCABULARY + NEW)
    else:
        destination.mkdir()
        resize_folder(source, destination, rows, VOCABULARY + NEW)
    return _figures(started)


def _figures(started: float) -> dict[str, float]:
    seconds = time.perf_counter() - started
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {"seconds": seconds, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}


def _table(seen: dict[str, list[dict[str, float]]], size: int) -> Table:
    table = Table(title=f"resizing a sharded model of {size / 1e9:.2f} GB, {os.cpu_count()} cores")
    for heading in ("what", "median", "fastest", "slowest", "goal", "reached"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    seconds = {what: [run["seconds"] for run in runs] for what, runs in seen.items()}
    memory = [run["mib"] for run in seen["surgery"]]
    embedding = VOCABULARY * WIDTH * 4 / 2**20
    ratios = [ours / copy for ours, copy in zip(seconds["surgery"], seconds["copy"], strict=True)]
    for name, figures, goal in (
        ("copying the files, s", seconds["copy"], None),
        ("resizing, s", seconds["surgery"], None),
        ("resizing / copying, alternating", ratios, TIME_GOAL),
        ("peak memory of resizing, MiB", memory, embedding + MEMORY_GOAL_MIB),
        ("resizing with the manifest's hashes, s", seconds["artifact"], None),
    ):
        median = statistics.median(figures)
        cells = [f"{figure:.2f}" for figure in (median, min(figures), max(figures))]
        reached = "" if goal is None else "yes" if median <= goal else "NO"
        table.add_row(name, *cells, "" if goal is None else f"{goal:.2f}", reached)
    return table


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


if __name__ == "__main__":
    main()
