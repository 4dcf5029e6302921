"""Runs the points of a grid in copies of the project, and marks the best one on the validation split."""

import csv
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from flows.engine.dag import read_dag, stage_named
from flows.engine.prefect_run import PREFECT_SERVER, harmless
from flows.engine.run_record import RUN_RECORD
from flows.engine.signals import stopped_by_signals
from flows.remote.project_copy import LOCAL_CONFIG, carried_files, committed_code, local_config, require_remote
from flows.remote.work import Work, carry_out, unpack, why_failed, write_over
from flows.run import NO_REPORT, ROOT, SIGNALLED
from flows.sweep.grid import FigureParams, Point, SweepParams, figures_of, grid
from flows.sweep.log import log_to_mlflow, show_in_prefect
from vocabgraft.config.params import PARAMS_FILE
from vocabgraft.errors import VocabgraftError
from vocabgraft.printable import print_line, warn
from vocabgraft.storage.artifacts import read_json, write_json

# Inside DVC's own folder, DVC does not take the copies for parts of this project; Git ignores it too.
PLACE = Path(".dvc/tmp/sweep")
REPORTS = Path("reports")


@dataclass(frozen=True)
class PointResult:
    """The result of a point: its metric (None if it failed), its seconds, and the reason of a failure."""

    point: Point
    figure: float | None
    seconds: float
    reason: str = ""
    earlier: bool = False


@dataclass(frozen=True)
class Swept:
    """A finished sweep: its points, the best of them, the rows of the table, and the exit code."""

    results: Sequence[PointResult]
    best: PointResult | None
    rows: Sequence[Mapping[str, Any]]
    exit_code: int


def run_sweep(sweep: SweepParams, file: Path, jobs: int, ray: str | None) -> Swept:
    """Run the points that are not done, and write reports/NAME.json and .csv.

    Args:
        sweep: the sweep.
        file: the sweep.yaml; the reports take its name.
        jobs: points at the same time on this machine.
        ray: address of a Ray cluster that runs them instead; None for this machine.

    Returns:
        The results. The exit code is 0; 1 if a point failed; 3 if the table could not be logged; 130 or 143 if a signal
        stopped the sweep.

    Raises:
        VocabgraftError: if no point could start.
    """
    points, works = _planned(sweep, file, remote=ray is not None)
    runner = Runner(sweep.figure, _measured_file(sweep), ROOT)
    results = _run(runner, points, works, jobs, ray)
    best = best_of(results, sweep.figure)
    rows = _rows(results, sweep, best)
    _write_reports(rows, file.stem)
    if runner.stopped_by is not None:
        warn("sweep: stopped; run it again to continue with the points that are not done")
        return Swept(results, best, rows, SIGNALLED + runner.stopped_by)
    logged = _log(rows, sweep, file.stem)
    failed = any(result.figure is None for result in results)
    return Swept(results, best, rows, 1 if failed else 0 if logged else NO_REPORT)


def _log(rows: Sequence[Mapping[str, Any]], sweep: SweepParams, name: str) -> bool:
    """Log the table to Prefect and MLflow; returns whether that worked. The points are done in any case."""
    try:
        if os.environ.get(PREFECT_SERVER):
            with harmless("the table of the sweep is not in Prefect"):
                show_in_prefect(rows)
        log_to_mlflow(name, rows, sweep)
    except VocabgraftError as error:
        warn(f"sweep: the table is in {REPORTS / name}.json, but not in MLflow: {error}")
        return False
    return True


