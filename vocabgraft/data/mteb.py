"""MTEB tasks by name; needs the extra `mteb` and the tasks' data."""

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vocabgraft.errors import VocabgraftError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

METRIC = "main_score"


def require_mteb(names: Sequence[str]) -> None:
    """Refuse names of tasks where the package is absent.

    Raises:
        VocabgraftError: with the extra to install.
    """
    if names and importlib.util.find_spec("mteb") is None:
        raise VocabgraftError(
            f"evaluate_model.mteb_tasks lists {', '.join(names)}, and the package mteb is not installed; install the "
            'extra (`pip install -c constraints.txt -e ".[mteb]"`), or set evaluate_model.mteb_tasks to []'
        )


def load_tasks(names: Sequence[str]) -> list[Any]:
    """The tasks with their data.

    Raises:
        VocabgraftError: for a name that MTEB does not have, or data that cannot be had.
    """
    require_mteb(names)
    return [_load(name) for name in names]


def score_tasks(
    tasks: Sequence[Any], model: "SentenceTransformer", batch_size: int
) -> dict[str, dict[str, dict[str, float]]]:
    """The main score of each task, in percent, as figures of the subset `all` by the task's name."""
    return {task.metadata.name: {"all": {METRIC: _score(task, model, batch_size)}} for task in tasks}


def _score(task: Any, model: "SentenceTransformer", batch_size: int) -> float:
    import mteb

    results = mteb.evaluate(
        model,
        task,
        co2_tracker=False,
        encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
        # A cache knows a model by its name, which those of a run share.
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
            f"evaluate_model.mteb_tasks: the data of {name} cannot be had ({str(error).splitlines()[0][:200]}); load "
            "them once where there is a network, or take the task out"
        ) from error
    return task
