"""The workspace of a run: locks it, cleans up after a killed run, and checks dvc.lock."""

import json
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.atomic import replace_text
from vocabgraft.storage.locks import acquire, holder_of

LOCK = Path(".dvc/tmp/build_model.lock")
# Environment variable of every process that a run starts; its value is the workspace.
MARK = "VOCABGRAFT_WORKSPACE"
SECONDS_FOR_A_KILLED_RUN = 30.0
SECONDS_TO_END = 5.0
CONFLICT = ("<<<<<<< ", ">>>>>>> ")
Say = Callable[[str], None]


@contextmanager
def workspace(root: Path, wait: bool, say: Say) -> Iterator[int]:
    """Lock the workspace for one run, and clean up after an earlier, killed run.

    Yields:
        The lock's file descriptor. A child that inherits it keeps the workspace locked until it ends.

    Raises:
        VocabgraftError: if another run holds it and `wait` is false, or processes of a killed run do not end.
    """
    if not (root / ".dvc").is_dir():
        raise VocabgraftError(f"{root.resolve()} is not a DVC project; run from the project's root")
    (root / LOCK).parent.mkdir(exist_ok=True, parents=True)
    with (root / LOCK).open("a+", encoding="utf-8") as stream:
        _wait_for(stream, wait, say)
        end_leftovers(root, say)
        heal_rwlock(root, say)
        yield stream.fileno()


def _wait_for(stream: IO[str], wait: bool, say: Say) -> None:
    told, started = False, time.monotonic()
    while not acquire(stream):
        holder = holder_of(stream)
        alive = holder is not None and _runs(holder.pid)
        killed = "a killed run" if holder is None else f"the killed process {holder.pid}"
        waited = time.monotonic() - started
        if alive and not wait:
            raise VocabgraftError(
                f"another run is in progress in this workspace: {holder}; let it end, or wait for it with --wait"
            )
        if not alive and waited > SECONDS_FOR_A_KILLED_RUN:
            raise VocabgraftError(
                f"processes that {killed} started still hold this workspace after {waited:.0f} s; "
                f"`fuser {LOCK}` lists them"
            )
        if not told:
            say(
                "waiting for another run in this workspace" if alive else f"waiting for processes that {killed} started"
            )
            told = True
        time.sleep(0.2)


def _runs(pid: int) -> bool:
    import psutil

    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


def end_leftovers(root: Path, say: Say, stage: str | None = None) -> None:
    """End processes that a killed run, whose supervisors were killed too, left in this workspace.

    Call it with the lock held: no other run can then have living processes here. `stage` limits it to one stage.
    """
    import psutil

    own = {process.pid for process in (psutil.Process(), *psutil.Process().parents())}
    found = [process for process in psutil.process_iter() if process.pid not in own and _is_left(process, root, stage)]
    for process in found:
        say(f"ending process {process.pid}, which a killed run left: {_command_of(process)}")
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(found, timeout=SECONDS_TO_END)
    for process in alive:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=SECONDS_TO_END)


def _is_left(process: Any, root: Path, stage: str | None) -> bool:
    import psutil

    try:
        variables = process.environ()
        mine = variables.get(MARK) == str(root.resolve()) and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        # It has ended, or belongs to another user, so no run here started it.
        return False
    return mine and (stage is None or variables.get("DVC_STAGE") == stage)


def _command_of(process: Any) -> str:
    import psutil

    try:
        return shlex.join(process.cmdline())
    except psutil.Error:
        return "ended meanwhile"


def _signal(process: Any, number: int) -> None:
    import psutil

    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def heal_rwlock(root: Path, say: Say) -> None:
    """Repair DVC's record of readers and writers after a crash.

    If DVC was killed while writing it, the file is not JSON and DVC refuses to work. After a restart of the machine, an
    unrelated process may have the process id of an entry, and DVC would wait for it forever.
    """
    path = root / ".dvc" / "tmp" / "rwlock"
    if not path.is_file():
        return
    from dvc.lock import make_lock

    with make_lock(str(path.with_name("rwlock.lock")), tmp_dir=str(path.parent), wait=True):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            kept = _living(content)
        except (ValueError, AttributeError, KeyError, TypeError):
            say(f"{path} was damaged and is deleted (a DVC process was killed while it wrote it)")
            path.unlink()
            return
        if kept != content:
            replace_text(path, json.dumps(kept))


def _living(content: dict[str, Any]) -> dict[str, Any]:
    """The entries whose process is a running DVC."""
    write = {path: info for path, info in content.get("write", {}).items() if _is_dvc(info["pid"])}
    read = {path: [info for info in infos if _is_dvc(info["pid"])] for path, infos in content.get("read", {}).items()}
    return {"write": write, "read": {path: infos for path, infos in read.items() if infos}}


def _is_dvc(pid: int) -> bool:
    import psutil

    try:
        return "dvc" in " ".join(psutil.Process(pid).cmdline())
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def check_lock_file(path: Path) -> None:
    """Refuse a dvc.lock with merge conflict markers, with a clearer message than DVC's.

    Raises:
        VocabgraftError: with the line and the remedy.
    """
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.startswith(CONFLICT):
            raise VocabgraftError(
                f"{path}, line {number}: an unresolved merge ({line}); take either side with `git checkout --ours "
                f"{path}` or --theirs, and run again: known results come from the run cache, the others are made again"
            )
