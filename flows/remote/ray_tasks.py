"""Jobs on a Ray cluster: each is a Prefect task that runs in a copy of the project on any free machine.

The machines share no file system. Each gets the code from the task itself, pulls data from the DVC remote and pushes
its results there. If a machine is lost, Ray starts its jobs again on another one, which finds the results already
pushed. Results are stored by content, so none is stored twice.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from flows.engine.dag import Stage
from flows.engine.prefect_run import allow_temporary_server
from flows.engine.run_record import RUN_RECORD
from flows.engine.scheduler import Elsewhere
from flows.engine.stage_outcome import Attempt, Ending
from flows.engine.stage_run import StageLog
from flows.remote import work as experiment
from flows.remote.multi_node import SECONDS_BETWEEN_LOOKS, made_together, told
from flows.remote.project_copy import LOCAL_CONFIG, carried_files, committed_code, local_config, require_remote
from flows.remote.work import Here, Work, carry_out_anywhere
from vocabgraft.errors import VocabgraftError

# How often a job is started again after its machine was lost.
RETRIES = 10
# Ray's message repeats a whole argument if it cannot be pickled.
MESSAGE_LENGTH = 500


def require_ray() -> None:
    """Raise unless Ray and its task runner are installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import prefect_ray
        import ray
    except ImportError as error:
        raise VocabgraftError(f'--ray needs Ray ({error}); install it with `pip install -e ".[cluster]"`') from error
    del prefect_ray
    # The machines may not have this project installed.
    ray.cloudpickle.register_pickle_by_value(experiment)


def run_works(address: str, works: Mapping[str, Work], cpus: float = 1, gpus: float = 0) -> Iterator[tuple[str, Any]]:
    """Run jobs on a cluster, under a Prefect flow.

    Args:
        address: address of the cluster, as `ray.init` takes it: HOST:PORT of its head from one of its machines, or
            ray://HOST:10001 from elsewhere.
        works: the jobs, each by a unique name.
        cpus: CPUs of each job.
        gpus: GPUs of each job.

    Yields:
        The name of each job that has ended, and its result from `carry_out`.

    Raises:
        VocabgraftError: if Ray is not installed, or the cluster does not answer.
    """
    allow_temporary_server()
    require_ray()
    from queue import SimpleQueue
    from threading import Thread

    ended: SimpleQueue[Any] = SimpleQueue()
    failure: list[BaseException] = []

    def body() -> None:
        try:
            _flow(address, works, {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES}, ended)
        except Exception as error:  # noqa: BLE001  raised again below, in the caller's thread
            failure.append(error)
        finally:
            ended.put(None)

    # A daemon, so that a stopped driver does not wait for its cluster, which then gives up the driver's jobs.
    thread = Thread(target=body, daemon=True)
    thread.start()
    while (item := ended.get()) is not None:
        yield item
    thread.join()
    if failure:
        raise VocabgraftError(f"the cluster at {address}: {str(failure[0])[:MESSAGE_LENGTH]}") from failure[0]


def _flow(address: str, works: Mapping[str, Work], options: Mapping[str, Any], ended: Any) -> None:
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect_ray import RayTaskRunner

    piece = task(name="piece", cache_policy=NO_CACHE, persist_result=False)(carry_out_anywhere)
    here = Here(partial(_spread, piece, works, options, ended))

    def body() -> None:
        # The flow is pickled with each task, for machines without this code, so it must not refer to any of it.
        here.value()

    flow(name="cluster", task_runner=RayTaskRunner(address=address, init_kwargs={"log_to_driver": False}))(body)()


def _spread(piece: Any, works: Mapping[str, Work], options: Mapping[str, Any], ended: Any) -> None:
    from prefect.futures import as_completed
    from prefect_ray.context import remote_options

    with remote_options(scheduling_strategy="SPREAD", **options):
        names = {piece.with_options(task_run_name=work.name).submit(work): name for name, work in works.items()}
    for future in as_completed(list(names)):
        ended.put((names[future], _result(future)))


def _result(future: Any) -> dict[str, Any]:
    future.wait()
    if future.state.is_completed():
        result: dict[str, Any] = future.result()
        return result
    return {"ok": False, "said": str(future.state.message), "files": {}, "seconds": 0.0}


@contextmanager
def stages_on(address: str, root: Path) -> Iterator[Elsewhere]:
    """A function that runs stages on a cluster, for stages whose `meta` has resources.

    Raises:
        VocabgraftError: if Ray is not installed, the cluster does not answer, there is no DVC remote, or code differs
            from the commit.
    """
    require_ray()
    require_remote(root)
    import ray

    _, code = committed_code(root)
    config = {LOCAL_CONFIG: local_config(root, share_cache=False)}
    try:
        ray.init(address=address, namespace="vocabgraft", log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise VocabgraftError(f"no Ray cluster answers at {address}: {error}") from error

    def make(stage: Stage, force: bool, log: StageLog, stopped: Callable[[], bool]) -> Attempt | None:
        upstream = stage.upstream
        if upstream and (said := push(root, *upstream)):
            return Attempt(Ending.FAULT, f"its dependencies could not be pushed: {said}")
        work = Work(
            name=f"{stage.key}-on-the-cluster",
            code=code,
            files=_settled_files(root) | config,
            arguments=["--only", stage.name, *(["--force"] * force)],
            before=[["pull", *upstream]] if upstream else [],
            after=[["push", "--run-cache", stage.name]],
            wanted=[str(RUN_RECORD)],
        )
        make_it = made_together if stage.nodes > 1 else _made
        return make_it(work, stage, log, _halt(stage, stopped))

    try:
        yield make
    finally:
        ray.shutdown()


def push(root: Path, *targets: str) -> str:
    """Push outputs and the run cache to the DVC remote; returns DVC's error, or "" on success."""
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "push", "--quiet", "--run-cache", *targets]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return (done.stderr or done.stdout or f"exit code {done.returncode}").strip() if done.returncode else ""


def _settled_files(root: Path) -> dict[str, str]:
    """The files from the working tree, read while no DVC process writes them."""
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True).lock:
        return carried_files(root)


def _halt(stage: Stage, stopped: Callable[[], bool]) -> Callable[[], Attempt | None]:
    """A function that returns why a stage started now must stop, or None."""
    deadline = None if stage.timeout is None else time.monotonic() + stage.timeout

    def halted() -> Attempt | None:
        if deadline is not None and time.monotonic() > deadline:
            return Attempt(Ending.TIMED_OUT, f"stopped after its timeout of {stage.timeout:g} s")
        return Attempt(Ending.FAULT, "stopped") if stopped() else None

    return halted


def _made(work: Work, stage: Stage, log: StageLog, halted: Callable[[], Attempt | None]) -> Attempt | None:
    import ray

    cpus, gpus = stage.resources.get("cpus", 1.0), stage.resources.get("gpus", 0.0)
    remote = ray.remote(carry_out_anywhere).options(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)
    piece = remote.remote(work)
    log.line(f"{stage.name} goes to the cluster: {cpus:g} cores, {gpus:g} GPUs")
    while not ray.wait([piece], timeout=SECONDS_BETWEEN_LOOKS)[0]:
        if (why := halted()) is not None:
            # Everything that the worker started ends with it.
            ray.cancel(piece, force=True)
            return why
    try:
        done = ray.get(piece)
    except ray.exceptions.RayError as error:
        return Attempt(Ending.FAULT, f"the cluster lost it {RETRIES + 1} times: {error}")
    return told(done, log)
