"""One run: its options, its plan in a locked workspace, and its execution."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from flows.engine.dag import Planned, Stage, inspect, plan
from flows.engine.edit_params import difference, edit_params, edited
from flows.engine.lock_file import repro_order, settle
from flows.engine.registry_state import REGISTERING_STAGE, require_registry
from flows.engine.run_record import FlowRun
from flows.engine.scheduler import Elsewhere, StageRuns, Watch, default_jobs
from flows.engine.stage_outcome import StageResult
from flows.engine.stage_run import DvcProcesses, Inspection
from flows.engine.workspace import check_lock_file, workspace
from flows.reporting.publish import publish
from flows.reporting.webhook import tell_failure
from tasks.support.preflight import check_project
from tasks.support.stage import arguments_in_dvc_yaml, explain_os_error
from vocabgraft.config.params import PARAMS_FILE, Params, load_params, parse_params_text, read_params_text
from vocabgraft.config.stages import BaseParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import REGISTRY_PREFIX
from vocabgraft.storage.artifacts import read_json

DVC_FILE = Path("dvc.yaml")
IDENTIFYING_STAGE = "validate_data"
RESIZING_STAGE = "resize_base"
ROOT = Path()
# Exit code: all stages are done and the model is registered, but the report could not be written.
NO_REPORT = 3
# Exit code after a signal, as in a shell: 128 plus the signal's number.
SIGNALLED = 128


@dataclass(frozen=True)
class RunOptions:
    """The options of a run.

    Attributes:
        settings: assignments `SECTION.KEY=VALUE`, applied to params.yaml first.
        until: last stage to run; None for all.
        only: the only stage to run; None for all.
        force: whether unchanged stages run too.
        keep_going: whether a failure stops only the stages that need the failed one.
        jobs: number of stages at the same time; None for the default.
        wait: whether to wait for another run in this workspace instead of refusing.
        ray: address of a Ray cluster for the stages whose `meta` has resources; None runs them here too.
    """

    settings: tuple[str, ...] = ()
    until: str | None = None
    only: str | None = None
    force: bool = False
    keep_going: bool = False
    jobs: int | None = None
    wait: bool = False
    ray: str | None = None

    def __post_init__(self) -> None:
        if self.until is not None and self.only is not None:
            raise VocabgraftError(f"--until {self.until} and --only {self.only} exclude each other; give only one")
        if self.jobs is not None and self.jobs < 1:
            raise VocabgraftError(f"--jobs is {self.jobs}; it must be 1 or more")


@dataclass(frozen=True)
class Prepared:
    """A plan in a locked workspace, ready for `execute`."""

    options: RunOptions
    started: datetime
    stages: Sequence[Stage]
    planned: Sequence[Planned]
    processes: DvcProcesses

    @property
    def jobs(self) -> int:
        """Number of stages that run at the same time."""
        return self.options.jobs or default_jobs()


@dataclass(frozen=True)
class Finished:
    """A finished run: its stages, whether its report was written, and the signal that stopped it."""

    stages: Sequence[Stage]
    results: Sequence[StageResult]
    told: bool
    stopped_by: int | None = None

    @property
    def failed(self) -> list[str]:
        """Names of the stages that did not succeed."""
        return [result.name for result in self.results if not result.outcome.succeeded]


@contextmanager
def prepared_run(
    options: RunOptions, say: Callable[[str], None], meanwhile: Callable[[], None] = lambda: None
) -> Iterator[Prepared]:
    """Lock the workspace, repair what a killed run left, and plan. If planning fails, the report says so.

    `meanwhile` is called while another process reads the DAG.

    Raises:
        VocabgraftError: if another run holds the workspace, or planning fails.
    """
    started = datetime.now(UTC)
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(workspace(ROOT, options.wait, say))
        except OSError as error:
            # Another run may hold the workspace, so its report is left alone.
            tell_failure(FlowRun(started, [], [], failure=explain_os_error(error)), ROOT)
            raise VocabgraftError(explain_os_error(error)) from error
        processes = DvcProcesses(ROOT, lock)
        stack.callback(processes.close)
        try:
            check_lock_file(ROOT / "dvc.lock")
            settle(ROOT)
            stages, planned = _plan_beside(processes, options, say, meanwhile)
            require_registry({entry.stage.name for entry in planned if entry.runs})
        except (VocabgraftError, OSError) as error:
            raise _reported(FlowRun(started, [], []), error) from error
        yield Prepared(options, started, stages, planned, processes)


def _reported(run: FlowRun, error: VocabgraftError | OSError) -> VocabgraftError:
    """Pass the reason of a run's early end to the report and the hook, and return it as an error."""
    failure = explain_os_error(error) if isinstance(error, OSError) else str(error)
    if DVC_FILE.is_file():
        run = replace(run, failure=failure)
        publish(run, ROOT)
        tell_failure(run, ROOT)
    return VocabgraftError(failure)


