"""Whether the shipped example passes on other CPUs, with other seeds, threads and precisions.

python -m benchmarks.robustness [--seeds 17 18 19 20] [--variants float32 "one thread"] [--jobs 1] [--json FILE]

Each run is the chain of dvc.yaml up to the checks and the evaluation, in a copy of the project. The variants are
float32 and bfloat16 with the threads that torch chooses, float32 with one thread, and float32 without AVX512 and
without AVX2 (`ATEN_CPU_CAPABILITY` and `DNNL_MAX_CPU_ISA` imitate such CPUs). The table has each run's verdict, the
check nearest to its limit, the rows that were set back, and the gain with its interval.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from vocabgraft.storage.artifacts import read_json, write_json

ROOT = Path(__file__).parent.parent
STAGES = (
    "validate_data",
    "extend_tokenizer",
    "resize_base",
    "train_adapter",
    "merge_adapter",
    "check_consistency",
    "train_control",
    "evaluate_model",
)
BENEFIT = ("terms", "new_word", "mrr")


@dataclass(frozen=True)
class Variant:
    """A machine to imitate: the precision of training, and what the environment says to torch."""

    name: str
    precision: str
    environment: Mapping[str, str]


VARIANTS = (
    Variant("float32", "float32", {}),
    Variant("bfloat16", "bfloat16", {}),
    Variant("one thread", "float32", {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}),
    Variant("avx2", "float32", {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2"}),
    Variant("no avx", "float32", {"ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41"}),
)


@dataclass(frozen=True)
class Run:
    """What one run gave.

    Attributes:
        nearest: the check with the largest share of its limit, and that share; 1 is the limit.
        sinks: the largest ratio of hidden activations of a new token to the first token's.
    """

    seed: int
    variant: str
    verdict: str
    nearest: str
    share: float
    sinks: float
    set_back: int
    gain: float
    low: float
    high: float


def main() -> None:
    """Run all, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19, 20])
    parser.add_argument("--variants", nargs="+", choices=[variant.name for variant in VARIANTS], default=None)
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    args = parser.parse_args()
    chosen = [variant for variant in VARIANTS if args.variants is None or variant.name in args.variants]
    points = [(seed, variant) for variant in chosen for seed in args.seeds]
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(pool.map(lambda point: _told(run(*point)), points))
    if args.json:
        write_json(args.json, [asdict(entry) for entry in runs])
    Console(width=150).print(table(runs))
    sys.exit(any(entry.verdict != "passed" for entry in runs))


def run(seed: int, variant: Variant) -> Run:
    """Run the chain in a copy of the project."""
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch) / "project"
        _copy(project)
        _set(project / "params.yaml", seed, variant.precision)
        commands = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        environment = {**os.environ, **variant.environment, "PATH": path, "PYTHONPATH": str(project)}
        for stage in STAGES:
            ended = subprocess.run(
                commands[stage]["cmd"],
                shell=True,
                check=False,
                cwd=project,
                env=environment,
                capture_output=True,
                text=True,
            )
            if ended.returncode and stage != "check_consistency":
                raise SystemExit(f"seed {seed}, {variant.name}: {stage} failed:\n{ended.stderr[-2000:]}")
        return read_run(project / "data", seed, variant.name)


def read_run(data: Path, seed: int, variant: str) -> Run:
    """What the folders of a run say."""
    checks = read_json(data / "check_consistency" / "checks.json")
    judged = {check["name"]: share_of_limit(check) for check in checks["checks"]}
    shares = {name: share for name, share in judged.items() if share is not None}
    nearest = max(shares, key=lambda name: shares[name])
    failed = [check["name"] for check in checks["checks"] if check["verdict"] == "failed"]
    items = read_json(data / "evaluate_model" / "comparison.json")["items"]
    gain = next(item for item in items if (item["dataset"], item["subset"], item["metric"]) == BENEFIT)
    reports = [read_json(data / stage / "report.json") for stage in ("resize_base", "train_adapter")]
    set_back = {*reports[0]["distillation"]["set_back"], *reports[1]["set_back"]}
    sinks = next(check["figure"] for check in checks["checks"] if check["name"] == "attention_sinks")
    return Run(
        seed,
        variant,
        f"failed: {', '.join(failed)}" if failed else "passed",
        nearest,
        round(shares[nearest], 3),
        round(sinks, 3),
        len(set_back),
        *(round(gain[name], 2) for name in ("gain", "low", "high")),
    )


def share_of_limit(check: Mapping[str, Any]) -> float | None:
    """A check's figure as a share of its limit; None where it has no figure, or no limit that is a share of one."""
    kind, _, number = check["limit"].rpartition(" ")
    if check["figure"] is None or check["verdict"] not in ("passed", "failed") or not kind:
        return None
    figure, limit = check["figure"], float(number)
    if kind == "at most":
        return figure / limit if limit > 0 else float(figure > limit)
    # A least value above 0 is met by a larger one; below 0 there is no share of it.
    return limit / figure if limit > 0 and figure > 0 else None


def table(runs: Sequence[Run]) -> Table:
    """A row a run."""
    found = Table(title="the shipped example on other machines")
    for heading in (
        "seed",
        "variant",
        "verdict",
        "nearest to its limit",
        "share",
        "sink ratio",
        "set back",
        "gain, 95 %",
    ):
        found.add_column(heading)
    for entry in runs:
        interval = f"{entry.gain:+.2f} ({entry.low:+.2f} .. {entry.high:+.2f})"
        cells = (entry.seed, entry.variant, entry.verdict, entry.nearest, entry.share, entry.sinks, entry.set_back)
        found.add_row(*map(str, cells), interval)
    return found


def _told(found: Run) -> Run:
    print(json.dumps(asdict(found)), flush=True)
    return found


def _copy(project: Path) -> None:
    """The tracked files, as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, project / name)


def _set(path: Path, seed: int, precision: str) -> None:
    from ruamel.yaml import YAML

    loader = YAML()
    params = loader.load(path)
    params["seed"] = seed
    params["resize_base"]["distillation"]["precision"] = precision
    params["train_adapter"]["precision"] = precision
    with path.open("w", encoding="utf-8") as stream:
        loader.dump(params, stream)


if __name__ == "__main__":
    main()
