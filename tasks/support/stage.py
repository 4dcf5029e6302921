"""Runs a stage: its command line from its signature, its errors and its exit code."""

import argparse
import errno
import inspect
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vocabgraft.config.params import Params, load_params
from vocabgraft.errors import VocabgraftError
from vocabgraft.printable import printable, warn
from vocabgraft.storage.artifacts import write_json

logger = logging.getLogger(__name__)

DVC_FILE = Path("dvc.yaml")
SPEED_FOLDER = Path("reports/speed")
# One file per stage with the reason of its failure. The flow reads it instead of parsing the output: a file survives
# the process, and lines of other processes and parallel stages do not mix into it.
FAILURES = Path("reports/failures")
QUIET = {
    "GX_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "true",
}


class ToldFirstError(VocabgraftError):
    """A failure with work to do after the message is shown, such as a report that takes longer than the stage."""

    def __init__(self, message: str, afterwards: Callable[[], None]) -> None:
        super().__init__(message)
        self.afterwards = afterwards


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def run_stage(stage: Callable[..., None], arguments: Sequence[str] | None = None) -> int:
    """Run a stage as a command: paths from the command line, the rest from `params.yaml`.

    The stage's parameters of type `Path` become options (`out` is `--out`); `params` is the section of `params.yaml`
    with the stage's name, and any other parameter is the key with its name. Without options, `python -m tasks.NAME`
    takes those of the stage's `cmd` in dvc.yaml, as `dvc repro NAME` does.

    A failed stage writes the reason to `FAILURES`, even if an unexpected exception ends it with a traceback.

    Returns:
        The exit code: 0, or 1 after a user's mistake or a failed check, whose message goes to standard error.
    """
    import_seconds = time.time() - _process_start()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_PrintableFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    _quieten()
    started = time.perf_counter()
    try:
        # Not in a process of distributed training: another process may have failed already.
        if "RANK" not in os.environ:
            forget_failure(Path(), stage.__name__)
        paths = _parse_paths(stage, list(sys.argv[1:] if arguments is None else arguments))
        stage(**paths, **_parameters(stage, load_params()))
    except ToldFirstError as error:
        code = _fail(stage.__name__, str(error))
        error.afterwards()
        return code
    except Exception as error:
        if (message := _user_message(error)) is not None:
            return _fail(stage.__name__, message)
        _keep_failure(stage.__name__, f"unexpected {type(error).__name__}: {error}")
        raise
    work_seconds = time.perf_counter() - started
    logger.info("%s: imports %.1f s, work %.1f s", stage.__name__, import_seconds, work_seconds)
    _record_speed(stage.__name__, import_seconds, work_seconds)
    return 0


def read_failure(root: Path, stage: str) -> str | None:
    """The reason that a failed stage wrote; None if it did not fail or could not write one."""
    try:
        return (root / FAILURES / f"{stage}.txt").read_text(encoding="utf-8") or None
    except OSError:
        return None


def forget_failure(root: Path, stage: str) -> None:
    """Delete the reason of an earlier failure."""
    path = root / FAILURES / f"{stage}.txt"
    if path.is_file():
        path.unlink()


def switch_telemetry_off() -> None:
    """Set the variables that disable the libraries' telemetry, unless the user has set them."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def _quieten() -> None:
    switch_telemetry_off()
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    for name in ("httpx", "sentence_transformers", "alembic", "great_expectations", "datasets"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _parse_paths(stage: Callable[..., None], arguments: list[str]) -> dict[str, Path]:
    parser = argparse.ArgumentParser(prog=f"python -m tasks.{stage.__name__}", description=inspect.getdoc(stage))
    for name in _path_names(stage):
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=True)
    return vars(parser.parse_args(arguments or arguments_in_dvc_yaml(stage.__name__)))


def _path_names(stage: Callable[..., None]) -> list[str]:
    return [name for name, parameter in inspect.signature(stage).parameters.items() if parameter.annotation is Path]


def arguments_in_dvc_yaml(name: str) -> list[str]:
    """The options of a stage's command in dvc.yaml; none if the command is not `python -m tasks.NAME`."""
    import yaml

    if not DVC_FILE.is_file():
        return []
    entry = yaml.safe_load(DVC_FILE.read_text(encoding="utf-8"))["stages"].get(name, {})
    command = shlex.split(str(entry.get("cmd", "")))
    return command[3:] if command[:3] == ["python", "-m", f"tasks.{name}"] else []


def _parameters(stage: Callable[..., None], params: Params) -> dict[str, Any]:
    names = [name for name in inspect.signature(stage).parameters if name not in _path_names(stage)]
    return {name: getattr(params, stage.__name__ if name == "params" else name) for name in names}


def _fail(stage: str, message: str) -> int:
    reason = f"{message}{_how_to_get_outputs_back(stage)}"
    _keep_failure(stage, reason)
    warn(f"{stage}: {reason}")
    return 1


def _keep_failure(stage: str, reason: str) -> None:
    """Write why the stage failed. Only the first of several processes writes: the others fail because of it."""
    path = FAILURES / f"{stage}.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as stream:
            stream.write(printable(reason))
    except FileExistsError:
        return
    except OSError as error:
        warn(f"{stage}: the reason of the failure cannot be written to {path}: {error}")


def _how_to_get_outputs_back(stage: str) -> str:
    lock, folder = Path("dvc.lock"), Path("data") / stage
    if folder.exists() or not lock.is_file() or f"\n  {stage}:" not in lock.read_text(encoding="utf-8"):
        return ""
    return f"\n(DVC removed {folder} before this run; `dvc checkout {folder}` restores its last good version)"


def _user_message(error: Exception) -> str | None:
    """The message for an error that needs no traceback; None for other errors."""
    if isinstance(error, VocabgraftError):
        return str(error)
    expected = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM)
    return explain_os_error(error) if isinstance(error, OSError) and error.errno in expected else None


def explain_os_error(error: OSError) -> str:
    """The error and what to do about it, for a file that cannot be read or written."""
    where = error.filename or "a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full while writing {where}; free some space (`dvc gc --workspace` helps) and run again"
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"no permission to read or write {where}; grant it and run again"
    return f"{where} cannot be read or written: {error.strerror or error}"


def _process_start() -> float:
    import psutil

    return float(psutil.Process().create_time())


def _record_speed(stage: str, import_seconds: float, work_seconds: float) -> None:
    SPEED_FOLDER.mkdir(parents=True, exist_ok=True)
    seconds = {"imports": round(import_seconds, 2), "work": round(work_seconds, 2)}
    write_json(SPEED_FOLDER / f"{stage}.json", seconds)