def _planned(sweep: SweepParams, file: Path, remote: bool) -> tuple[list[Point], dict[str, Work]]:
    if not (ROOT / ".dvc").is_dir():
        raise VocabgraftError(f"{ROOT.resolve()} is not a DVC project; run from the project's root")
    if remote:
        require_remote(ROOT)
    commit, code = committed_code(ROOT, beside=[os.path.relpath(file, ROOT)])
    carried = carried_files(ROOT) | {LOCAL_CONFIG: local_config(ROOT, share_cache=not remote)}
    points = grid(sweep, carried.get(str(PARAMS_FILE), ""), commit)
    measured = _measured_file(sweep)
    works = {
        point.digest: Work(
            name=point.name,
            code=code,
            files=carried | {str(PARAMS_FILE): point.params},
            arguments=["--until", sweep.last_stage],
            before=[["fetch", "--run-cache"]] if remote else [],
            after=[["push", "--run-cache"]] if remote else [],
            wanted=[measured, str(RUN_RECORD), "dvc.lock"],
        )
        for point in points
    }
    return points, works


def _measured_file(sweep: SweepParams) -> str:
    stages = read_dag(ROOT)
    stage_named(stages, sweep.last_stage)
    stage = stage_named(stages, sweep.figure.stage)
    out = stage.outs[0]
    return out.as_posix() if out.name == sweep.figure.file else (out / sweep.figure.file).as_posix()


def _run(
    runner: "Runner", points: Sequence[Point], works: Mapping[str, Work], jobs: int, ray: str | None
) -> list[PointResult]:
    earlier = {point.digest: found for point in points if (found := runner.earlier(point))}
    todo = [point for point in points if point.digest not in earlier]
    print_line(f"sweep: {len(points)} points, {len(earlier)} of them done earlier")
    made = {}
    if todo and ray is not None:
        from flows.remote.ray_tasks import push, run_works

        # Each point makes missing results again, so a partial push still helps.
        if (ROOT / "dvc.lock").is_file() and (said := push(ROOT)):
            warn(f"sweep: not everything could be pushed: {said}")
        chosen = {point.digest: works[point.digest] for point in todo}
        by_digest = {point.digest: point for point in todo}
        for digest, done in run_works(ray, chosen):
            made[digest] = runner.keep(by_digest[digest], done)
    elif todo:
        made = {result.point.digest: result for result in runner.run(todo, works, jobs)}
    return [earlier.get(point.digest) or made[point.digest] for point in points]


class Runner:
    """Runs points in copies on this machine, and records the results of finished ones."""

    def __init__(self, figure: FigureParams, measured: str, root: Path) -> None:
        self._figure = figure
        self._measured = measured
        self._root = root
        self._guard = threading.Lock()
        self._processes: list[subprocess.Popen[str]] = []
        self.stopped_by: int | None = None

    def earlier(self, point: Point) -> PointResult | None:
        """The result of a point that an earlier sweep finished at this commit with these parameters."""
        path = self._record(point)
        if not path.is_file():
            return None
        return self._judged(point, read_json(path)["done"], earlier=True)

    def run(self, points: Sequence[Point], works: Mapping[str, Work], jobs: int) -> Iterator[PointResult]:
        """Run points in parallel; yields each when it has ended."""
        with stopped_by_signals(self._stop), ThreadPoolExecutor(max_workers=jobs) as pool:
            futures = [pool.submit(self._point, point, works[point.digest]) for point in points]
            for future in as_completed(futures):
                result = future.result()
                print_line(f"sweep: {_values(result.point)}: {_told(result)}")
                yield result

    def keep(self, point: Point, done: Mapping[str, Any]) -> PointResult:
        """Record the result of a point, unless it failed; the next sweep then retries it."""
        result = self._judged(point, done)
        if result.figure is not None:
            content = {"values": dict(point.values), "params": point.params, "done": dict(done)}
            write_json(self._record(point), content)
        return result

    def _point(self, point: Point, work: Work) -> PointResult:
        if self.stopped_by is not None:
            return PointResult(point, None, 0.0, "not started: the sweep was stopped")
        folder = self._root / PLACE / point.digest
        started = time.monotonic()
        try:
            _make_copy(work, folder)
            done = carry_out(work, folder.resolve(), self._watch)
            result = self.keep(point, done)
        except (OSError, VocabgraftError) as error:
            return PointResult(point, None, time.monotonic() - started, str(error))
        if result.figure is not None:
            # Its outputs are in the cache. The copy of a failed point stays, so that somebody can look into it.
            shutil.rmtree(folder, ignore_errors=True)
        return result

    def _judged(self, point: Point, done: Mapping[str, Any], earlier: bool = False) -> PointResult:
        seconds, files = float(done["seconds"]), done["files"]
        if not done["ok"]:
            reason, log = why_failed(done, str(RUN_RECORD))
            return PointResult(point, None, seconds, "\n".join(filter(None, (reason, log))))
        if self._measured not in files:
            return PointResult(point, None, seconds, f"{self._measured} was not made")
        figures = figures_of(files[self._measured])
        name = self._figure.name
        figure = figures.get(name, figures.get(f"eval_{name}"))
        if figure is None:
            reason = f"{self._measured} has no metric {name!r}; allowed: {', '.join(figures) or 'none'}"
            return PointResult(point, None, seconds, reason)
        return PointResult(point, figure, seconds, earlier=earlier)

    def _record(self, point: Point) -> Path:
        return self._root / PLACE / f"{point.digest}.json"

    def _watch(self, process: "subprocess.Popen[str]") -> None:
        with self._guard:
            self._processes.append(process)
            if self.stopped_by is not None:
                process.terminate()

    def _stop(self, number: int) -> None:
        self.stopped_by = number
        for process in tuple(self._processes):
            # Each ends its stages within 10 s. Ended ones get no signal, because poll() knows them.
            if process.poll() is None:
                process.terminate()


