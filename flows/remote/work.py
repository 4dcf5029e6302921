"""A job: a run of the pipeline in a copy of the project at a commit, here or on another machine.

Another machine gets `Work`, which has no path of this machine, and `carry_out`, which does the job. This module
therefore uses only the standard library and is pickled by value. A machine of the cluster needs Python and the
project's dependencies; the project's code comes from the commit.
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
    """A run of the pipeline in a copy of the project.

    Attributes:
        name: value of DVC_EXP_NAME, which keeps every stage from registering anything.
        code: the project's files at a commit, as a tar archive.
        files: files written over them, by relative path: params.yaml, dvc.lock and DVC's local configuration.
        arguments: arguments of `python -m flows.build_model`.
        before: DVC commands before the run, which fetch what it needs.
        after: DVC commands after the run, which push its results.
        wanted: files whose text is returned, if they exist.
        variables: environment variables of all commands.
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
    """Holds a value that stays on this machine: it is pickled as None."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __reduce__(self) -> tuple[type["Here"], tuple[()]]:
        return Here, ()


def carry_out_anywhere(work: Work) -> dict[str, Any]:
    """Do the job in a new temporary folder of this machine, which is deleted afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="vocabgraft-"))
    try:
        unpack(work, folder)
        return carry_out(work, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def free_address() -> str:
    """A free HOST:PORT of this machine, as the other machines of its cluster see it."""
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
    """Write the job's files over those of the commit."""
    for name, text in work.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def carry_out(work: Work, folder: Path, watch: Watch | None = None) -> dict[str, Any]:
    """Do the job in an existing copy.

    Args:
        work: the job.
        folder: the copy.
        watch: called with each started process, so that it can be ended.

    Returns:
        `ok`; `said`, the end of the output; `files`, the text of the wanted files by name; `seconds`; `host` and `pid`.
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
    # A failed fetch is not fatal: results are made again, or the stage that needs them says so.
    run([_dvc(arguments) for arguments in work.before])
    code = run([flow])
    # Also after a failed stage, so that the results before it need not be made again.
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


def why_failed(done: Mapping[str, Any], record: str) -> tuple[str, str]:
    """Why a run failed, from its record, and its last lines of output.

    Args:
        done: the result of `carry_out`.
        record: name of the run's record among the returned files.

    Returns:
        The reason and the last lines of the failed stages' output. Without a record, the last lines that it printed.
    """
    content = json.loads(done["files"][record]) if record in done["files"] else {}
    stages = [stage for stage in content.get("stages", ()) if stage["outcome"] == "Failed"]
    log = "\n".join(stage["log"] for stage in stages if stage["log"])
    # If the copy ran only one stage, its name is not repeated.
    reason = stages[0]["reason"] if len(content.get("stages", ())) == 1 and stages else content.get("failed")
    if reason:
        return str(reason), log
    return "it ended without giving a reason", str(done["said"]).strip()


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
    """A function for the child: asks the kernel to end it when the thread that started it is gone."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)

    def ask() -> None:
        library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    return ask
