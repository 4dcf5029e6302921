"""Runs a script in a fork of one process that has imported sentence-transformers already.

The import costs each process 3 to 6 s of CPU. A fork is as fresh as a new process in what the checks look at: it has
nothing of the project, its own working folder, and the model's folder alone. `tests/vocabgraft/checks/test_isolated.py`
and `tests/test_chain.py` start real processes.
"""

import importlib
import json
import os
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

READY = "ready"


class ImportServer:
    """The process that forks; started with the first request."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def run(self, request: dict[str, Any]) -> tuple[int, str]:
        """The exit code of a fork, and what it printed on standard error.

        Args:
            request: `script`, a path; its `arguments`; `cwd`; `env`, added to the environment; and, where forks share
                more, `imports`, which the process imports before it forks.
        """
        with self._lock:
            process = self._process or self._start()
            assert process.stdin and process.stdout
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            code, said = json.loads(process.stdout.readline())
            return code, said

    def close(self) -> None:
        """End the process."""
        if self._process and self._process.stdin:
            self._process.stdin.close()
            self._process.wait()

    def _start(self) -> "subprocess.Popen[str]":
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            cwd="/",
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout and self._process.stdout.readline().strip() == READY
        return self._process


class Forked:
    """Stands in for `subprocess.Popen`: the script runs in a fork while the caller goes on."""

    def __init__(self, server: ImportServer, command: list[str], cwd: Path, env: dict[str, str]) -> None:
        script, *arguments = command[2:]
        self.request = {"script": script, "arguments": arguments, "cwd": str(cwd), "env": env}
        self.returncode: int | None = None
        self._said = ""
        self._thread = threading.Thread(target=self._run, args=(server,), daemon=True)
        self._thread.start()

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        """Wait for the end."""
        self._thread.join(timeout)
        assert not self._thread.is_alive()
        return None, self._said

    def _run(self, server: ImportServer) -> None:
        self.returncode, self._said = server.run(self.request)


def serve() -> None:
    """Import once, then answer each line of standard input by a fork's exit code and its standard error."""
    import numpy  # noqa: F401  # what the worker imports
    import sentence_transformers  # noqa: F401
    import torch  # noqa: F401

    print(READY, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        for name in request.get("imports", ()):
            importlib.import_module(name)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            _work(request, writing)
        os.close(writing)
        with os.fdopen(reading, encoding="utf-8", errors="replace") as stream:
            said = stream.read()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([code, said]), flush=True)


def _work(request: dict[str, Any], errors: int) -> None:
    code = 1
    try:
        os.dup2(errors, 2)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.chdir(request["cwd"])
        os.environ.update(request["env"])
        if folder := request["env"].get("HF_MODULES_CACHE"):
            _keep_code_in(folder)
        sys.argv = [request["script"], *request["arguments"]]
        runpy.run_path(request["script"], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException as error:  # noqa: BLE001  # as the interpreter would
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(code)


def _keep_code_in(folder: str) -> None:
    """Keep the code of models in this folder; transformers read the variable when it was imported."""
    from transformers import dynamic_module_utils

    dynamic_module_utils.HF_MODULES_CACHE = folder


if __name__ == "__main__":
    serve()
