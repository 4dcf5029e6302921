"""Seconds of the whole chain on the shipped example, in a fresh clone of the committed project.

python -m benchmarks.whole_chain [--repeats 5]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows.engine.stage_run import environment

ROOT = Path(__file__).parent.parent
FIRST_RUN_GOAL, IDLE_REPRO_GOAL, IDLE_RUN_GOAL = 240.0, 2.0, 25.0


def main() -> None:
    """Measure the first run, its stages, and the two kinds of runs with nothing to do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="runs with nothing to do; the median is shown")
    repeats = parser.parse_args().repeats
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        first = _seconds([sys.executable, "-m", "flows.build_model"], clone)
        console.print(_stage_table(clone))
        idle_repro = [_seconds([sys.executable, "-m", "dvc", "repro"], clone) for _ in range(repeats)]
        idle_run = [_seconds([sys.executable, "-m", "flows.build_model"], clone) for _ in range(repeats)]
    table = Table(title=f"whole runs, {os.cpu_count()} cores, seconds")
    for heading in ("what", "median", "fastest", "slowest", "goal", "reached"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for name, seconds, goal in (
        ("make run, first", [first], FIRST_RUN_GOAL),
        ("dvc repro, nothing to do", idle_repro, IDLE_REPRO_GOAL),
        ("make run, nothing to do", idle_run, IDLE_RUN_GOAL),
    ):
        median = statistics.median(seconds)
        cells = [f"{figure:.1f}" for figure in (median, min(seconds), max(seconds), goal)]
        table.add_row(name, *cells, "yes" if median < goal else "NO")
    console.print(table)


def _seconds(command: list[str], folder: Path) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return time.perf_counter() - started


def _stage_table(clone: Path) -> Table:
    table = Table(title="stages of the first run, seconds")
    for heading in ("stage", "imports", "work"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for path in sorted((clone / "reports" / "speed").glob("*.json")):
        seconds = json.loads(path.read_text(encoding="utf-8"))
        table.add_row(path.stem, f"{seconds['imports']:.1f}", f"{seconds['work']:.1f}")
    return table


if __name__ == "__main__":
    main()
