"""`vocabgraft stage NAME`: one stage, as with `python -m tasks.NAME`."""

import importlib
from pathlib import Path
from typing import Annotated

from typer import Argument, Context

import tasks
from tasks.support.stage import run_stage
from vocabgraft.errors import VocabgraftError


def stage(
    context: Context,
    name: Annotated[str, Argument(help="The stage, e.g. evaluate_model.")],
) -> int:
    """Run one stage here, without DVC or Prefect.

    Paths are those of the stage's cmd in dvc.yaml, unless given as options (python -m tasks.NAME --help lists them).
    DVC does not record such a run. Use it to try out a code change.
    """
    allowed = sorted(path.stem for path in Path(tasks.__path__[0]).glob("[!_]*.py"))
    if name not in allowed:
        raise VocabgraftError(f"there is no stage {name!r}; allowed: {', '.join(allowed)}")
    return run_stage(getattr(importlib.import_module(f"tasks.{name}"), name), context.args)
