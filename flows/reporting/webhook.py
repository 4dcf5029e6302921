"""Sends a message to `failure_hook.url` if a run failed."""

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

# Chat services cut long messages (Slack at 4,000 characters); the report has the whole text.
REASON_LENGTH = 3000
CUT = "\n... (cut; the whole text is in reports/report.html)"


def tell_failure(run: FlowRun, root: Path) -> bool:
    """Post the failures of a run to the hook in the project's params.yaml; errors go to standard error.

    Nothing is raised, because a hook that does not answer must not undo a run or hide why it failed. A cancelled run is
    not posted, because the person who cancelled it knows.

    Returns:
        Whether a message was posted.
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
    """Post one message, if a hook is set.

    Args:
        root: the project's folder, which the message names.
        flow_run: id of the Prefect run, if any.
        stages: name, state and reason of each stage that is not done.
        failure: why the run ended before its stages did; None if it did not.
    """
    try:
        hook = _hook(root / PARAMS_FILE)
        if hook.url is None:
            return False
        message = _message(root, flow_run, stages, failure)
        _post(_address(hook.url), message, hook.timeout_s)
    except VocabgraftError as error:
        warn(f"the failure hook got no message: {error}")
        return False
    return True


def _message(
    root: Path, flow_run: str | None, stages: list[dict[str, str]], failure: str | None
) -> Mapping[str, str | list[dict[str, str]] | None]:
    project = root.resolve().name
    what = failure or ", ".join(f"{stage['name']} ({stage['state']})" for stage in stages)
    failed = [f"{stage['name']}: {stage['reason']}" for stage in stages if stage["state"] == Outcome.FAILED.value]
    message = {
        # The part of a message that Slack, Mattermost and Teams show.
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
    """Read only the section `failure_hook`, so that a mistake elsewhere in params.yaml is posted too."""
    try:
        loaded = load_yaml(path.read_text(encoding="utf-8"), str(path))
        return FailureHookParams.model_validate((loaded or {}).get("failure_hook") or {})
    except (UnicodeDecodeError, AttributeError) as error:
        raise VocabgraftError(f"failure_hook of {path} cannot be read: the file is not a YAML mapping") from error
    except VocabgraftError as error:
        raise VocabgraftError(f"failure_hook of {path} cannot be read: {error}") from error
    except OSError as error:
        raise VocabgraftError(f"failure_hook of {path} cannot be read: {error.strerror}") from error
    # Pydantic's message repeats the value, and the address may be a secret.
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
    """Treats a redirect as a refusal: the user did not choose the address to which it leads."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Follow no redirect."""


def _post(address: str, message: Mapping[str, Any], seconds: float) -> None:
    """Post the message within `seconds` in total, from the DNS lookup to the headers of the answer.

    A socket's timeout applies to each read, so a server that sends a byte now and then could hold the run for ever.

    Raises:
        VocabgraftError: if the message is refused; the error does not repeat the address, which may be a secret.
    """
    answers: SimpleQueue[str] = SimpleQueue()
    data = json.dumps(message).encode()

    def send() -> None:
        answers.put(_refusal(address, data, seconds))

    # A daemon does not keep the process from ending.
    threading.Thread(target=send, name="failure hook", daemon=True).start()
    try:
        refusal = answers.get(timeout=seconds)
    except Empty as error:
        raise VocabgraftError(f"no answer within {seconds:g} s") from error
    if refusal:
        raise VocabgraftError(refusal)


def _refusal(address: str, data: bytes, seconds: float) -> str:
    """Why the message was refused; empty if it was accepted. Repeats neither the address nor the answer."""
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
