"""Whatever is killed or runs at once, a model has exactly one champion, whose files are there."""

import os
import random
import signal
import sqlite3
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tasks.registry.lookup import CHAMPION, NEXT_CHAMPION, PREVIOUS_CHAMPION, Client, Registered, connect, find_by_alias
from tasks.registry.versions import (
    ChampionMovedError,
    alias_change,
    find_version,
    list_versions,
    make_champion,
    prune,
    roll_back,
    set_alias,
)
from vocabgraft.errors import VocabgraftError

NAME = "a model"


class KilledError(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def add_version(client: Client, files: Path) -> Registered:
    """A version whose model is a folder with one file."""
    folder = files / os.urandom(6).hex()
    folder.mkdir(parents=True)
    (folder / "model").write_text("weights", encoding="utf-8")
    made = client.create_model_version(NAME, str(folder))
    return find_version(client, NAME, int(made.version))


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_store: Callable[[Path], str]) -> Client:
    """Of a store with three versions: 2 is champion, 1 the previous one."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path / "mlflow.db"))
    client = connect()
    client.create_registered_model(NAME)
    for _ in range(3):
        add_version(client, tmp_path / "files")
    set_alias(client, NAME, PREVIOUS_CHAMPION, 1)
    set_alias(client, NAME, CHAMPION, 2)
    return client


def aliases(client: Client) -> dict[str, int]:
    return {alias: int(number) for alias, number in client.get_registered_model(NAME).aliases.items()}


def kill_at_write(client: Client, monkeypatch: pytest.MonkeyPatch, number: int, change: Callable[[], object]) -> None:
    """Make a change that is killed before its write of this number to the aliases."""
    writes = iter(range(100))

    def counted(write: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: str) -> None:
            if next(writes) == number:
                raise KilledError
            write(*arguments)

        return call

    with monkeypatch.context() as patch:
        for method in ("set_registered_model_alias", "delete_registered_model_alias"):
            patch.setattr(client, method, counted(getattr(client, method)))
        with pytest.raises(KilledError):
            change()


@pytest.mark.parametrize("write", range(4))
def test_a_killed_roll_back_is_finished_by_the_next_command(
    client: Client, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    kill_at_write(client, monkeypatch, write, lambda: roll_back(client, NAME, {}))
    assert aliases(client)[CHAMPION] in (1, 2)
    with alias_change(client, NAME):
        pass
    done = {CHAMPION: 1, PREVIOUS_CHAMPION: 2} if write else {CHAMPION: 2, PREVIOUS_CHAMPION: 1}
    assert aliases(client) == done


@pytest.mark.parametrize("write", [1, 2, 3])
def test_a_killed_promotion_is_finished_before_the_next_change(
    client: Client, monkeypatch: pytest.MonkeyPatch, write: int
) -> None:
    third, champion = find_version(client, NAME, 3), find_by_alias(client, NAME, CHAMPION)
    kill_at_write(client, monkeypatch, write, lambda: make_champion(client, third, {}, champion))
    now, before = roll_back(client, NAME, {})
    assert (now.version, before.version) == (2, 3)
    assert aliases(client) == {CHAMPION: 2, PREVIOUS_CHAMPION: 3}


def test_a_roll_back_to_the_champion_itself_is_refused(client: Client) -> None:
    set_alias(client, NAME, PREVIOUS_CHAMPION, 2)
    with pytest.raises(VocabgraftError, match="no previous_champion other"):
        roll_back(client, NAME, {})


def test_a_version_judged_against_an_older_champion_is_not_promoted(client: Client) -> None:
    third, judged_against = find_version(client, NAME, 3), find_by_alias(client, NAME, CHAMPION)
    roll_back(client, NAME, {})
    with pytest.raises(ChampionMovedError, match="is now version 1"):
        make_champion(client, third, {}, judged_against)
    assert aliases(client) == {CHAMPION: 1, PREVIOUS_CHAMPION: 2}


def test_a_version_that_is_promoted_after_it_was_listed_is_not_pruned(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_version(client, tmp_path / "files")

    def listed_before(*arguments: object) -> list[Registered]:
        monkeypatch.undo()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
        found = list_versions(client, NAME)
        make_champion(client, found[1], {}, find_by_alias(client, NAME, CHAMPION))
        return found

    monkeypatch.setattr("tasks.registry.versions.list_versions", listed_before)
    assert prune(client, NAME, keep=1).versions == [], "3 is champion by now; 1 had an alias when it was listed"
    assert aliases(client) == {CHAMPION: 3, PREVIOUS_CHAMPION: 2}


def change_at_random(files: Path, seed: int) -> None:
    """One command of a process of its own; what it may refuse is no failure."""
    choice, client = random.Random(seed), connect()
    known = list_versions(client, NAME)
    new = choice.choice(known)
    commands = (
        lambda: make_champion(client, new, {"decision": "by hand"}, find_by_alias(client, NAME, CHAMPION)),
        lambda: roll_back(client, NAME, {}),
        lambda: prune(client, NAME, keep=2),
        lambda: add_version(client, files),
    )
    with suppress(VocabgraftError):
        choice.choice(commands)()


def in_a_process(files: Path, seed: int) -> int:
    """Fork, so that MLflow is imported once."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        change_at_random(files, seed)
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


def read_aliases(store: Path) -> dict[str, tuple[int, str | None]]:
    """Versions and their folders, read without MLflow: a connection must not be shared with forked processes."""
    connection = sqlite3.connect(store)
    try:
        rows = connection.execute(
            "SELECT alias, a.version, source FROM registered_model_aliases AS a LEFT JOIN model_versions AS v "
            "ON v.name = a.name AND v.version = a.version AND v.current_stage != 'Deleted_Internal'"
        ).fetchall()
    finally:
        connection.close()
    return {alias: (version, source) for alias, version, source in rows}


@pytest.mark.parametrize("rounds", [2, pytest.param(200, marks=pytest.mark.slow)], ids=["few", "many"])
def test_commands_at_once_and_killed_leave_one_champion_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_store: Callable[[Path], str], rounds: int
) -> None:
    store, files, choice = tmp_path / "mlflow.db", tmp_path / "files", random.Random(17)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(store))
    begin = os.fork()
    if not begin:
        first = connect()
        first.create_registered_model(NAME)
        for _ in range(3):
            add_version(first, files)
        set_alias(first, NAME, CHAMPION, 2)
        os._exit(0)
    assert os.waitpid(begin, 0)[1] == 0
    for number in range(rounds):
        pids = [in_a_process(files, 10 * number + place) for place in range(4)]
        time.sleep(choice.uniform(0.1, 1.0))
        killed = choice.choice(pids)
        os.kill(killed, signal.SIGKILL)
        codes = {pid: os.waitpid(pid, 0)[1] for pid in pids}
        assert all(code == 0 for pid, code in codes.items() if pid != killed), f"round {number}: {codes}"
        found = read_aliases(store)
        version, folder = found[CHAMPION]
        assert folder and (Path(folder) / "model").is_file(), f"round {number}: version {version} has no files"
        if NEXT_CHAMPION not in found:
            assert found[CHAMPION] != found.get(PREVIOUS_CHAMPION), f"round {number}: {found}"
