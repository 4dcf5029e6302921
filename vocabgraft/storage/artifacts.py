"""Artifact folders: written whole or not at all, with a manifest of content hashes."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.atomic import put_in_place, replace_text, work_beside

MANIFEST = "manifest.json"


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_digest(folder: Path) -> str:
    """Hex SHA-256 over the names and hashes of a folder's files, without its manifest."""
    return digest_of(hash_files(folder))


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` by relative POSIX path, without the manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    """Write readable JSON with sorted keys, whole or not at all; equal values give equal bytes."""
    replace_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file that an earlier stage wrote.

    Raises:
        VocabgraftError: when the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _missing(path) from error
    except (ValueError, RecursionError) as error:
        # Not JSON, not UTF-8, or nested too deep.
        raise VocabgraftError(f"{path} is damaged ({error}); `dvc checkout {path.parent}` brings it back") from error


def read_manifest(folder: Path) -> tuple[str, Mapping[str, str]]:
    """The content digest of an artifact folder, and the hash of each of its files.

    Raises:
        VocabgraftError: when the manifest is missing or damaged.
    """
    path = folder / MANIFEST
    content = read_json(path)
    digest, files = (content.get(key) if isinstance(content, dict) else None for key in ("digest", "files"))
    if not isinstance(digest, str) or not isinstance(files, dict) or not all(map(_is_text, files.values())):
        raise VocabgraftError(f"{path} is damaged (no digest and hashes); `dvc checkout {folder}` brings it back")
    return digest, files


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def require_artifact(path: Path) -> Path:
    """Return `path`, an artifact's folder or a part of one, after checking that the artifact is complete.

    Raises:
        VocabgraftError: when the path or its manifest is missing (a half-written folder).
    """
    if not path.exists():
        raise _missing(path)
    folder = path if path.is_dir() else path.parent
    if not any((parent / MANIFEST).is_file() for parent in (folder, *folder.parents)):
        raise VocabgraftError(f"{folder} has no {MANIFEST}, so it is incomplete; `dvc checkout {folder}` or run again")
    return path


@contextmanager
def new_folder(destination: Path, about: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Yield an empty folder that becomes `destination`, with its manifest, only if the block succeeds.

    Args:
        destination: replaced if it exists.
        about: entries of the manifest beside the hashes.
    """
    with work_beside(destination) as work:
        yield work
        _finish(work, about or {})
        put_in_place(work, destination)


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the manifest of a complete folder: the entries of `about`, and the content hashes of its files."""
    files = hash_files(folder)
    write_json(folder / MANIFEST, {**about, "digest": digest_of(files), "files": files})


def _finish(work: Path, about: Mapping[str, Any]) -> None:
    # mkdtemp and safetensors make private folders and files; an artifact gets the default modes.
    mask = os.umask(0)
    os.umask(mask)
    write_manifest(work, about)
    work.chmod(0o777 & ~mask)
    for path in work.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _missing(path: Path) -> VocabgraftError:
    stage = path.parts[1] if len(path.parts) > 1 and path.parts[0] == "data" else None
    remedy = f"`dvc repro {stage}` makes it" if stage and stage != "raw" else "check the name"
    return VocabgraftError(f"{path} is missing; {remedy}")
