"""Logs metrics during training to MLflow, TensorBoard and Weights & Biases, as `report_to` says."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from vocabgraft.config.training_arguments import report_targets

Log = Callable[[int, Mapping[str, float]], None]
TENSORBOARD = Path("reports/tensorboard")


@contextmanager
def live_metrics(arguments: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[Log | None]:
    """A function that logs the metrics of a step to every target in `report_to`; None without a target.

    Args:
        arguments: the trainer's arguments; `report_to` and `run_name` are read.
        params: settings of the training, recorded with the run.
    """
    name = str(arguments.get("run_name") or "train_adapter")
    with ExitStack() as stack:
        logs = [stack.enter_context(OPENED[target](name, params)) for target in report_targets(arguments)]

        def log(step: int, figures: Mapping[str, float]) -> None:
            for one in logs:
                one(step, figures)

        yield log if logs else None


def _mlflow(name: str, params: Mapping[str, Any]) -> AbstractContextManager[Log]:
    from tasks.registry.lookup import live_run

    return live_run(name, params)


@contextmanager
def _tensorboard(name: str, params: Mapping[str, Any]) -> Iterator[Log]:
    """Event files in reports/tensorboard, a folder for each start: `tensorboard --logdir reports/tensorboard`."""
    from torch.utils.tensorboard import SummaryWriter

    taken = {path.name for path in TENSORBOARD.glob(f"{name}-*")}
    number = next(number for number in range(1, len(taken) + 2) if f"{name}-{number}" not in taken)
    with SummaryWriter(str(TENSORBOARD / f"{name}-{number}")) as writer:
        writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in params.items()))

        def log(step: int, figures: Mapping[str, float]) -> None:
            for key, value in figures.items():
                writer.add_scalar(key, value, step)

        yield log


@contextmanager
def _wandb(name: str, params: Mapping[str, Any]) -> Iterator[Log]:
    """A run of Weights & Biases in the project WANDB_PROJECT; WANDB_MODE=offline keeps it on this machine.

    If the server fails later, there is one warning, and the training continues.
    """
    import wandb

    run = wandb.init(name=name, config=dict(params), reinit="create_new")
    failed = False

    def log(step: int, figures: Mapping[str, float]) -> None:
        nonlocal failed
        if failed:
            return
        try:
            run.log(dict(figures), step=step)
        except Exception as error:  # noqa: BLE001  # a failed log call must not end a training of hours
            failed = True
            logging.getLogger(__name__).warning("wandb metrics stop here, the training continues: %s", error)

    code = 1
    try:
        yield log
        code = 0
    finally:
        run.finish(exit_code=code)


OPENED: dict[str, Callable[[str, Mapping[str, Any]], AbstractContextManager[Log]]] = {
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
