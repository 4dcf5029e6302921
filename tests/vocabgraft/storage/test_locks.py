"""A lock that one holds, that says who does, and that leaves nothing behind."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.locks import holder_of, only_one


def test_who_comes_second_is_reported_who_holds_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.lock"
    with only_one(path, "x is being written"):
        with path.open() as stream:
            assert (holder := holder_of(stream)) is not None and holder.pid == os.getpid()
        with (
            pytest.raises(VocabgraftError, match=rf"x is being written: process {os.getpid()}, .*, since 2.*let it"),
            only_one(path, "x is being written"),
        ):
            pass
        # It is refused without taking the holder's lock away.
        assert path.exists()
    assert not path.exists()


def test_it_is_let_go_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_one(tmp_path / "x.lock", "x"):
        raise ZeroDivisionError
    with only_one(tmp_path / "x.lock", "x"):
        assert (tmp_path / "x.lock").exists()


@pytest.mark.parametrize("left", ["", "{", '{"pid": 1, "command": "python", "since": "yesterday"}', "[]"])
def test_a_file_that_a_dead_process_left_holds_nobody_up(tmp_path: Path, left: str) -> None:
    path = tmp_path / "x.lock"
    path.write_text(left)
    with only_one(path, "x"), path.open() as stream:
        assert (holder := holder_of(stream)) is not None and holder.pid == os.getpid()
    assert not path.exists()


def test_of_many_at_once_one_at_a_time_is_inside(tmp_path: Path) -> None:
    """A file is deleted at the end of each turn, so a lock of one that is gone must not count."""
    inside, most, done = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(200):
            try:
                with only_one(tmp_path / "x.lock", "x"):
                    with guard:
                        inside += 1
                        most = max(most, inside)
                    with guard:
                        inside -= 1
                        done += 1
            except VocabgraftError:
                continue

    with ThreadPoolExecutor(8) as pool:
        for worker in [pool.submit(work) for _ in range(8)]:
            worker.result()
    assert most == 1 and done > 0 and not list(tmp_path.iterdir())
