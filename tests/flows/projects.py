"""Small DVC projects of trivial stages, which need no model."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flows.engine.stage_run import environment
from tests.conftest import ROOT

JOURNAL = "journal.txt"


@dataclass(frozen=True)
class Trivial:
    """A stage that joins what it reads: `reads` are other stages, `params` keys of params.yaml."""

    reads: Sequence[str] = ()
    params: Sequence[str] = ("seed",)
    before: str = "true"
    result: str = "$(cat {files})"
    files: list[str] = field(default_factory=lambda: ["raw.txt"])

    def as_yaml(self, name: str) -> dict[str, object]:
        """The stage's entry in dvc.yaml."""
        files = [f"{other}.txt" for other in self.reads] or self.files
        written = self.result.format(files=" ".join(files))
        command = f'{self.before} && echo {name} >> {JOURNAL} && echo "{name} of {written}" > {name}.txt'
        return {"cmd": command, "deps": files, "params": list(self.params), "outs": [f"{name}.txt"]}


def write_project(root: Path, stages: dict[str, Trivial]) -> Path:
    """Write a DVC project without Git: dvc.yaml, the project's own params.yaml and one raw file."""
    (root / ".dvc").mkdir(parents=True)
    config = "[core]\n    no_scm = true\n    analytics = false\n    check_update = false\n"
    (root / ".dvc" / "config").write_text(config, encoding="utf-8")
    (root / "raw.txt").write_text("raw\n", encoding="utf-8")
    shutil.copy(ROOT / "params.yaml", root)
    write_definition(root, stages)
    return root


def write_definition(root: Path, stages: dict[str, Trivial]) -> None:
    """Write dvc.yaml."""
    definition = {"stages": {name: stage.as_yaml(name) for name, stage in stages.items()}}
    (root / "dvc.yaml").write_text(yaml.safe_dump(definition, sort_keys=False), encoding="utf-8")


def add_stage(root: Path, name: str, entry: dict[str, object]) -> None:
    """Add a stage as dvc.yaml has it."""
    path = root / "dvc.yaml"
    definition = yaml.safe_load(path.read_text(encoding="utf-8"))
    definition["stages"][name] = entry
    path.write_text(yaml.safe_dump(definition, sort_keys=False), encoding="utf-8")


def run_dvc(root: Path, *arguments: str) -> str:
    """Run DVC, which must succeed, and return everything it said."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def journal(root: Path) -> list[str]:
    """The stages whose commands ran, in the order in which they ran."""
    path = root / JOURNAL
    return path.read_text(encoding="utf-8").split() if path.is_file() else []


def lock_bytes(root: Path) -> bytes:
    """dvc.lock as it is."""
    return (root / "dvc.lock").read_bytes()


def newest_flow_run(client: Any) -> Any:
    """The flow run that began last; runs that a schedule has planned for later do not count."""
    from prefect.client.schemas.sorting import FlowRunSort

    runs = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=200)
    return next(run for run in runs if run.state is not None and not run.state.is_scheduled())
