"""Work on a Ray cluster: each piece is a task of Prefect's, done in a copy of the project on whatever machine is free.

No file system is shared: a machine takes the code from the task itself, and data from the DVC remote and gives it back
there. A machine that is lost takes its pieces with it, and Ray starts them again on another; what they had pushed is
found there, and nothing is made twice under two names, since everything is stored by its content.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from flows import experiment
from flows.experiment import Work, carry_out_anywhere
from vocabgraft.errors import VocabgraftError

# How often a piece is begun anew because its machine was lost.
RETRIES = 10


def require_ray() -> None:
    """Raise unless Ray and its task runner are installed."""
    try:
        import prefect_ray
        import ray
    except ImportError as error:
        raise VocabgraftError(f'--ray needs Ray ({error}); `pip install -e ".[cluster]"` brings it') from error
    del prefect_ray
    # The machines need not have this project installed.
    ray.cloudpickle.register_pickle_by_value(experiment)


def run_works(address: str, works: Mapping[str, Work], cpus: float = 1, gpus: float = 0) -> Iterator[tuple[str, Any]]:
    """Run pieces of work on a cluster, under a Prefect flow.

    Args:
        address: of the cluster, as `ray.init` takes it: HOST:PORT of its head from one of its machines, or
            ray://HOST:10001 from elsewhere.
        works: the pieces, by a name of their own.
        cpus, gpus: what each of them takes.

    Yields:
        The name of each piece that has ended, and what `carry_out` says of it.

    Raises:
        VocabgraftError: when Ray is not installed, or the cluster does not answer.
    """
    require_ray()
    from queue import SimpleQueue
    from threading import Thread

    ended: SimpleQueue[Any] = SimpleQueue()
    failure: list[BaseException] = []

    def body() -> None:
        try:
            _flow(address, works, {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES}, ended)
        except Exception as error:  # noqa: BLE001  it is raised below, in the caller's thread
            failure.append(error)
        finally:
            ended.put(None)

    # A driver that is stopped does not wait for its cluster, which gives up what it had started for it.
    thread = Thread(target=body, daemon=True)
    thread.start()
    while (item := ended.get()) is not None:
        yield item
    thread.join()
    if failure:
        raise VocabgraftError(f"the cluster at {address}: {failure[0]}") from failure[0]


def _flow(address: str, works: Mapping[str, Work], options: Mapping[str, Any], ended: Any) -> None:
    from prefect import flow, task
    from prefect.cache_policies import NO_CACHE
    from prefect.futures import as_completed
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    piece = task(carry_out_anywhere, name="piece", cache_policy=NO_CACHE, persist_result=False)

    def body() -> None:
        with remote_options(scheduling_strategy="SPREAD", **options):
            names = {piece.with_options(task_run_name=work.name).submit(work): name for name, work in works.items()}
        for future in as_completed(list(names)):
            ended.put((names[future], _result(future)))

    flow(name="cluster", task_runner=RayTaskRunner(address=address, init_kwargs={"log_to_driver": False}))(body)()


def _result(future: Any) -> dict[str, Any]:
    future.wait()
    if future.state.is_completed():
        result: dict[str, Any] = future.result()
        return result
    return {"ok": False, "said": str(future.state.message), "files": {}, "seconds": 0.0}
