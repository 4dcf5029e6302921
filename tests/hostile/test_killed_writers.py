"""A writer killed at any moment, or beside another writer, leaves the old content or the new, never neither."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import new_folder, read_json, require_artifact, write_json
from vocabgraft.storage.atomic import replace_text

KILLED = """
import os, signal, sys
from pathlib import Path
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import new_folder

renames, rename = 0, Path.rename
def counted(self, target):
    global renames
    if renames == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    renames += 1
    return rename(self, target)
Path.rename = counted
with new_folder(Path(sys.argv[1])) as work:
    (work / "content").write_text("new", encoding="utf-8")
"""


@contextmanager
def written(folder: Path, content: str) -> Iterator[None]:
    """A folder with this content, after the block."""
    with new_folder(folder) as work:
        (work / "content").write_text(content, encoding="utf-8")
        yield


def killed_before_rename(folder: Path, number: int) -> None:
    """Kill a process that replaces the folder, before its rename of this number."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(number)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("renames", [0, 1])
def test_a_replacement_that_is_killed_between_its_renames_leaves_the_old_folder(tmp_path: Path, renames: int) -> None:
    made = tmp_path / "made"
    with written(made, "old"):
        pass
    killed_before_rename(made, renames)
    with pytest.raises(RuntimeError), written(made, "newer"):
        raise RuntimeError
    assert (require_artifact(made) / "content").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["made"], "nothing is left of the killed writer"


def test_a_replacement_after_a_killed_one_holds_the_new_content_alone(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with written(made, "old"):
        pass
    killed_before_rename(made, 1)
    assert not made.exists()
    with written(made, "newer"):
        assert (made / "content").read_text(encoding="utf-8") == "old", "it is there while the next one is written"
    assert (require_artifact(made) / "content").read_text(encoding="utf-8") == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_writer_leaves_the_work_of_others_alone(tmp_path: Path) -> None:
    with written(tmp_path / "v1.1", "other"), written(tmp_path / "v1", "first"), written(tmp_path / "v1", "second"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1", "v1.1"]
    assert (tmp_path / "v1.1" / "content").read_text(encoding="utf-8") == "other"
    # The inner block ends first.
    assert (tmp_path / "v1" / "content").read_text(encoding="utf-8") == "first"


def test_writers_of_one_folder_at_once_leave_a_whole_one(tmp_path: Path) -> None:
    def write(number: int) -> None:
        with written(tmp_path / "made", str(number)):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(80)))
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    manifest = read_json(tmp_path / "made" / "manifest.json")
    assert list(manifest["files"]) == ["content"]


def test_a_file_in_the_place_of_a_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("mine", encoding="utf-8")
    with pytest.raises(VocabgraftError, match="not a folder"), written(tmp_path / "made", "new"):
        pass
    assert (tmp_path / "made").read_text(encoding="utf-8") == "mine"


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"old": 1})

    def full(self: Path, text: str, **_: str) -> None:
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_text", full)
    for write in (lambda: write_json(path, {"new": 2}), lambda: replace_text(path, "new")):
        with pytest.raises(OSError, match="No space left"):
            write()
    assert read_json(path) == {"old": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_a_replaced_file_keeps_the_modes_of_a_plain_write(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        replace_text(tmp_path / "made", "text")
    finally:
        os.umask(mask)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o640
