"""The DAG of dvc.yaml, read through DVC, and the plan of a run: which stages run, and why."""

import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.bounds import special_files

# Limits for one line of a plan.
FILES_NAMED, VALUE_LENGTH = 3, 30
FIRST_RUN = "first run: it has no result here yet"
NOT_IN_LOCK = "first run: it is not in dvc.lock"
DEFAULT_RETRIES = 2
SECONDS_BETWEEN_LOOKS, SECONDS_TO_GIVE_UP = 1.0, 3600.0
# Repeats vocabgraft.config.params, which is slow to import in a DVC process.
PARAMS_FILE = "params.yaml"
META = ("timeout_s", "retries")
RESOURCES = ("cpus", "gpus", "nodes")


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml: the stages whose outputs it reads, and its own outputs.

    Attributes:
        lock_file: the file in which DVC records it, relative to the project's root.
        key: its name in that file.
        timeout: seconds after which it is stopped (`timeout_s` of its `meta`); None for no limit.
        retries: retries after a crash (`retries` of its `meta`).
        resources: what it takes from a cluster (`resources` of its `meta`): `cpus` and `gpus` per machine, and `nodes`,
            the number of machines. If empty, it runs on this machine.
    """

    name: str
    upstream: tuple[str, ...]
    outs: tuple[Path, ...]
    lock_file: str = "dvc.lock"
    key: str = ""
    timeout: float | None = None
    retries: int = DEFAULT_RETRIES
    resources: Mapping[str, float] = field(default_factory=dict)

    @property
    def nodes(self) -> int:
        """The number of cluster machines that run it together."""
        return int(self.resources.get("nodes", 1))


@dataclass(frozen=True)
class Planned:
    """A stage, its own reasons to run, and the stages that run before it. Without either, nothing changed."""

    stage: Stage
    own: tuple[str, ...] = ()
    behind: tuple[str, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reasons to run, one per line; a first run needs no other."""
        if not self.behind or {FIRST_RUN, NOT_IN_LOCK} & set(self.own):
            return self.own
        return (*self.own, f"{', '.join(self.behind)} {'runs' if len(self.behind) == 1 else 'run'} before it")

    @property
    def runs(self) -> bool:
        """Whether there is a reason to run the stage."""
        return bool(self.own or self.behind)


def inspect(
    root: Path, say: Callable[[str], None], params: str | None = None
) -> tuple[list[Stage], dict[str, list[str]]]:
    """Every stage that `dvc repro` would visit, in its order, and the changes by stage.

    Waits for files that another DVC process writes, because their hashes are not known before.

    Args:
        root: the project's folder.
        say: prints the reason for waiting.
        params: text that DVC reads instead of params.yaml; None reads the file.

    Raises:
        VocabgraftError: if DVC cannot read the project, or a stage's `meta` is wrong.
    """
    repo = _open(root, params)
    return _stages(repo), _changes(repo, say)


def read_dag(root: Path) -> list[Stage]:
    """Every stage, in the order in which `dvc repro` runs them.

    Raises:
        VocabgraftError: if DVC cannot read the project, or a stage's `meta` is wrong.
    """
    return _stages(_open(root))


def changes(root: Path) -> dict[str, list[str]]:
    """The changes by stage: command, code, other dependencies, parameters or outputs, one per line."""
    return _changes(_open(root), lambda _: None)


def _stages(repo: Any) -> list[Stage]:
    from dvc.exceptions import DvcException
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    try:
        graph = get_active_graph(repo.index.graph)
        ordered = plan_repro(graph, collect_stages(repo, [str(Path(repo.root_dir) / "dvc.yaml")]))
    except DvcException as error:
        raise VocabgraftError(f"DVC cannot read the stages: {error}") from error
    return [
        Stage(
            name=stage.addressing,
            upstream=tuple(sorted(upstream.addressing for upstream in graph.successors(stage))),
            outs=tuple(Path(repo.fs.relpath(out.fs_path, repo.root_dir)) for out in stage.outs),
            lock_file=_lock_file(repo, stage),
            key=getattr(stage, "name", None) or stage.addressing,
            **_limits(stage),
        )
        for stage in ordered
    ]


def _lock_file(repo: Any, stage: Any) -> str:
    return str(Path(repo.fs.relpath(stage.path, repo.root_dir)).with_suffix(".lock"))


def _limits(stage: Any) -> dict[str, Any]:
    meta = stage.meta or {}
    for name in META:
        value = meta.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise VocabgraftError(
                f"stage {stage.addressing}: meta.{name} is {value!r}; it should be a number, 0 or more"
            )
    limits = {"timeout": meta.get("timeout_s"), "retries": int(meta.get("retries", DEFAULT_RETRIES))}
    return {**limits, "resources": _resources(stage.addressing, meta.get("resources", {}))}


