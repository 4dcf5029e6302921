"""`vocabgraft stage NAME`: one stage, as `python -m tasks.NAME` runs it."""

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

    Paths are those of the stage's cmd in dvc.yaml, or given as options of the stage (python -m tasks.NAME --help). DVC
    does not record such a run: it is for trying out a change of code.
    """
    allowed = sorted(path.stem for path in Path(tasks.__path__[0]).glob("[!_]*.py"))
    if name not in allowed:
        raise VocabgraftError(f"there is no stage {name!r}; allowed: {', '.join(allowed)}")
    return run_stage(getattr(importlib.import_module(f"tasks.{name}"), name), context.args)
