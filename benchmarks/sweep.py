"""A sweep of eight sleeping points on a Ray cluster of one single-core node, compared with two nodes.

The points are tasks of the sweep's own code (a copy of the project, the DVC remote, the flow in it). They sleep instead
of training, so that the distribution of work is measured and not the processor. Goal: 1.7 times as fast.

python -m benchmarks.sweep
"""

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
GOAL = 1.7
POINTS = 8
# Ray's minimum is 75 MiB; the work is a tar archive of a few files.
OBJECT_STORE = 80 * 1024 * 1024


def main() -> None:
    """Measure and print both, one after the other, each on a cluster and a remote of its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="sleep of each point (default 20)")
    seconds = parser.parse_args().seconds
    os.environ.update({"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"})
    took = {nodes: _measure(nodes, seconds) for nodes in (1, 2)}
    for nodes, value in took.items():
        print(f"{nodes} node(s) of one core: {value:.1f} s for {POINTS} points that sleep {seconds:g} s")
    print(f"two nodes are {took[1] / took[2]:.2f} times as fast as one (goal {GOAL})")


def _measure(nodes: int, seconds: float) -> float:
    from ray.cluster_utils import Cluster

    from flows.remote.ray_tasks import run_works

    with tempfile.TemporaryDirectory() as folder:
        works = _works(Path(folder), seconds)
        node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": OBJECT_STORE}
        cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        try:
            for _ in range(nodes - 1):
                cluster.add_node(**node)
            started = time.perf_counter()
            done = dict(run_works(cluster.address, works))
            took = time.perf_counter() - started
        finally:
            cluster.shutdown()
    failed = {name: result["said"] for name, result in done.items() if not result["ok"]}
    if failed or len(done) != POINTS:
        raise SystemExit(f"{len(done)} of {POINTS} points ended, and these failed: {failed}")
    return took


def _works(folder: Path, seconds: float) -> dict[str, Any]:
    from flows.remote.project_copy import LOCAL_CONFIG, carried_files, committed_code, local_config
    from flows.remote.work import Work

    root = _project(folder / "project", seconds)
    _, code = committed_code(root)
    files = carried_files(root) | {LOCAL_CONFIG: local_config(root, share_cache=False)}
    works = {}
    for number in range(POINTS):
        params = files["params.yaml"].replace("seed: 17", f"seed: {number}")
        works[str(number)] = Work(
            name=f"point-{number}",
            code=code,
            files=files | {"params.yaml": params},
            arguments=["--until", "train"],
            before=[["fetch", "--run-cache"]],
            after=[["push", "--run-cache"]],
            wanted=["figures.json"],
        )
    return works


def _project(root: Path, seconds: float) -> Path:
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text(
        f"[core]\n    no_scm = true\n    remote = store\n['remote \"store\"']\n    url = {root.parent / 'store'}\n",
        encoding="utf-8",
    )
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (root / "dvc.yaml").write_text(
        f"stages:\n  train:\n    cmd: sleep {seconds} && echo 1 > figures.json\n"
        "    params: [seed]\n    outs: [figures.json]\n",
        encoding="utf-8",
    )
    for command in ("init -q", "add .", "-c user.name=b -c user.email=b@b commit -qm first"):
        subprocess.run(["git", *command.split()], cwd=root, check=True)
    return root


if __name__ == "__main__":
    main()
