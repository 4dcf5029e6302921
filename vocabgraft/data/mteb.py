"""MTEB tasks by name; needs the extra `mteb` and the tasks' data."""

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vocabgraft.errors import VocabgraftError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

METRIC = "main_score"


def require_mteb(names: Sequence[str]) -> None:
    """Refuse names of tasks if the package is missing.

    Raises:
        VocabgraftError: with the extra to install.
    """
    if names and importlib.util.find_spec("mteb") is None:
        raise VocabgraftError(
            f"evaluate_model.mteb_tasks lists {', '.join(names)}, but the package mteb is not installed; install the "
            'extra (`pip install -c constraints.txt -e ".[mteb]"`), or set evaluate_model.mteb_tasks to []'
        )


def load_tasks(names: Sequence[str]) -> list[Any]:
    """The tasks with their data.

    Raises:
        VocabgraftError: for an unknown task, or data that cannot be loaded.
    """
    require_mteb(names)
    return [_load(name) for name in names]


def score_tasks(
    tasks: Sequence[Any], model: "SentenceTransformer", batch_size: int
) -> dict[str, dict[str, dict[str, float]]]:
    """The main score of each task in percent, as a metric of the subset `all` under the task's name."""
    return {task.metadata.name: {"all": {METRIC: _score(task, model, batch_size)}} for task in tasks}


def _score(task: Any, model: "SentenceTransformer", batch_size: int) -> float:
    import mteb

    results = mteb.evaluate(
        model,
        task,
        co2_tracker=False,
        encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
        # MTEB's cache identifies a model by its name, and all models of a run share one.
        cache=None,
        show_progress_bar=False,
    )
    return round(100 * float(results.task_results[0].get_score()), 4)


def _load(name: str) -> Any:
    import mteb

    try:
        task = mteb.get_task(name)
    except KeyError as error:
        raise VocabgraftError(
            f"evaluate_model.mteb_tasks: MTEB has no task {name!r} ({error.args[0]}); `mteb.get_tasks()` lists them"
        ) from error
    try:
        task.load_data()
    except (OSError, ValueError) as error:
        raise VocabgraftError(
            f"evaluate_model.mteb_tasks: the data of {name} cannot be loaded ({str(error).splitlines()[0][:200]}); "
            "load them once with a network connection, or take the task out"
        ) from error
    return task
