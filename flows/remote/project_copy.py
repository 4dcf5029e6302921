"""Contents of a project copy: the code at the commit, and DVC's configuration of cache and remote."""

import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vocabgraft.errors import VocabgraftError

# Each copy gets these files from the working tree.
CARRIED = ("params.yaml", "dvc.lock")
LOCAL_CONFIG = ".dvc/config.local"


def committed_code(root: Path, beside: Collection[str] = ()) -> tuple[str, bytes]:
    """The current commit, and its files below `root` as a tar archive.

    Args:
        root: the project's folder.
        beside: files that may differ from the commit, in addition to params.yaml and dvc.lock.

    Raises:
        VocabgraftError: without a commit, or if code or data differ from it, because a copy would run something else.
    """
    commit = _git(root, "rev-parse", "HEAD").decode().strip()
    changed = _git(root, "status", "--porcelain", "-uall", ".").decode().splitlines()
    other = [line for line in changed if _matters(line, {*CARRIED, *beside})]
    if other:
        raise VocabgraftError(
            f"copies are made from the commit {commit[:12]}, but these files differ from it:\n"
            + "\n".join(other[:10])
            + "\ncommit them first (only params.yaml and dvc.lock may differ; each copy gets them as they are)"
        )
    return commit, _git(root, "archive", "--format=tar", commit)


def _matters(line: str, carried: Collection[str]) -> bool:
    """Whether a line of `git status` is a change that a copy would lack: code, raw data, or a tracked file."""
    state, name = line[:2], line[3:].strip('"')
    if state == "??":
        return name.endswith(".py") or name.startswith("data/raw/")
    return name not in carried


def _git(root: Path, *arguments: str) -> bytes:
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True).stdout
    except FileNotFoundError as error:
        raise VocabgraftError("git is not installed; copies are made from a commit") from error
    except subprocess.CalledProcessError as error:
        raise VocabgraftError(
            f"git {arguments[0]}: {error.stderr.decode(errors='replace').strip()}; copies are made from a commit"
        ) from error


def carried_files(root: Path) -> dict[str, str]:
    """The text of the files that each copy gets from the working tree."""
    return {name: (root / name).read_text(encoding="utf-8") for name in CARRIED if (root / name).is_file()}


def local_config(root: Path, share_cache: bool) -> str:
    """DVC's local configuration for a copy: no Git, this project's remotes and, if shared, its cache.

    The text includes the credentials of the remotes, so treat it as a secret.
    """
    from configobj import ConfigObj

    repo = _open(root)
    config = ConfigObj()
    config["core"] = {"no_scm": "true", "analytics": "false", "check_update": "false"}
    if default := repo.config["core"].get("remote"):
        config["core"]["remote"] = default
    for name, remote in repo.config["remote"].items():
        settings = {key: str(value) for key, value in remote.items()}
        settings["url"] = _absolute(settings["url"], Path(repo.dvc_dir))
        config[f'remote "{name}"'] = settings
    if share_cache:
        config["cache"] = {"dir": str(Path(repo.cache.local.path).resolve())}
    lines: list[str] = config.write()
    return "\n".join(lines) + "\n"


def require_remote(root: Path) -> None:
    """Raise unless the project has a default DVC remote."""
    if not _open(root).config["core"].get("remote"):
        raise VocabgraftError(
            "the machines of a cluster share data through a DVC remote, but this project has none; "
            '`dvc remote add -d store s3://bucket/path` (docs/operations.md, "Storage")'
        )


def _absolute(url: str, dvc_folder: Path) -> str:
    return url if "://" in url or ":" in url.partition("/")[0] else str((dvc_folder / url).resolve())


def _open(root: Path) -> Any:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        return Repo(str(root))
    except DvcException as error:
        raise VocabgraftError(f"DVC cannot read {root}: {error}; run from the project's root") from error
