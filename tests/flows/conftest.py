"""One Prefect server for all tests of flows: starting one takes seconds."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _events_go_to_the_present_server() -> Iterator[None]:
    """Prefect sends every event of a process to the server that was named at its first one, which may be gone."""
    yield
    if "prefect.events.worker" in sys.modules:
        sys.modules["prefect.events.worker"].EventsWorker.drain_all(timeout=10)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A temporary Prefect server with a database of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=240):
        yield
