"""A copy of the project at a commit, somewhere else, and a run of the flow in it.

What is sent to another machine is `Work`, which holds no path of this one, and `carry_out`, which does it there. So
this module uses the standard library alone and is pickled by value: a machine of the cluster needs Python and the
project's dependencies, and takes the project's code from the commit.
"""

import ctypes
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TAIL = 4000
PR_SET_PDEATHSIG = 1
Watch = Callable[["subprocess.Popen[str]"], None]


@dataclass(frozen=True)
class Work:
    """A run of the flow in a copy of the project.

    Attributes:
        name: what DVC_EXP_NAME says in it, which keeps every stage from registering anything.
        code: the project's files at a commit, as a tar archive.
        files: what is written over them, by relative path: params.yaml, dvc.lock and DVC's local configuration.
        arguments: those of `python -m flows.build_model`.
        before, after: command lines of DVC that bring what the run needs and take away what it made.
        wanted: files whose text is brought back where they are there.
        variables: of the environment of all of it.
    """

    name: str
    code: bytes
    files: Mapping[str, str]
    arguments: Sequence[str]
    before: Sequence[Sequence[str]] = ()
    after: Sequence[Sequence[str]] = ()
    wanted: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


class Here:
    """What stays on this machine: where it is pickled it travels as nothing."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __reduce__(self) -> tuple[type["Here"], tuple[()]]:
        return Here, ()


def carry_out_anywhere(work: Work) -> dict[str, Any]:
    """Do it in a new temporary folder of the machine at hand, which is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="vocabgraft-"))
    try:
        unpack(work, folder)
        return carry_out(work, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_address() -> str:
    """HOST:PORT of the machine at hand, as the other machines of its cluster see it, where nothing listens yet."""
    import ray

    with socket.create_server(("", 0)) as listener:
        return f"{ray.util.get_node_ip_address()}:{listener.getsockname()[1]}"


def unpack(work: Work, folder: Path) -> None:
    """Make the copy in an empty folder."""
    with tarfile.open(fileobj=io.BytesIO(work.code)) as archive:
        # Python before 3.11.4 has no filters; the archive is this project's own.
        safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **safe)
    write_over(work, folder)


def write_over(work: Work, folder: Path) -> None:
    """Write the files that differ from the commit's."""
    for name, text in work.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def carry_out(work: Work, folder: Path, watch: Watch | None = None) -> dict[str, Any]:
    """Run the flow in a copy that is there.

    Args:
        work: what to do.
        folder: the copy.
        watch: called with each process that is started, so that it can be ended.

    Returns:
        `ok`; `said`, the end of what was printed; `files`, the wanted ones by name; `seconds`; `host` and `pid`.
    """
    started = time.monotonic()
    said: list[str] = []

    def run(commands: Sequence[Sequence[str]]) -> int:
        for command in commands:
            code, text = _run(command, folder, _environment(work), watch)
            said.append(text)
            if code:
                return code
        return 0

    flow = [sys.executable, "-m", "flows.build_model", "--no-server", "--wait", *work.arguments]
    # What cannot be brought is made again, or missed by the stage that needs it, which says so.
    run([_dvc(arguments) for arguments in work.before])
    code = run([flow])
    # Also when a stage failed: what those before it made need not be made again.
    code = run([_dvc(arguments) for arguments in work.after]) or code
    files = {name: (folder / name).read_text(encoding="utf-8") for name in work.wanted if (folder / name).is_file()}
    return {
        "ok": code == 0,
        "said": "".join(said)[-TAIL:],
        "files": files,
        "seconds": time.monotonic() - started,
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def failed_stages(files: Mapping[str, str], record: str) -> str | None:
    """Why a run failed, by its record among the files that were brought back; None where that says nothing."""
    failed = json.loads(files[record]).get("failed") if record in files else None
    return str(failed) if failed else None


def _dvc(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "dvc", *arguments]


def _environment(work: Work) -> dict[str, str]:
    programs = str(Path(sys.executable).parent)
    inherited = {key: value for key, value in os.environ.items() if key != "VOCABGRAFT_WORKSPACE"}
    return {
        **inherited,
        "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}",
        "DVC_EXP_NAME": work.name,
        "PYTHONUNBUFFERED": "1",
        **work.variables,
    }


def _run(command: Sequence[str], folder: Path, environment: Mapping[str, str], watch: Watch | None) -> tuple[int, str]:
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Safe beside threads: the library is loaded already, and the child makes one system call.
        preexec_fn=_end_with_parent(),  # noqa: PLW1509
        start_new_session=True,
    )
    if watch is not None:
        watch(process)
    said, _ = process.communicate()
    return process.returncode, said


def _end_with_parent() -> Callable[[], None] | None:
    """What a child does to be asked to end when the thread that started it is gone, however that came."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)

    def ask() -> None:
        library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    return ask
