"""The schedule: a process that runs the flow at fixed times, and decides on overlapping and missed runs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.engine.signals import interrupted_by_sigterm
from flows.reporting.webhook import post
from flows.run import ROOT
from flows.service.servers import answers, prefect_server, started
from vocabgraft.errors import VocabgraftError
from vocabgraft.printable import print_line
from vocabgraft.storage.locks import only_one

FLOW = "build_model"
LOCK = Path(".dvc/tmp/schedule.lock")
SERVER_LOG = Path(".dvc/tmp/prefect_server.log")
DEFAULT_CRON, DEFAULT_PORT = "0 3 * * *", 4200
# Environment variable that Prefect sets in the process of a flow run.
RUN_ID = "PREFECT__FLOW_RUN_ID"


def serve_here(cron: str, timezone: str | None, name: str, overlap: str, port: int) -> None:
    """Serve this folder's flow until Ctrl-C, with a running Prefect server or a new one.

    Raises:
        VocabgraftError: if it cannot start.
    """
    try:
        schedule = _schedule(cron, timezone)
        with interrupted_by_sigterm(), _only_one(ROOT), _server(ROOT, port):
            serve(schedule, name, overlap)
    except KeyboardInterrupt:
        return


def serve(schedule: Any, name: str, overlap: str) -> None:
    """Serve the flow until a signal ends it; needs a server (PREFECT_API_URL).

    Args:
        schedule: Prefect's schedule; with None, runs only start on request.
        name: name of the deployment, `build_model/NAME`.
        overlap: `queue` or `skip` a run that is due during another one.

    Raises:
        VocabgraftError: if the deployment belongs to another project.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.types.entrypoint import EntrypointType

    from flows.prefect_flow import build_model

    settle_earlier_runs(name, ROOT)
    strategies = {"queue": ConcurrencyLimitStrategy.ENQUEUE, "skip": ConcurrencyLimitStrategy.CANCEL_NEW}
    build_model.serve(
        name=name,
        schedule=schedule,
        global_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=strategies[overlap]),
        parameters={"wait": True},
        tags=[_tag(ROOT)],
        # A restarted service continues, and settles the runs that were due meanwhile.
        pause_on_shutdown=False,
        # By module name, because the module may lie outside the working folder.
        entrypoint_type=EntrypointType.MODULE_PATH,
    )


def settle_earlier_runs(name: str, root: Path) -> None:
    """Correct the state of every run that an earlier schedule left open.

    A run that is Running but has no process on this machine becomes Crashed: the machine was restarted, or the process
    killed. Of the runs that were due while no schedule ran, the newest one still runs. The others become Cancelled, as
    Missed, because the flow does all pending work in one run.

    Raises:
        VocabgraftError: if the deployment belongs to another project.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Cancelled, Crashed

    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(f"{FLOW}/{name}")
        except ObjectNotFound:
            return
        if _tag(root) not in deployment.tags:
            raise VocabgraftError(
                f"the deployment {FLOW}/{name} belongs to another folder ({', '.join(deployment.tags) or 'unknown'}); "
                f"choose another --name, or delete that one with `prefect deployment delete {FLOW}/{name}`"
            )
        for run in _runs_at_work(client, deployment.id):
            if not _has_process(str(run.id)):
                reason = "its process is gone: the machine was restarted or the process was killed during the run"
                client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
                _say(f"run {run.name} has crashed: {reason}")
                post(root, str(run.id), [], f"run {run.name} crashed: {reason}")
        for run in _runs_overdue(client, deployment.id)[1:]:
            reason = "no schedule was running when it was due; a later run does its work"
            client.set_flow_run_state(run.id, Cancelled(name="Missed", message=reason), force=True)
            _say(f"run {run.name}, due {run.expected_start_time:%Y-%m-%d %H:%M} UTC, was missed")


def _runs_at_work(client: Any, deployment: Any) -> list[Any]:
    from prefect.client.schemas.objects import StateType

    return _runs(client, deployment, [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING])


def _runs_overdue(client: Any, deployment: Any) -> list[Any]:
    """Runs that were due before now and have not started, the newest first."""
    from prefect.client.schemas.filters import FlowRunFilterExpectedStartTime
    from prefect.client.schemas.objects import StateType
    from prefect.types._datetime import now

    instant: Any = now("UTC")
    due = FlowRunFilterExpectedStartTime(before_=instant)
    return _runs(client, deployment, [StateType.SCHEDULED], expected_start_time=due)


def _runs(client: Any, deployment: Any, states: list[Any], **more: Any) -> list[Any]:
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.sorting import FlowRunSort

    found: list[Any] = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)), **more),
        deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment])),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
    )
    return found


def _has_process(run: str) -> bool:
    """Whether this machine has a process of a flow run; it survives a killed schedule."""
    import psutil

    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_ID) == run and process.status() != psutil.STATUS_ZOMBIE:
                return True
        except (psutil.Error, OSError):
            # It has ended, or belongs to another user, so this schedule did not start it.
            continue
    return False


def _tag(root: Path) -> str:
    return f"folder:{root.resolve()}"


def _schedule(cron: str, timezone: str | None) -> Any:
    """Prefect's schedule for a cron line, in local time unless a time zone is given.

    Raises:
        VocabgraftError: for an invalid line or zone.
    """
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.schedules import Cron
    from pydantic import ValidationError
    from tzlocal import get_localzone_name

    zone = timezone or get_localzone_name()
    try:
        # `Cron` itself does not check the zone.
        CronSchedule(cron=cron, timezone=zone)
        return Cron(cron, timezone=zone)
    except (ValidationError, ValueError) as error:
        raise VocabgraftError(
            f"--cron {cron!r} with --timezone {zone!r} is not a schedule ({_why(error)}); use e.g. "
            '--cron "0 3 * * *" --timezone Europe/Berlin'
        ) from error


def _why(error: ValueError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "error" in line]
    return lines[-1].partition(" [type=")[0] if lines else str(error)


@contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Allow one schedule per folder: two would each mark the other's runs as crashed."""
    if not (root / ".dvc").is_dir():
        raise VocabgraftError(f"{root.resolve()} is not a DVC project; run from the project's root")
    with only_one(root / LOCK, "a schedule serves this folder already"):
        yield


@contextmanager
def _server(root: Path, port: int) -> Iterator[None]:
    """A Prefect server: the one at PREFECT_API_URL, a running one on this machine, or a new one."""
    from prefect.settings import PREFECT_API_URL

    named = PREFECT_API_URL.value()
    address = named or f"http://127.0.0.1:{port}/api"
    if answers(f"{address}/health"):
        _say(f"using the Prefect server at {address}")
        with _as_the_api(address):
            yield
        return
    if named is not None and named != f"http://127.0.0.1:{port}/api":
        raise VocabgraftError(f"no Prefect server answers at {named} (PREFECT_API_URL); start it or unset the variable")
    server = prefect_server(port, root / SERVER_LOG)
    with started([server]), _as_the_api(address):
        _say(f"started a Prefect server at {address}; its log is {server.log}")
        yield


@contextmanager
def _as_the_api(address: str) -> Iterator[None]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    # The setting is for this process, the variable for its children.
    os.environ["PREFECT_API_URL"] = address
    with temporary_settings({PREFECT_API_URL: address}):
        yield


def _say(text: str) -> None:
    print_line(f"schedule: {text}")
