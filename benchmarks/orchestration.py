"""Overhead of the flow compared with `dvc repro`, and what it saves: medians, with a running Prefect server.

python -m benchmarks.orchestration [--repeats 3] [--project FOLDER]
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from flows.engine.stage_run import environment

ROOT = Path(__file__).parent.parent
STAGES, SLEEPERS, SLEEP, WIDE = 8, 8, 5, 200
EXTRA_GOAL, EXTRA_OF_A_STAGE_GOAL = 5.0, 0.7
IDLE_GOAL, IDLE_WITHOUT_SERVER_GOAL = 5.0, 4.0
SPEEDUP_GOAL, PLAN_GOAL = 4.5, 3.0
REPRO = ["-m", "dvc", "repro"]
FLOW = ["-m", "flows.build_model"]
MODEL, DIGEST = "benchmark", "d" * 64


def main() -> None:
    """Measure everything and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each kind; medians are shown")
    parser.add_argument("--project", type=Path, help="a finished project, to measure a run with nothing to do")
    given = parser.parse_args()
    table = Table(title=f"orchestration, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start, seconds")
    for heading in ("what", "median", "goal", "reached"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    with tempfile.TemporaryDirectory() as name, _server(Path(name) / "prefect") as server:
        folder = Path(name)
        _measure_change(folder, server, given.repeats, table)
        _measure_idle(given.project or _idle_project(folder / "idle"), server, given.repeats, table)
        _measure_sleepers(folder, server, table)
        wide = _project(
            folder / "wide", {f"s{number:03}": _copying(f"s{number:03}", ["raw.txt"]) for number in range(WIDE)}
        )
        _row(
            table,
            f"--plan of {WIDE} stages",
            _median(lambda: _seconds([*FLOW, "--plan"], wide), given.repeats),
            PLAN_GOAL,
        )
    Console(width=120).print(table)


def _measure_change(folder: Path, server: dict[str, str], repeats: int, table: Table) -> None:
    """The same change in a chain, run alternately by `dvc repro` and by the flow."""
    chain = {f"s{n}": _copying(f"s{n}", [f"s{n - 1}.txt" if n else "raw.txt"]) for n in range(STAGES)}
    twins = [_project(folder / name, chain) for name in ("repro", "flow")]
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats + 1):
        for project in twins:
            (project / "raw.txt").write_text(f"{number}\n", encoding="utf-8")
        seconds = (_seconds(REPRO, twins[0]), _seconds(FLOW, twins[1], server))
        if number:
            # The first run of each fills the page cache.
            for kept, one in zip(taken, seconds, strict=True):
                kept.append(one)
    repro, flow = map(statistics.median, taken)
    _row(table, f"dvc repro, a change through {STAGES} stages in a row", repro)
    _row(table, "the flow, the same change", flow)
    _row(table, "difference in total", flow - repro, EXTRA_GOAL)
    _row(table, "difference per stage", (flow - repro) / STAGES, EXTRA_OF_A_STAGE_GOAL)


def _measure_idle(project: Path, server: dict[str, str], repeats: int, table: Table) -> None:
    _seconds(FLOW, project, server)
    without = [*FLOW, "--no-server"]
    _row(table, "nothing changed, server running", _median(lambda: _seconds(FLOW, project, server), repeats), IDLE_GOAL)
    seconds = _median(lambda: _seconds(without, project), repeats)
    _row(table, "nothing changed, --no-server", seconds, IDLE_WITHOUT_SERVER_GOAL)


def _measure_sleepers(folder: Path, server: dict[str, str], table: Table) -> None:
    stages = {f"s{n}": _copying(f"s{n}", ["raw.txt"], f"sleep {SLEEP}") for n in range(SLEEPERS)}
    repro = _seconds(REPRO, _project(folder / "one_by_one", stages))
    _row(table, f"dvc repro, {SLEEPERS} independent stages that sleep {SLEEP} s", repro)
    for name, options, variables in (("server running", [], server), ("--no-server", ["--no-server"], {})):
        seconds = _seconds([*FLOW, *options], _project(folder / name.strip("-"), stages), variables)
        _row(table, f"the flow, {name}", seconds)
        _row(table, f"times as fast, {name}", repro / seconds, SPEEDUP_GOAL, least=True)


def _copying(name: str, deps: list[str], before: str = "true") -> dict[str, object]:
    return {
        "cmd": f"{before} && cat {deps[0]} > {name}.txt && echo {name} >> {name}.txt",
        "deps": deps,
        "outs": [f"{name}.txt"],
    }


def _project(root: Path, stages: dict[str, dict[str, object]]) -> Path:
    (root / ".dvc").mkdir(parents=True)
    config = "[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n"
    (root / ".dvc" / "config").write_text(config, encoding="utf-8")
    (root / "raw.txt").write_text("raw\n", encoding="utf-8")
    (root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False), encoding="utf-8")
    return root


def _idle_project(root: Path) -> Path:
    """A chain that ends in a registration that is in the registry, with its files."""
    chain = {f"s{n}": _copying(f"s{n}", [f"s{n - 1}.txt" if n else "raw.txt"]) for n in range(STAGES)}
    record = f'{{"name": "{MODEL}", "content_digest": "{DIGEST}"}}'
    registering = f"mkdir -p registered && echo '{record}' > registered/registration.json"
    chain["register_model"] = {"cmd": registering, "deps": [f"s{STAGES - 1}.txt"], "outs": ["registered"]}
    _project(root, chain)
    files = root / "model"
    files.mkdir()
    (files / "MLmodel").touch()
    register = (
        "from mlflow import MlflowClient; c = MlflowClient('sqlite:///mlflow.db'); "
        f"c.create_registered_model({MODEL!r}); run = c.create_run(c.create_experiment('e')).info.run_id; "
        f"c.create_model_version({MODEL!r}, {files.as_uri()!r}, run, tags={{'content_digest': {DIGEST!r}}})"
    )
    _seconds(["-c", register], root)
    return root


def _median(measure: Callable[[], float], repeats: int) -> float:
    return statistics.median(measure() for _ in range(repeats))


def _seconds(command: list[str], folder: Path, variables: dict[str, str] | None = None) -> float:
    env = environment() | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": ""} | (variables or {})
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return seconds


def _row(table: Table, name: str, figure: float, goal: float | None = None, least: bool = False) -> None:
    reached = "" if goal is None else "yes" if (figure >= goal if least else figure <= goal) else "NO"
    table.add_row(name, f"{figure:.2f}", "" if goal is None else f"{'>=' if least else '<='} {goal:g}", reached)


@contextmanager
def _server(home: Path) -> Iterator[dict[str, str]]:
    """A separate Prefect server; yields the environment variables with which a client finds it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port), "--no-ui"]
    server = subprocess.Popen(
        command, env=environment() | variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(600):
            try:
                with urllib.request.urlopen(f"{variables['PREFECT_API_URL']}/health", timeout=2):
                    break
            except OSError:
                time.sleep(0.2)
        else:
            raise SystemExit("the Prefect server did not start within two minutes")
        yield variables
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