def _make_copy(work: Work, folder: Path) -> None:
    """Make the copy of a point, or take over that of a killed sweep with its results."""
    if folder.is_dir():
        write_over(Work(work.name, b"", {LOCAL_CONFIG: work.files[LOCAL_CONFIG]}, ()), folder)
        return
    unfinished = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    unpack(work, unfinished)
    unfinished.rename(folder)


def best_of(results: Sequence[PointResult], figure: FigureParams) -> PointResult | None:
    """The point with the best metric, the first of equals; None if every point failed."""
    measured = [result for result in results if result.figure is not None]
    if not measured:
        return None
    sign = 1 if figure.goal == "min" else -1
    return min(measured, key=lambda result: sign * (result.figure or 0.0))


def table(results: Sequence[PointResult], sweep: SweepParams, best: PointResult | None) -> Table:
    """All points with their metric; the best is marked."""
    figure = sweep.figure
    made = Table(title=f"sweep, selected by {figure.name} of {figure.stage} ({figure.goal})", title_justify="left")
    for heading in (*sweep.params, figure.name, "seconds", ""):
        made.add_column(heading, overflow="fold")
    for result in results:
        values = [json.dumps(result.point.values[key]) for key in sweep.params]
        note = "best" if result is best else result.reason.splitlines()[0] if result.reason else ""
        shown = "failed" if result.figure is None else f"{result.figure:.5g}"
        made.add_row(*values, shown, f"{result.seconds:.1f}", note + (" (done earlier)" * result.earlier))
    return made


def _rows(results: Sequence[PointResult], sweep: SweepParams, best: PointResult | None) -> list[dict[str, Any]]:
    """The rows of the table, for JSON and CSV."""
    return [
        {
            **{key: result.point.values[key] for key in sweep.params},
            sweep.figure.name: result.figure,
            "seconds": round(result.seconds, 1),
            "best": result is best,
            "reason": result.reason,
            "digest": result.point.digest,
        }
        for result in results
    ]


def _write_reports(rows: Sequence[Mapping[str, Any]], name: str) -> None:
    """reports/NAME.json and .csv."""
    write_json(REPORTS / f"{name}.json", list(rows))
    with (REPORTS / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _values(point: Point) -> str:
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in point.values.items())


def _told(result: PointResult) -> str:
    return f"failed: {result.reason.splitlines()[0]}" if result.figure is None else f"{result.figure:.5g}"
