"""The command `vocabgraft`: calls the pipeline, which belongs to the project and not to the library."""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import NoReturn

from vocabgraft.printable import warn

WORKFLOW_TOOLS = ("dvc", "great_expectations", "mlflow", "prefect", "typer")
USAGE_ERROR = 2


def main() -> None:
    """Run the command line of the pipeline, or say what to install if it is missing."""
    # The name is a string, since no module of the library imports the pipeline.
    if find_spec("flows") is None:
        _refuse(
            "only the Python library is installed (`import vocabgraft`). The commands run in a checkout of the "
            'project: clone its repository, then `make run`, or `pip install -e ".[pipeline]"`'
        )
    if missing := [tool for tool in WORKFLOW_TOOLS if find_spec(tool) is None]:
        _refuse(
            f"the pipeline needs {', '.join(missing)}, not installed here. In the project's folder: "
            '`pip install -c constraints.txt -e ".[pipeline]"`'
        )
    import_module("flows.cli").main()


def _refuse(message: str) -> NoReturn:
    warn(f"vocabgraft: {message}")
    sys.exit(USAGE_ERROR)
