"""The grid of a sweep.yaml: its points, each with its params.yaml, and the metrics that compare them."""

import itertools
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from flows.engine.edit_params import edited
from vocabgraft.config.params import PARAMS_FILE, parse_params_text
from vocabgraft.config.section import Section
from vocabgraft.config.yaml_text import load_yaml
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import digest_of

# It measures on the test splits. Selecting by them would make the metric of the selected point too good.
TESTING_STAGE = "evaluate_model"


class FigureParams(Section):
    """The metric that selects the best point.

    Attributes:
        stage: the stage that measures it.
        file: JSON file in the stage's output.
        name: name of the metric in that file.
        goal: whether the smallest or the largest value is best.
    """

    stage: str = "train_adapter"
    file: str = "report.json"
    name: str = "eval_loss"
    goal: Literal["min", "max"] = "min"


class SweepParams(Section):
    """A sweep.yaml.

    Attributes:
        params: values to try, by parameter.
        figure: the metric that selects the best point.
        until: last stage of each point; None for the stage of the metric.
    """

    params: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    figure: FigureParams = FigureParams()
    until: str | None = None

    @property
    def last_stage(self) -> str:
        """The last stage of a point."""
        return self.until or self.figure.stage


@dataclass(frozen=True)
class Point:
    """A point of the grid.

    Attributes:
        values: the parameters that it sets.
        params: the text of its params.yaml.
        digest: digest of everything that its result depends on: the commit, all parameters, the last stage.
    """

    values: Mapping[str, Any]
    params: str
    digest: str

    @property
    def name(self) -> str:
        """A short name for folders and tables."""
        return f"point-{self.digest[:12]}"

    def as_options(self) -> str:
        """Its parameters as options of `vocabgraft run`, quoted for the shell."""
        return " ".join(f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in self.values.items())


def read_sweep(path: Path) -> SweepParams:
    """Read and check a sweep.yaml.

    Raises:
        VocabgraftError: naming the key, the value seen and what is allowed.
    """
    try:
        sweep = SweepParams.model_validate(load_yaml(path.read_text(encoding="utf-8"), str(path)))
    except FileNotFoundError as error:
        raise VocabgraftError(f'{path} is missing; docs/operations.md, "Sweep", shows one') from error
    except UnicodeDecodeError as error:
        raise VocabgraftError(f"{path} is not YAML: it is not UTF-8") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors()]
        raise VocabgraftError(
            f"{path}: {'; '.join(lines)}. It takes params (a non-empty list of values for each), figure and until"
        ) from error
    if sweep.figure.stage == TESTING_STAGE:
        raise VocabgraftError(
            f"{path}: figure.stage is {TESTING_STAGE}, which measures on the test splits; they must not select "
            "settings; take a validation metric, e.g. {stage: train_adapter, file: report.json, name: eval_loss, "
            "goal: min}"
        )
    return sweep


def grid(sweep: SweepParams, params: str, commit: str) -> list[Point]:
    """Every point in the order of the file, with the last parameter varying fastest; equal points appear once.

    Args:
        sweep: the sweep.
        params: text of the params.yaml that the points change.
        commit: commit of the code and data.

    Raises:
        VocabgraftError: for a parameter or a value that params.yaml does not allow.
    """
    points: dict[str, Point] = {}
    for values in itertools.product(*sweep.params.values()):
        chosen = dict(zip(sweep.params, values, strict=True))
        text = _edited(params, chosen)
        meant = parse_params_text(text, str(PARAMS_FILE)).model_dump(mode="json")
        digest = digest_of({"commit": commit, "params": meant, "until": sweep.last_stage})
        points.setdefault(digest, Point(chosen, text, digest))
    return list(points.values())


def _edited(params: str, values: Mapping[str, Any]) -> str:
    try:
        return edited(params, [f"{key}={json.dumps(value)}" for key, value in values.items()], str(PARAMS_FILE))
    except VocabgraftError as error:
        raise VocabgraftError(f"{str(error).replace('--set ', 'params: ')} (with {_told(values)})") from error


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in values.items())


def figures_of(text: str) -> dict[str, float]:
    """The metrics of a stage's JSON file, by name.

    For a training they are those of the evaluation whose weights were kept (`kept_step` in its log; without
    `best_metric` the last one). For any other file they are its numbers, by dotted key.
    """
    content = json.loads(text)
    found = content.get("log") if isinstance(content, dict) else None
    log = found if isinstance(found, list) else []
    kept = [entry for entry in log if "kept_step" in entry]
    if not kept:
        return dict(_numbers(content, ""))
    phase, step = kept[-1]["phase"], kept[-1]["kept_step"]
    evaluations: dict[int, dict[str, float]] = {}
    for entry in log:
        if entry["phase"] == phase and entry["step"] <= step:
            metrics = {key: value for key, value in entry.items() if key.startswith("eval_")}
            evaluations.setdefault(entry["step"], {}).update(metrics)
    return next((evaluations[at] for at in sorted(evaluations, reverse=True) if evaluations[at]), {})


def _numbers(content: Any, prefix: str) -> list[tuple[str, float]]:
    if isinstance(content, bool):
        return []
    if isinstance(content, int | float):
        return [(prefix, float(content))]
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [pair for key, value in items for pair in _numbers(value, f"{prefix}.{key}" if prefix else str(key))]
