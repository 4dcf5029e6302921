"""The order of stages in dvc.lock: parallel stages are written as they end, and this restores `dvc repro`'s order."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.engine.dag import Stage
from vocabgraft.storage.atomic import replace_text

# The order to restore, kept while stages run, so that it survives a killed run.
DUE = Path(".dvc/tmp/build_model.order.json")


@contextmanager
def repro_order(root: Path, stages: Sequence[Stage]) -> Iterator[None]:
    """Leave each dvc.lock in the order of `dvc repro`, whatever order the stages end in.

    DVC keeps the order of a file and appends new stages in the order of the DAG.
    """
    due = {}
    for lock_file in sorted({stage.lock_file for stage in stages}):
        path = root / lock_file
        text = path.read_text(encoding="utf-8") if path.is_file() else None
        present = list(_stages_of(path) or ())
        due[lock_file] = {
            "order": present + [s.key for s in stages if s.lock_file == lock_file and s.key not in present],
            "text": text,
        }
    replace_text(root / DUE, json.dumps(due))
    try:
        yield
    finally:
        settle(root)


def settle(root: Path) -> None:
    """Restore the order of each dvc.lock after a run, also after a killed one.

    DVC writes the file in place, so a kill can truncate it. A truncated file gets its content from before that run; the
    run cache still has the run's results.
    """
    path = root / DUE
    try:
        due = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        # Truncated: the run was killed before its first stage, so the order has not changed.
        path.unlink()
        return
    if all(_holds(root / lock_file, before["text"]) for lock_file, before in due.items()):
        # Nothing ran, so skip importing DVC's Repo (0.5 s of CPU).
        path.unlink()
        return
    from dvc.repo import Repo

    with Repo(str(root), _wait_for_lock=True).lock:
        for lock_file, before in due.items():
            if (root / lock_file).is_file() and _stages_of(root / lock_file) is None:
                _replace(root / lock_file, before["text"])
            restore_lock_order(root / lock_file, before["order"])
    path.unlink()


def restore_lock_order(lock_file: Path, order: Sequence[str]) -> None:
    """Sort the stages of dvc.lock; stages that `order` lacks stay at the end."""
    from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

    names = list(_stages_of(lock_file) or ())
    wanted = [name for name in order if name in names] + [name for name in names if name not in order]
    if names == wanted:
        return
    # DVC's own reader and writer fold lines as DVC does.
    content = parse_yaml_for_update(lock_file.read_text(encoding="utf-8"), str(lock_file))
    for name in wanted:
        content["stages"][name] = content["stages"].pop(name)
    _replace(lock_file, dumps_yaml(content))


def _holds(path: Path, text: str | None) -> bool:
    # As bytes: a truncated file may end inside a character.
    return (path.read_bytes() if path.is_file() else None) == (None if text is None else text.encode())


def _replace(path: Path, text: str | None) -> None:
    """Write a file whole or not at all; None deletes it."""
    if text is None:
        path.unlink()
    else:
        replace_text(path, text)


def _stages_of(lock_file: Path) -> dict[str, Any] | None:
    """The stages of a dvc.lock: empty if the file does not exist, None if it is broken."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils.serialize import YAMLFileCorruptedError, load_yaml
    from voluptuous import Invalid

    if not lock_file.is_file():
        return {}
    try:
        content = load_yaml(str(lock_file))
        COMPILED_LOCKFILE_SCHEMA(content)
    except (YAMLFileCorruptedError, Invalid):
        return None
    # An empty file is a truncated one, because DVC never writes one.
    return dict(content["stages"]) if "stages" in content else ({} if content else None)
