"""The order of the stages in dvc.lock: stages that run side by side are written as they end, `dvc repro` in its own."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.engine.dag import Stage
from vocabgraft.storage.atomic import replace_text

# The order that is due, kept while stages run, so that the run after a killed one still knows it.
DUE = Path(".dvc/tmp/build_model.order.json")


@contextmanager
def repro_order(root: Path, stages: Sequence[Stage]) -> Iterator[None]:
    """Leave each dvc.lock in the order in which `dvc repro` would have left it, whatever runs meanwhile.

    DVC keeps the order that a file has and adds what is new behind it, in the order of the DAG.
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
    """Put each dvc.lock into the order that a run, maybe one that was killed, left due.

    DVC writes the file in place: killed meanwhile it leaves a part of it. Such a file becomes again what it was before
    that run, and what the run did comes back from the run cache.
    """
    path = root / DUE
    try:
        due = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        # Killed while it was written, so before the first stage ran: the order is still the one before.
        path.unlink()
        return
    if all(_holds(root / lock_file, before["text"]) for lock_file, before in due.items()):
        # Nothing ran; importing DVC's Repo would take half a second of a core.
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
    """Put the stages of dvc.lock into an order; those that it does not name stay behind the others."""
    from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update

    names = list(_stages_of(lock_file) or ())
    wanted = [name for name in order if name in names] + [name for name in names if name not in order]
    if names == wanted:
        return
    # DVC's own reader and writer, so that lines are folded as DVC folds them.
    content = parse_yaml_for_update(lock_file.read_text(encoding="utf-8"), str(lock_file))
    for name in wanted:
        content["stages"][name] = content["stages"].pop(name)
    _replace(lock_file, dumps_yaml(content))


def _holds(path: Path, text: str | None) -> bool:
    # As bytes: a file that was cut off may end inside of a character.
    return (path.read_bytes() if path.is_file() else None) == (None if text is None else text.encode())


def _replace(path: Path, text: str | None) -> None:
    """Write a file whole or not at all; None deletes it."""
    if text is None:
        path.unlink()
    else:
        replace_text(path, text)


def _stages_of(lock_file: Path) -> dict[str, Any] | None:
    """The stages of a dvc.lock; none where there is no file, None where DVC would call it broken."""
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
    # What was cut down to nothing is no lock file that DVC wrote.
    return dict(content["stages"]) if "stages" in content else ({} if content else None)
