"""The origin of a registered version: tags for base, data and commit, and its datasets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tasks.registry.register import DataSplit
from vocabgraft.config.datasets import COLUMNS
from vocabgraft.data.accepted import read_datasets
from vocabgraft.data.beir import INDEX
from vocabgraft.data.splits import SPLITS
from vocabgraft.model_folder.remote_code import describe_code
from vocabgraft.printable import printable
from vocabgraft.storage import git
from vocabgraft.storage.artifacts import digest_of, read_json, read_manifest, require_artifact

LOCK_FILE = Path("dvc.lock")
RAW = "data/raw"
CODE_TAG = "remote_code"
BASE_TAG = "base_digest"


def lineage_tags(base_identity: Path, datasets: Path, own_stage: str) -> dict[str, str]:
    """Tags for the base and its code, the data, the commit, and a digest of the other stages' entries in dvc.lock."""
    base = read_json(require_artifact(base_identity))
    locked = _locked_stages(own_stage)
    tags = {
        "base": base["model"],
        "base_sha256": base["sha256"],
        # Every file that loading reads: another pooling or prompt changes the embeddings of the same weights.
        BASE_TAG: digest_of([base["sha256"], base["tokenizer_sha256"], base.get("files") or {}]),
        CODE_TAG: describe_code(base.get("code")),
        "inputs_digest": digest_of(locked) if locked else "none",
        "data_raw": _raw_data_hash(locked),
        **{f"data.{split.name}.{split.split}": split.digest for split in data_splits(datasets)},
        "git_commit": git.commit() or "none",
        "git_dirty": str(git.has_changes()).lower(),
    }
    # As the registry stores them, because they are compared with the tags of other versions.
    return {key: printable(value) for key, value in tags.items()}


def data_splits(datasets: Path) -> list[DataSplit]:
    """The accepted splits that have rows, with the digests of their files."""
    _, files = read_manifest(require_artifact(datasets).parent)
    return [
        DataSplit(
            name=dataset.name,
            split=split,
            path=dataset.path(split),
            digest=files[f"{datasets.name}/{dataset.name}/{split}.parquet"],
            rows=dataset.rows(split),
            columns=COLUMNS[dataset.format],
        )
        for dataset in read_datasets(datasets)
        for split in SPLITS
        if dataset.rows(split)
    ]


def items_digest(datasets: Path) -> str:
    """A digest of all examples and benchmarks, because queries and documents come from all of their splits."""
    _, files = read_manifest(datasets.parent)
    # Without the list of benchmarks, which is written even if there are none.
    folders = (f"{datasets.name}/", "benchmarks/")
    chosen = {name: digest for name, digest in files.items() if name.startswith(folders)}
    return digest_of({name: digest for name, digest in chosen.items() if name != f"benchmarks/{INDEX}"})


def _locked_stages(own_stage: str) -> dict[str, Any]:
    """The entries of the other stages in dvc.lock; empty if DVC has run nothing."""
    content = yaml.safe_load(LOCK_FILE.read_text(encoding="utf-8")) if LOCK_FILE.is_file() else {}
    return {name: entry for name, entry in (content or {}).get("stages", {}).items() if name != own_stage}


def _raw_data_hash(locked: dict[str, Any]) -> str:
    return next((dep[dep.get("hash", "md5")] for dep in _deps(locked) if dep["path"] == RAW), "none")


def _deps(locked: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for entry in locked.values():
        yield from entry.get("deps", ())