def make_plan(options: RunOptions, say: Callable[[str], None]) -> tuple[list[Stage], list[Planned]]:
    """All stages, and the stages of this run with their reasons, as if params.yaml already had the settings.

    Writes no file of the project; DVC caches file hashes in its own folder.

    Raises:
        VocabgraftError: for wrong settings, stages or files.
    """
    check_lock_file(ROOT / "dvc.lock")
    text = read_params_text(PARAMS_FILE)
    planned = edited(text, options.settings, str(PARAMS_FILE)) if options.settings else text
    if options.settings:
        say(difference(text, planned, str(PARAMS_FILE)) or "params.yaml has these values already")
    params = parse_params_text(planned, str(PARAMS_FILE))
    _check(options, params, say)
    return _planned(options, params.base, *inspect(ROOT, say, planned if planned != text else None))


def _check(options: RunOptions, params: Params, say: Callable[[str], None]) -> None:
    """Run the checks with which validate_data starts; nothing if the DAG lacks that stage."""
    command = arguments_in_dvc_yaml(IDENTIFYING_STAGE)
    if not command:
        return
    raw = Path(command[command.index("--raw") + 1])
    resizing = arguments_in_dvc_yaml(RESIZING_STAGE)
    resized = Path(resizing[resizing.index("--out") + 1]) if resizing else None
    check_project(params, raw if options.only in (None, IDENTIFYING_STAGE) else None, say, resized)


def _plan_beside(
    processes: DvcProcesses, options: RunOptions, say: Callable[[str], None], meanwhile: Callable[[], None]
) -> tuple[list[Stage], list[Planned]]:
    """The plan of a run: edits params.yaml, and reads the DAG in another process.

    Importing DVC and reading the DAG take more than a second of CPU.
    """
    processes.warm_up()
    check_lock_file(ROOT / "dvc.lock")
    if options.settings:
        say(edit_params(PARAMS_FILE, options.settings) or "params.yaml has these values already")
    params = load_params()
    inspection = Inspection(processes)
    meanwhile()
    return _planned(options, params.base, *inspection.result(say))


def _planned(
    options: RunOptions, base: BaseParams, stages: list[Stage], changed: dict[str, list[str]]
) -> tuple[list[Stage], list[Planned]]:
    return stages, plan(stages, changed, options.until, _forced(stages, options, base), options.only)


def execute(
    prepared: Prepared,
    run: Callable[[StageRuns], list[StageResult]],
    prefect_run: str | None = None,
    watch: Watch | None = None,
) -> Finished:
    """Run the planned stages, leave dvc.lock as `dvc repro` would, and publish the results.

    Raises:
        VocabgraftError: if a file of the flow itself cannot be written, as on a full disk; report and hook get the
            reason.
    """
    keep_going, jobs = prepared.options.keep_going, prepared.jobs
    results: list[StageResult] = []
    record = FlowRun(prepared.started, prepared.stages, results, prefect_run=prefect_run)
    try:
        with repro_order(ROOT, prepared.stages), _cluster(prepared.options.ray) as elsewhere:
            runs = StageRuns(prepared.planned, ROOT, prepared.processes, jobs, keep_going, elsewhere, watch)
            results.extend(run(runs))
    except OSError as error:
        raise _reported(record, error) from error
    published = publish(record, ROOT)
    tell_failure(record, ROOT)
    return Finished(prepared.stages, results, published, runs.stopped_by)


@contextmanager
def _cluster(address: str | None) -> Iterator[Elsewhere | None]:
    if address is None:
        yield None
        return
    from flows.remote.ray_tasks import stages_on

    with stages_on(address, ROOT) as elsewhere:
        yield elsewhere


def _forced(stages: Sequence[Stage], options: RunOptions, base: BaseParams) -> frozenset[str]:
    if options.force:
        return frozenset(stage.name for stage in stages)
    return frozenset({IDENTIFYING_STAGE}) if base_moved(stages, base) else frozenset()


def base_moved(stages: Sequence[Stage], base: BaseParams) -> bool:
    """Whether the base differs from that of the last run, although its name (an alias, a folder) is the same."""
    floating = base.model.startswith(REGISTRY_PREFIX) or Path(base.model).is_dir()
    identity = _output(stages, IDENTIFYING_STAGE, "base.json")
    if not floating or identity is None or _is_own_result(stages, base.model):
        return False
    from tasks.support.models import resolve_base

    return bool(resolve_base(base)[1].as_json() != read_json(identity))


def _is_own_result(stages: Sequence[Stage], model: str) -> bool:
    """Whether this pipeline made the registered model; extending it again would add nothing."""
    registration = _output(stages, REGISTERING_STAGE, "registration.json")
    if registration is None or not model.startswith(REGISTRY_PREFIX):
        return False
    from tasks.registry.lookup import digest_of_registered

    return bool(digest_of_registered(model) == read_json(registration)["content_digest"])


def _output(stages: Sequence[Stage], name: str, file: str) -> Path | None:
    """A file of a stage's output; None if the stage or the file does not exist."""
    found = next((stage.outs[0] / file for stage in stages if stage.name == name), None)
    return found if found is not None and found.is_file() else None
