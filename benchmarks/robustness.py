"""Whether the shipped example passes on other CPUs, and with other seeds, threads and precisions.

python -m benchmarks.robustness [--seeds 17 18 19 20 21] [--variants float32 bfloat16] [--jobs 1] [--json FILE]

Each run is the chain of dvc.yaml up to the checks and the evaluation, in a copy of the project. The variants are
float32 and bfloat16 with torch's default threads, float32 with one thread on a CPU with only AVX2, and float32 on a CPU
without AVX (`ATEN_CPU_CAPABILITY` and `DNNL_MAX_CPU_ISA` imitate such CPUs). The first table has each run's verdict,
the rows that were reset, the gain with its interval, and the time; the second has each check's distance to its limit,
the worst of all runs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
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
TRAINS = ("resize_base", "train_adapter")
CHANCE_RANK = 0.5
BENEFIT = ("terms", "new_word", "mrr")


@dataclass(frozen=True)
class Variant:
    """A machine to imitate: the precision of training, and environment variables for torch."""

    name: str
    precision: str
    environment: Mapping[str, str]


ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
VARIANTS = (
    Variant("float32", "float32", {}),
    Variant("bfloat16", "bfloat16", {}),
    Variant("avx2, one thread", "float32", {"ATEN_CPU_CAPABILITY": "avx2", "DNNL_MAX_CPU_ISA": "AVX2"} | ONE_THREAD),
    Variant("no avx", "float32", {"ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41"}),
)


@dataclass(frozen=True)
class Run:
    """The result of one run.

    Attributes:
        shares: by check, its value as a share of its limit, see `share_of_limit`.
        figures: by check, its value and its limit.
        sinks: number of new tokens that `attention_sinks` names; 0 if it passed.
        fidelity: mean cosine to the base of held-out contexts after distillation.
        seconds: for training the rows in both stages.
    """

    seed: int
    variant: str
    verdict: str
    shares: dict[str, float]
    figures: dict[str, tuple[float, str]]
    sinks: int
    set_back: int
    fidelity: float
    mrr: float
    gain: float
    low: float
    high: float
    seconds: float


def main() -> None:
    """Run all variants, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18, 19, 20, 21])
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
    for found in (table(runs), distances(runs)):
        Console(width=150).print(found)
    sys.exit(any(entry.verdict != "passed" for entry in runs))


def run(seed: int, variant: Variant) -> Run:
    """Run the chain in a copy of the project."""
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch) / "project"
        copy_project(project)
        set_params(project / "params.yaml", seed, variant.precision)
        commands = yaml.safe_load((project / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        environment = {**os.environ, **variant.environment, "PATH": path, "PYTHONPATH": str(project)}
        seconds = 0.0
        for stage in STAGES:
            started = time.perf_counter()
            ended = subprocess.run(
                commands[stage]["cmd"],
                shell=True,
                check=False,
                cwd=project,
                env=environment,
                capture_output=True,
                text=True,
            )
            seconds += time.perf_counter() - started if stage in TRAINS else 0.0
            if ended.returncode and stage != "check_consistency":
                raise SystemExit(f"seed {seed}, {variant.name}: {stage} failed:\n{ended.stderr[-2000:]}")
        return read_run(project / "data", seed, variant.name, seconds)


def read_run(data: Path, seed: int, variant: str, seconds: float) -> Run:
    """Read the result of a run from its folders."""
    checks = read_json(data / "check_consistency" / "checks.json")["checks"]
    shares = {check["name"]: share_of_limit(check) for check in checks}
    failed = [check["name"] for check in checks if check["verdict"] == "failed"]
    items = read_json(data / "evaluate_model" / "comparison.json")["items"]
    gain = next(item for item in items if (item["dataset"], item["subset"], item["metric"]) == BENEFIT)
    resized, trained = (read_json(data / stage / "report.json") for stage in ("resize_base", "train_adapter"))
    sinks = next(check for check in checks if check["name"] == "attention_sinks")
    return Run(
        seed,
        variant,
        f"failed: {', '.join(failed)}" if failed else "passed",
        {name: round(share, 3) for name, share in shares.items() if share is not None},
        {check["name"]: (check["figure"], check["limit"]) for check in checks if check["figure"] is not None},
        len(sinks["details"]) if sinks["verdict"] == "failed" else 0,
        len({*resized["distillation"]["set_back"], *trained["set_back"]}),
        resized["distillation"]["after"]["all"]["mean"],
        mrr=round(gain["merged"], 2),
        gain=round(gain["gain"], 2),
        low=round(gain["low"], 2),
        high=round(gain["high"], 2),
        seconds=round(seconds, 1),
    )


def share_of_limit(check: Mapping[str, Any]) -> float | None:
    """A check's value as a share of its limit: 1 is the limit, 0.5 a factor of 2 from it.

    For a mean rank, the distance from chance (0.5) counts: the share is the required distance divided by the measured
    one. None for a check without a value or without such a limit.
    """
    kind, _, number = check["limit"].rpartition(" ")
    if check["figure"] is None or check["verdict"] not in ("passed", "failed") or not kind:
        return None
    figure, limit = check["figure"], float(number)
    if check["name"].endswith("_told_apart"):
        return (CHANCE_RANK - limit) / (CHANCE_RANK - figure) if figure < CHANCE_RANK else None
    if kind == "at most":
        return figure / limit if limit > 0 else float(figure > limit)
    # A minimum above 0 is met by a larger value; for one below 0 there is no share.
    return limit / figure if limit > 0 and figure > 0 else None


def table(runs: Sequence[Run]) -> Table:
    """One row per run."""
    found = Table(title="the shipped example on other machines")
    for heading in ("seed", "variant", "verdict", "sinks", "set back", "fidelity", "MRR", "gain, 95 %", "training, s"):
        found.add_column(heading)
    for entry in runs:
        interval = f"{entry.gain:+.2f} ({entry.low:+.2f} .. {entry.high:+.2f})"
        cells = (entry.seed, entry.variant, entry.verdict, entry.sinks, entry.set_back, f"{entry.fidelity:.4f}")
        found.add_row(*map(str, cells), f"{entry.mrr:.2f}", interval, f"{entry.seconds:.0f}")
    shown = sum(entry.low > 0 for entry in runs)
    passed = sum(entry.verdict == "passed" for entry in runs)
    found.caption = f"{passed} of {len(runs)} passed; the gain is significant in {shown}"
    return found


def distances(runs: Sequence[Run]) -> Table:
    """One row per check: its largest share of the limit in any run, nearest to the limit first."""
    found = Table(title="distance of each check to its limit, the worst of all runs; a share of 1 is the limit")
    for heading in ("check", "share", "figure", "limit", "run"):
        found.add_column(heading)
    worst: dict[str, Run] = {}
    for entry in runs:
        for name, share in entry.shares.items():
            if name not in worst or share > worst[name].shares[name]:
                worst[name] = entry
    for name, entry in sorted(worst.items(), key=lambda item: -item[1].shares[item[0]]):
        figure, limit = entry.figures[name]
        found.add_row(name, f"{entry.shares[name]:.3f}", f"{figure:.3g}", limit, f"{entry.seed}, {entry.variant}")
    return found


def _told(found: Run) -> Run:
    print(json.dumps(asdict(found)), flush=True)
    return found


def copy_project(project: Path) -> None:
    """Copy the tracked files with the changes of the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, project / name)


def set_params(path: Path, seed: int, precision: str) -> None:
    """Write the seed and the precision of both trainings into a copy of params.yaml."""
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
