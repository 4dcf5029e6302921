"""Commands as Prefect flow runs, where there is a server to record them."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from vocabgraft.printable import warn

Result = TypeVar("Result")
PREFECT_SERVER = "PREFECT_API_URL"


def allow_temporary_server() -> None:
    """Let Prefect, which must not be imported yet, start a server where none is named.

    That takes 6 to 10 s here and more on a busy machine, which Prefect's own 20 s do not allow for.
    """
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "true")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")


@contextmanager
def harmless(failure: str) -> Iterator[None]:
    """For what only tells of a run, such as a log, an artifact or a forecast: its faults are told and decide nothing.

    Args:
        failure: what to say when the block raises, before the reason.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001  it writes to a terminal, a file or a server, and each fails in its way
        warn(f"{failure}: {type(error).__name__}: {error}")


def recorded(name: str, work: Callable[[], Result]) -> Result:
    """Do the work as a run of the flow `name` where PREFECT_API_URL names a server, else without Prefect.

    A process without a server would spend 6 to 10 s to start a temporary one, of which nobody could read the run.
    """
    if not os.environ.get(PREFECT_SERVER):
        return work()
    from prefect import flow

    return flow(name=name, persist_result=False, validate_parameters=False)(work)()
