"""Speed and memory of the planner on a generated corpus, through its command line.

python -m benchmarks.planner [--megabytes 200]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from flows.engine.stage_run import environment

SPEED_GOAL, MEMORY_GOAL = 5.0, 1000.0
VOCABULARY = 500_000
# A million words of this corpus have about 91,000 distinct ones; the Brown corpus of English, of that size, 50,000.
MANDELBROT = (1.2, 2.7)
WORDS_AT_A_TIME = 1_000_000
WORDS_A_LINE = 20


@dataclass(frozen=True)
class Measured:
    """One run: wall-clock seconds, CPU seconds of all its processes, and their largest total memory."""

    seconds: float
    cpu_seconds: float
    peak_megabytes: float


def main() -> None:
    """Measure one process, all cores, and one process with fewer counters than words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=200, help="size of the generated corpus (default: 200)")
    megabytes = parser.parse_args().megabytes
    cores = os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.txt"
        generate(corpus, megabytes * 1_000_000)
        size = corpus.stat().st_size / 1e6
        runs = {
            "1 process": _measure(corpus, Path(folder) / "one", 1),
            f"{cores} processes": _measure(corpus, Path(folder) / "all", cores),
            "1 process, 100,000 counters": _measure(corpus, Path(folder) / "few", 1, "--counters", "100000"),
        }
    table = Table(title=f"planner, {size:.0f} MB of text, {VOCABULARY:,} different words, {cores} cores")
    for heading in ("what", "figure", "goal", "reached"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for name, run in runs.items():
        speed, speed_cpu = size / run.seconds, size / run.cpu_seconds
        table.add_row(f"{name}: MB/s", f"{speed:.1f}", "", "")
        table.add_row(
            f"{name}: MB per CPU second", f"{speed_cpu:.1f}", f"{SPEED_GOAL:.0f}", _reached(speed_cpu > SPEED_GOAL)
        )
        peak, goal = f"{run.peak_megabytes:.0f}", f"{MEMORY_GOAL:.0f}"
        table.add_row(f"{name}: peak MB, all processes", peak, goal, _reached(run.peak_megabytes < MEMORY_GOAL))
    Console().print(table)


def generate(path: Path, size: int, seed: int = 17) -> None:
    """Write about `size` bytes of text whose word frequencies follow Zipf's law with Mandelbrot's extension."""
    generator = np.random.default_rng(seed)
    words = np.array(_words(generator), dtype=object)
    ranks = 1 / (np.arange(1, len(words) + 1) + MANDELBROT[1]) ** MANDELBROT[0]
    cumulative = np.cumsum(ranks / ranks.sum())
    with path.open("w", encoding="utf-8") as stream:
        while stream.tell() < size:
            # Rounding may keep the last sum below 1.
            drawn = np.minimum(np.searchsorted(cumulative, generator.random(WORDS_AT_A_TIME)), len(words) - 1)
            chosen = words[drawn].reshape(-1, WORDS_A_LINE)
            stream.writelines(" ".join(line).capitalize() + ".\n" for line in chosen)


def _words(generator: np.random.Generator) -> list[str]:
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")]
    drawn = generator.integers(0, len(syllables), (VOCABULARY * 2, 4))
    lengths = generator.integers(1, 5, VOCABULARY * 2)
    found = dict.fromkeys("".join(syllables[i] for i in row[:n]) for row, n in zip(drawn, lengths, strict=True))
    # The most frequent words of a language are short, and others sometimes end in a comma.
    ordered = sorted(list(found)[:VOCABULARY], key=len)
    return [word if i % 11 else f"{word}," for i, word in enumerate(ordered)]


def _measure(corpus: Path, out: Path, processes: int, *options: str) -> Measured:
    command = [sys.executable, "-m", "flows.cli", "vocab", "plan", str(corpus), "--processes", str(processes)]
    log = out.with_suffix(".log")
    peak = [0.0]
    before = os.times()
    started = time.perf_counter()
    with log.open("w") as stream:
        running = subprocess.Popen(
            [*command, *options, "--out", str(out)], env=environment(), stdout=stream, stderr=stream
        )
        watcher = threading.Thread(target=_watch, args=(running, peak))
        watcher.start()
        code = running.wait()
        watcher.join()
    seconds = time.perf_counter() - started
    if code != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    after = os.times()
    cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return Measured(seconds, cpu_seconds, peak[0])


def _watch(running: "subprocess.Popen[bytes]", peak: list[float]) -> None:
    """Record the largest total resident memory of a process and its children, in MB, in `peak`."""
    while running.poll() is None:
        peak[0] = max(peak[0], _resident(running.pid) / 1e6)
        time.sleep(0.05)


def _resident(pid: int) -> int:
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        return sum(member.memory_info().rss for member in family)
    except psutil.NoSuchProcess:
        return 0


def _reached(holds: bool) -> str:
    return "yes" if holds else "NO"


if __name__ == "__main__":
    main()
