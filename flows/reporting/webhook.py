"""Sends a message to `failure_hook.url` when a run failed."""

import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, cast

from pydantic import ValidationError

from flows.engine.run_record import FlowRun
from flows.engine.stage_outcome import Outcome
from vocabgraft.config.params import PARAMS_FILE
from vocabgraft.config.stages import FROM_ENVIRONMENT, FailureHookParams
from vocabgraft.config.yaml_text import load_yaml
from vocabgraft.errors import VocabgraftError
from vocabgraft.printable import printable_parts, warn

# Chat services cut a message (Slack at 4,000 characters); the report has all of it.
REASON_LENGTH = 3000
CUT = "\n... (cut; all of it is in reports/report.html)"


def tell_failure(run: FlowRun, root: Path) -> bool:
    """Post what failed to the hook of the project's params.yaml; what cannot be posted is said on standard error.

    Nothing is raised: a hook that does not answer must not undo a run or hide why it failed. A run that was cancelled
    is told to nobody: whoever cancelled it knows.

    Returns:
        Whether the hook was told.
    """
    failed = [result for result in run.results if result.outcome in (Outcome.FAILED, Outcome.NOT_READY)]
    cancelled = any(result.outcome is Outcome.CANCELLED for result in run.results)
    if cancelled or not (failed or run.failure):
        return False
    stages = [
        {"name": result.name, "state": result.outcome.value, "reason": _cut(result.explanation())} for result in failed
    ]
    return post(root, run.prefect_run, stages, run.failure)


def post(root: Path, flow_run: str | None, stages: list[dict[str, str]], failure: str | None) -> bool:
    """Post one message, where a hook is set.

    Args:
        root: the project's folder, which the message names.
        flow_run: the id of the Prefect run; None where there is none.
        stages: name, state and reason of each stage that is not done.
        failure: why the run ended before its stages did; None where it did not.
    """
    try:
        hook = _hook(root / PARAMS_FILE)
        if hook.url is None:
            return False
        message = _message(root, flow_run, stages, failure)
        _post(_address(hook.url), message, hook.timeout_s)
    except VocabgraftError as error:
        warn(f"the failure hook was not told: {error}")
        return False
    return True


def _message(
    root: Path, flow_run: str | None, stages: list[dict[str, str]], failure: str | None
) -> Mapping[str, str | list[dict[str, str]] | None]:
    project = root.resolve().name
    what = failure or ", ".join(f"{stage['name']} ({stage['state']})" for stage in stages)
    failed = [f"{stage['name']}: {stage['reason']}" for stage in stages if stage["state"] == Outcome.FAILED.value]
    message = {
        # What Slack, Mattermost and Teams show of a message.
        "text": _cut("\n".join([f"{project}: the run failed: {what}", *failed])),
        "project": project,
        "flow_run": flow_run,
        "failure": _cut(failure) if failure else None,
        "stages": stages,
    }
    return cast("Mapping[str, str | list[dict[str, str]] | None]", printable_parts(message))


def _cut(text: str) -> str:
    return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - len(CUT)] + CUT


def _hook(path: Path) -> FailureHookParams:
    """The section alone, so that a mistake elsewhere in params.yaml, which ends a run, is told too."""
    try:
        loaded = load_yaml(path.read_text(encoding="utf-8"), str(path))
        return FailureHookParams.model_validate((loaded or {}).get("failure_hook") or {})
    except (UnicodeDecodeError, AttributeError) as error:
        raise VocabgraftError(f"failure_hook of {path} cannot be read: the file is no mapping in YAML") from error
    except VocabgraftError as error:
        raise VocabgraftError(f"failure_hook of {path} cannot be read: {error}") from error
    except OSError as error:
        raise VocabgraftError(f"failure_hook of {path} cannot be read: {error.strerror}") from error
    # What it says repeats the value, and so the address, which may be a secret.
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors())
        raise VocabgraftError(f"failure_hook of {path} is not valid: {wrong}") from error


def _address(url: str) -> str:
    if not url.startswith(FROM_ENVIRONMENT):
        return url
    name = url.removeprefix(FROM_ENVIRONMENT)
    value = os.environ.get(name, "")
    if not re.fullmatch(r"https?://\S+", value):
        raise VocabgraftError(f"failure_hook.url is {url}, and {name} is not set to an http:// or https:// address")
    return value


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like any other: whoever is redirected to was not named by the user."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow none."""


def _post(address: str, message: Mapping[str, Any], seconds: float) -> None:
    """Post the message within `seconds` in all, from looking up the name to the head of the answer.

    A time-out of a socket is one for each read, so a server that sends a byte now and then would hold it for ever.

    Raises:
        VocabgraftError: when it is not taken; the address, which may hold a secret, is not repeated.
    """
    answers: SimpleQueue[str] = SimpleQueue()
    data = json.dumps(message).encode()

    def send() -> None:
        answers.put(_refusal(address, data, seconds))

    # It does not keep the process from ending.
    threading.Thread(target=send, name="failure hook", daemon=True).start()
    try:
        refusal = answers.get(timeout=seconds)
    except Empty as error:
        raise VocabgraftError(f"no answer within {seconds:g} s") from error
    if refusal:
        raise VocabgraftError(refusal)


def _refusal(address: str, data: bytes, seconds: float) -> str:
    """Why the message was not taken; empty where it was. What is said holds nothing of the address or the answer."""
    try:
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=seconds):
            return ""
    except urllib.error.HTTPError as error:
        known = {status.value: status.phrase for status in HTTPStatus}
        followed = "; redirects are not followed" if 300 <= error.code < 400 else ""
        return f"it answered {error.code} {known.get(error.code, '')}".rstrip() + followed
    except HTTPException as error:
        return f"its answer is not HTTP, or its address is malformed ({type(error).__name__})"
    except OSError as error:
        reason = getattr(error, "reason", error)
        return f"no answer within {seconds:g} s: {getattr(reason, 'strerror', None) or type(reason).__name__}"
    except ValueError as error:
        return f"its address is malformed ({type(error).__name__})"
