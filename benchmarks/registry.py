"""Cost of the registry: registration, look-up and load compared with the plain folder, and many users at once.

python -m benchmarks.registry     (after a run of the pipeline; uses the current data/, and a separate store)
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.support.stage import switch_telemetry_off

SECONDS_TO_START = 300
READY = 200


def main() -> None:
    """Measure and print one line per measurement."""
    options = _options()
    switch_telemetry_off()
    os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
    project = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for part in ("data", "params.yaml", "dvc.yaml", "dvc.lock"):
            (root / part).symlink_to(project / part)
        os.chdir(root)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{root}/mlflow.db"
        measure_registration(root)
        measure_look_up(project, options.rounds)
        with tracking_server(root) as address:
            os.environ["MLFLOW_TRACKING_URI"] = address
            measure_look_ups(options.look_ups)
            measure_parallel(project, options.registrations, options.models)
        os.chdir(project)


def measure_registration(root: Path) -> None:
    """The stage on the shipped example's results, without imports and the creation of the store's tables."""
    import sentence_transformers  # noqa: F401

    from tasks import register_model as stage
    from tasks.registry.lookup import connect
    from vocabgraft.config.params import load_params

    connect()
    folders = {name: Path("data") / name for name in ("merge_adapter", "train_adapter", "evaluate_model")}
    seconds = timed(
        lambda: stage.register_model(
            merged=folders["merge_adapter"],
            adapter=folders["train_adapter"],
            checks=Path("data/check_consistency/checks.json"),
            evaluation=folders["evaluate_model"],
            base_identity=Path("data/validate_data/base.json"),
            datasets=Path("data/validate_data/datasets"),
            tokens=Path("data/extend_tokenizer/tokens.json"),
            out=root / "out",
            params=load_params().register_model,
            base=load_params().base,
        )
    )
    print(f"registration of the shipped model: {seconds:.1f} s (target: under 20)")


def measure_look_up(project: Path, rounds: int) -> None:
    """Look-up by alias and load, compared with loading the plain folder, alternately."""
    import mlflow
    from sentence_transformers import SentenceTransformer

    from vocabgraft.config.params import load_params

    name = load_params().register_model.name
    plain, looked_up = [], []
    for _ in range(rounds + 1):
        plain.append(timed(lambda: SentenceTransformer(str(project / "data/merge_adapter"), device="cpu")))
        looked_up.append(timed(lambda: mlflow.sentence_transformers.load_model(f"models:/{name}@challenger")))
    # The first of each reads the files from the disk.
    ratio = statistics.median(there / here for there, here in zip(looked_up[1:], plain[1:], strict=True))
    figures = f"{statistics.median(looked_up[1:]):.3f} s against {statistics.median(plain[1:]):.3f} s"
    print(f"look-up by alias and load: {figures}, median ratio of {rounds} turns {ratio:.2f} (target: at most 1.3)")


def measure_look_ups(count: int) -> None:
    """Concurrent look-ups by alias, over HTTP."""
    from tasks.registry.lookup import CHALLENGER, connect
    from vocabgraft.config.params import load_params

    client, name = connect(), load_params().register_model.name

    def look_up(_: int) -> str:
        try:
            return f"version {client.get_model_version_by_alias(name, CHALLENGER).version}"
        except Exception as error:  # noqa: BLE001  any error counts
            return f"error: {error}"

    with ThreadPoolExecutor(count) as pool:
        started = time.perf_counter()
        answers = list(pool.map(look_up, range(count)))
        seconds = time.perf_counter() - started
    failed = [answer for answer in answers if answer.startswith("error")]
    print(f"{count} concurrent look-ups: {len(failed)} errors, {seconds:.1f} s {failed[:1] or ''}")


def measure_parallel(project: Path, registrations: int, models: int) -> None:
    """Concurrent registrations over HTTP; versions differ only in their digest, the weights are the same."""
    from tasks.registry.lookup import DIGEST_TAG, connect
    from tasks.registry.register import RunRecord, log_and_register
    from vocabgraft.models.base import load_model

    client = connect()
    model = load_model(project / "data/merge_adapter", device="cpu")

    def register(number: int) -> int:
        tags = {DIGEST_TAG: f"content {number % models}"}
        record = RunRecord(params={}, metrics={"merged.x": 1.0}, curve=[], artifacts=[], tags=tags)
        return log_and_register(client, "parallel", model, record).version

    with ThreadPoolExecutor(registrations) as pool:
        started = time.perf_counter()
        got = list(pool.map(register, range(registrations)))
        seconds = time.perf_counter() - started
    left = [int(entry.version) for entry in client.search_model_versions() if entry.name == "parallel"]
    summary = f"{len(left)} versions, {seconds:.1f} s; each got one that stays: {set(got) == set(left)}"
    print(f"{registrations} parallel registrations of {models} models: {summary} (target: {models})")


@contextmanager
def tracking_server(root: Path) -> Iterator[str]:
    """MLflow's server over the store, which serves the files of new experiments itself."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    store = {"MLFLOW_BACKEND_STORE_URI": os.environ["MLFLOW_TRACKING_URI"]}
    with (root / "server.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=os.environ | store, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not _ready(address):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((root / "server.log").read_text(encoding="utf-8"))
            time.sleep(0.5)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=60)


def timed(work: Callable[[], Any]) -> float:
    """The seconds that the work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as response:
            return bool(response.status == READY)
    except (urllib.error.URLError, OSError):
        return False


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registry", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="of look-up and load (default: 7)")
    parser.add_argument("--look-ups", type=int, default=100, help="at the same time (default: 100)")
    parser.add_argument("--registrations", type=int, default=20, help="at the same time (default: 20)")
    parser.add_argument("--models", type=int, default=5, help="different ones among them (default: 5)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