def _resources(name: str, given: Any) -> dict[str, float]:
    wrong = not isinstance(given, dict) or any(
        key not in RESOURCES or isinstance(value, bool) or not isinstance(value, int | float) or value < 0
        for key, value in given.items()
    )
    if wrong or not float(given.get("nodes", 1)).is_integer() or given.get("nodes", 1) < 1:
        raise VocabgraftError(
            f"stage {name}: meta.resources is {given!r}; it should be e.g. {{cpus: 4, gpus: 1, nodes: 2}}, numbers of "
            "0 or more, and nodes a whole number of 1 or more"
        )
    return {key: float(value) for key, value in given.items()}


def _changes(repo: Any, say: Callable[[str], None]) -> dict[str, list[str]]:
    from dvc.exceptions import DvcException

    try:
        _refuse_special_files(repo)
        status = _status(repo, say)
        stages = {stage.addressing: stage for stage in repo.index.stages}
    except DvcException as error:
        raise VocabgraftError(f"DVC cannot say what changed: {error}") from error
    made = {Path(out.fs_path) for stage in stages.values() for out in stage.outs}
    return {name: _reasons(stages[name], entries, made) for name, entries in status.items()}


def _refuse_special_files(repo: Any) -> None:
    """Refuse dependencies that DVC would hash without an end, such as a FIFO in data/raw."""
    made = {out.fs_path for stage in repo.index.stages for out in stage.outs}
    paths = {dep.fs_path for stage in repo.index.stages for dep in stage.deps if dep.protocol == "local"} - made
    if found := [found for path in sorted(paths) for found in special_files(Path(repo.fs.relpath(path)))]:
        raise VocabgraftError(
            "\n".join(["these can be neither read nor hashed; delete them or put files there:", *found])
        )


def _status(repo: Any, say: Callable[[str], None]) -> Mapping[str, Any]:
    from dvc.lock import LockError

    started, told = time.monotonic(), ""
    while True:
        try:
            return _status_at_once(repo)
        except LockError as error:
            if time.monotonic() - started > SECONDS_TO_GIVE_UP:
                raise
            if (reason := str(error).split("\n\n")[0]) != told:
                told = reason
                say(f"the plan waits: {reason}")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _status_at_once(repo: Any) -> dict[str, Any]:
    """The same as `Repo.status`, but opens DVC's record of readers once instead of twice per stage.

    With 200 stages this takes 1.2 s of CPU instead of 2.2 s.
    """
    from inspect import unwrap

    from dvc.rwlock import rwlock
    from dvc.stage import Stage as DvcStage

    status: dict[str, Any] = {}
    with repo.lock:
        stages = repo.index.stages
        read = [item.fs_path for stage in stages for item in (*stage.deps, *stage.outs) if item.protocol == "local"]
        hardlink = repo.config["core"].get("hardlink_lock", False)
        with rwlock(repo.tmp_dir, repo.fs, " ".join(sys.argv), read, [], hardlink):
            for stage in stages:
                status |= unwrap(DvcStage.status)(stage, check_updates=True)
    return status


def _reasons(stage: Any, entries: Sequence[Any], made: Collection[Path]) -> list[str]:
    """DVC's status of a stage as short lines; `made` are the outputs of all stages."""
    if stage.cmd and not any(dep.hash_info for dep in (*stage.deps, *stage.outs)):
        return [NOT_IN_LOCK]
    first_run = _has_no_result(stage, entries)
    lines = [FIRST_RUN] if first_run else []
    lines += [entry for entry in entries if isinstance(entry, str)]
    of_files: dict[str, str] = {}
    for entry in entries:
        for kind, paths in () if isinstance(entry, str) else entry.items():
            for path, state in paths.items():
                if first_run and (kind == "changed outs" or (state == "deleted" and _is_made(stage, path, made))):
                    continue
                if isinstance(state, dict):
                    lines += [_parameter(stage, path, key, how) for key, how in state.items()]
                elif kind == "changed deps" and path.endswith(".py"):
                    of_files[path] = state
                else:
                    lines.append(f"{'dep' if kind == 'changed deps' else 'output'} {path}: {state}")
    # In a fresh clone, dvc.lock is often older than the code.
    return lines if first_run else [*_code(of_files), *lines]


def _has_no_result(stage: Any, entries: Sequence[Any]) -> bool:
    """Whether neither the workspace nor DVC's cache has any output of a stage, as in a fresh clone."""
    dicts = [entry for entry in entries if isinstance(entry, dict)]
    states = {path: state for entry in dicts for path, state in entry.get("changed outs", {}).items()}
    kept = [out for out in stage.outs if out.use_cache]
    return bool(kept) and all(states.get(str(out)) == "not in cache" and not out.exists for out in kept)


def _is_made(stage: Any, path: str, made: Collection[Path]) -> bool:
    found = next((Path(dep.fs_path) for dep in stage.deps if str(dep) == path), None)
    return found is not None and any(place in made for place in (found, *found.parents))


def _code(files: Mapping[str, str]) -> list[str]:
    if not files:
        return []
    named = ", ".join(sorted(files)[:FILES_NAMED]) + (", ..." if len(files) > FILES_NAMED else "")
    return [f"code: {len(files)} {'file' if len(files) == 1 else 'files'} ({named})"]


