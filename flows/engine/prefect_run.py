"""Commands as Prefect flow runs, if a server is configured."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from vocabgraft.printable import warn

Result = TypeVar("Result")
PREFECT_SERVER = "PREFECT_API_URL"


def allow_temporary_server() -> None:
    """Let Prefect start a temporary server if none is configured. Call it before Prefect is imported.

    Starting takes 6 to 10 s, and on a busy machine more than Prefect's default limit of 20 s.
    """
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")


@contextmanager
def harmless(failure: str) -> Iterator[None]:
    """Turn an error of a log, an artifact or a forecast into a warning, so that it does not affect the outcome.

    Args:
        failure: start of the warning, before the error.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001  terminals, files and servers raise different errors
        warn(f"{failure}: {type(error).__name__}: {error}")


def recorded(name: str, work: Callable[[], Result]) -> Result:
    """Do the work as a run of the flow `name` if PREFECT_API_URL names a server, otherwise without Prefect.

    A temporary server would take 6 to 10 s to start, and nobody could look at the run afterwards.
    """
    if not os.environ.get(PREFECT_SERVER):
        return work()
    from prefect import flow

    return flow(name=name, persist_result=False, validate_parameters=False)(work)()
