"""The DAG as DVC has it: read from dvc.yaml through DVC's own graph, never repeated here."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vocabgraft.errors import VocabgraftError


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml: the stages whose outputs it reads, and its own outputs."""

    name: str
    upstream: tuple[str, ...]
    outs: tuple[Path, ...]


@dataclass(frozen=True)
class Planned:
    """A stage and why it would run; no reason means that nothing about it changed."""

    stage: Stage
    reasons: tuple[str, ...]

    @property
    def runs(self) -> bool:
        """Whether there is a reason to run the stage."""
        return bool(self.reasons)


def read_dag(root: Path) -> list[Stage]:
    """Every stage, in the order in which `dvc repro` runs them.

    Raises:
        VocabgraftError: when DVC cannot read the project.
    """
    import networkx as nx

    graph = _open(root).index.graph
    return [
        Stage(
            name=stage.addressing,
            upstream=tuple(sorted(upstream.addressing for upstream in graph.successors(stage))),
            outs=tuple(Path(out.def_path) for out in stage.outs),
        )
        for stage in nx.dfs_postorder_nodes(graph)
    ]


def changes(root: Path) -> dict[str, list[str]]:
    """What changed, by stage: its dependencies, parameters, outputs or command."""
    status: Mapping[str, Any] = _open(root).status()
    return {name: [line for entry in entries for line in _describe(entry)] for name, entries in status.items()}


def plan(
    stages: Sequence[Stage],
    changed: Mapping[str, Sequence[str]],
    until: str | None = None,
    forced: frozenset[str] = frozenset(),
) -> list[Planned]:
    """The stages up to `until`, each with its reasons to run.

    A stage behind one that runs may turn out unchanged, when its upstream's outputs stay the same.

    Raises:
        VocabgraftError: for a stage that is not in dvc.yaml.
    """
    chosen = stages if until is None else _with_upstream(stages, until)
    running: set[str] = set()
    planned = []
    for stage in chosen:
        reasons = [*(["forced"] if stage.name in forced else []), *changed.get(stage.name, ())]
        reasons += [f"{name} runs before it" for name in stage.upstream if name in running]
        if reasons:
            running.add(stage.name)
        planned.append(Planned(stage, tuple(reasons)))
    return planned


def restore_lock_order(lock_file: Path, order: Sequence[str]) -> None:
    """Put the stages of dvc.lock into the order that `dvc repro` writes; parallel runs write as they finish."""
    from dvc.utils.serialize import dump_yaml, parse_yaml_for_update

    if not lock_file.is_file():
        return
    # DVC's own reader and writer, so that lines are folded as DVC folds them.
    content = parse_yaml_for_update(lock_file.read_text(encoding="utf-8"), str(lock_file))
    names = list(content["stages"])
    wanted = [name for name in order if name in names] + [name for name in names if name not in order]
    if names == wanted:
        return
    for name in wanted:
        content["stages"][name] = content["stages"].pop(name)
    dump_yaml(str(lock_file), content)


def recorded_inputs(lock_file: Path, stages: Sequence[Stage], names: Collection[str]) -> dict[str, Any]:
    """What the outputs of the named stages were made from, as dvc.lock has it.

    Returns:
        `files`: the hash of every dependency that no stage makes, by path; `params`: the parameters, by stage.
    """
    import yaml

    content = yaml.safe_load(lock_file.read_text(encoding="utf-8")) if lock_file.is_file() else {}
    outs = [out.as_posix() for stage in stages for out in stage.outs]
    recorded = [(name, entry) for name, entry in content.get("stages", {}).items() if name in names]
    files = {
        dep["path"]: dep[dep.get("hash", "md5")]
        for _, entry in recorded
        for dep in entry.get("deps", ())
        if not any(dep["path"] == out or dep["path"].startswith(f"{out}/") for out in outs)
    }
    return {"files": files, "params": {name: entry.get("params", {}) for name, entry in recorded}}


def _open(root: Path) -> Any:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        return Repo(str(root))
    except DvcException as error:
        raise VocabgraftError(f"DVC cannot read {root}: {error}; run from the project's root") from error


def _with_upstream(stages: Sequence[Stage], until: str) -> list[Stage]:
    by_name = {stage.name: stage for stage in stages}
    if until not in by_name:
        raise VocabgraftError(f"there is no stage {until!r}; allowed: {', '.join(by_name)}")
    wanted, open_names = {until}, [until]
    while open_names:
        for name in by_name[open_names.pop()].upstream:
            if name not in wanted:
                wanted.add(name)
                open_names.append(name)
    return [stage for stage in stages if stage.name in wanted]


def _describe(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    lines = []
    for kind, paths in entry.items():
        for path, state in paths.items():
            keys = [f"{key} {how}" for key, how in state.items()] if isinstance(state, dict) else [str(state)]
            lines += [f"{kind.removeprefix('changed ')}: {path} {key}" for key in keys]
    return lines