def _parameter(stage: Any, path: str, key: str, how: str) -> str:
    named = key if path == PARAMS_FILE else f"{path}: {key}"
    dep = next((dep for dep in stage.deps if str(dep) == path), None)
    if how != "modified" or dep is None:
        return f"param {named}: {how}"
    values = [_short(dep.hash_info.value.get(key)), _short(dep.read_params().get(key))]
    return f"param {named}: {how if None in values else ' -> '.join(map(str, values))}"


def _short(value: Any) -> str | None:
    text = repr(value)
    return text if len(text) <= VALUE_LENGTH else None


def plan(
    stages: Sequence[Stage],
    changed: Mapping[str, Sequence[str]],
    until: str | None = None,
    forced: frozenset[str] = frozenset(),
    only: str | None = None,
) -> list[Planned]:
    """The stages up to `until`, or only one, each with its reasons to run.

    A stage after one that runs may still be unchanged, if the outputs of that one stay the same.

    Raises:
        VocabgraftError: if dvc.yaml has no such stage.
    """
    running: set[str] = set()
    planned = []
    for stage in _chosen(stages, until, only):
        own = (*(["forced"] if stage.name in forced else []), *changed.get(stage.name, ()))
        behind = tuple(name for name in stage.upstream if name in running)
        if own or behind:
            running.add(stage.name)
        planned.append(Planned(stage, own, behind))
    return planned


def _chosen(stages: Sequence[Stage], until: str | None, only: str | None) -> Sequence[Stage]:
    if only is not None:
        return [stage_named(stages, only)]
    return stages if until is None else _with_upstream(stages, until)


def stage_named(stages: Sequence[Stage], name: str) -> Stage:
    """The stage with a name.

    Raises:
        VocabgraftError: if there is none, with the names that exist.
    """
    found = next((stage for stage in stages if stage.name == name), None)
    if found is None:
        raise VocabgraftError(f"there is no stage {name!r}; allowed: {', '.join(stage.name for stage in stages)}")
    return found


def cached_since(root: Path, name: str) -> datetime | None:
    """The time at which the run cache got the stage's current results; None if it does not have them.

    DVC records no commit there, so the time is that of the cache entry's file.
    """
    from dvc.stage.cache import _can_hash, _get_cache_hash, _get_stage_hash
    from dvc.stage.serialize import to_single_stage_lockfile

    repo = _open(root)
    (stage,) = repo.stage.collect(name)
    if not _can_hash(stage):
        return None
    value = _get_cache_hash(to_single_stage_lockfile(stage))
    entry = Path(repo.stage_cache._get_cache_path(_get_stage_hash(stage), value))
    return datetime.fromtimestamp(entry.stat().st_mtime).astimezone() if entry.is_file() else None


def recorded_inputs(lock_file: Path, stages: Sequence[Stage], names: Collection[str]) -> dict[str, Any]:
    """The inputs from which the named stages made their outputs, from dvc.lock.

    Returns:
        `files`: the hashes of all dependencies that no stage makes, by path; `params`: the parameters, by stage.
    """
    import yaml

    # PyYAML's C parser reads a dvc.lock of 1,700 lines in 0.03 s, the Python parser in 0.27 s.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    # A run that ended before any stage may have ended for a dvc.lock that cannot be read.
    content = yaml.load(lock_file.read_text(encoding="utf-8"), loader) if names and lock_file.is_file() else {}
    outs = [out.as_posix() for stage in stages for out in stage.outs]
    recorded = [(name, entry) for name, entry in content.get("stages", {}).items() if name in names]
    files = {
        dep["path"]: dep[dep.get("hash", "md5")]
        for _, entry in recorded
        for dep in entry.get("deps", ())
        if not any(dep["path"] == out or dep["path"].startswith(f"{out}/") for out in outs)
    }
    return {"files": files, "params": {name: entry.get("params", {}) for name, entry in recorded}}


def _open(root: Path, params: str | None = None) -> Any:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        files = None if params is None else _with_text((root / PARAMS_FILE).resolve(), params)
        return Repo(str(root), fs=files, _wait_for_lock=True)
    except DvcException as error:
        raise VocabgraftError(f"DVC cannot read {root}: {error}; run from the project's root") from error


def _with_text(path: Path, text: str) -> Any:
    """DVC's local file system, in which one file has another text."""
    from dvc.fs import LocalFileSystem

    class Edited(LocalFileSystem):  # type: ignore[misc]
        """Reads one text from memory."""

        def open(self, name: str, mode: str = "r", **options: Any) -> Any:
            if mode == "r" and Path(name).resolve() == path:
                return StringIO(text)
            return super().open(name, mode=mode, **options)

    return Edited()


def _with_upstream(stages: Sequence[Stage], until: str) -> list[Stage]:
    by_name = {stage.name: stage for stage in stages}
    stage_named(stages, until)
    wanted, open_names = {until}, [until]
    while open_names:
        for name in by_name[open_names.pop()].upstream:
            if name not in wanted:
                wanted.add(name)
                open_names.append(name)
    return [stage for stage in stages if stage.name in wanted]
