"""The grid of a sweep: the points that a sweep.yaml means, each with its params.yaml."""

import itertools
import json
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from flows.engine.edit_params import edit_params
from vocabgraft.config.params import PARAMS_FILE, parse_params_text
from vocabgraft.config.section import Section
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import digest_of

# It measures on the test splits, which must not choose: the figure of the chosen point would be too good.
TESTING_STAGE = "evaluate_model"


class FigureParams(Section):
    """The figure that chooses: its stage, the JSON file in the stage's output, its name there, and which is better."""

    stage: str = "train_adapter"
    file: str = "report.json"
    name: str = "eval_loss"
    goal: Literal["min", "max"] = "min"


class SweepParams(Section):
    """A sweep.yaml: values to try, by parameter, and the figure that chooses."""

    params: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    figure: FigureParams = FigureParams()
    until: str | None = None

    @property
    def last_stage(self) -> str:
        """The stage after which a point is done."""
        return self.until or self.figure.stage


@dataclass(frozen=True)
class Point:
    """A point of the grid.

    Attributes:
        values: the parameters that it sets.
        params: the text of its params.yaml.
        digest: of the commit, of every parameter and of the last stage: what its result depends on.
    """

    values: Mapping[str, Any]
    params: str
    digest: str

    @property
    def name(self) -> str:
        """A short name for folders and tables."""
        return f"point-{self.digest[:12]}"

    def as_options(self) -> str:
        """Its parameters as options of `vocabgraft run`, quoted for a shell."""
        return " ".join(f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in self.values.items())


def read_sweep(path: Path) -> SweepParams:
    """Read and check a sweep.yaml.

    Raises:
        VocabgraftError: naming the key, the value seen and what is allowed.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        loaded: Any = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        sweep = SweepParams.model_validate(loaded)
    except FileNotFoundError as error:
        raise VocabgraftError(f'{path} is missing; README, "Sweep", shows one') from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise VocabgraftError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors()]
        raise VocabgraftError(
            f"{path}: {'; '.join(lines)}. It has params (a list of values each, none empty), figure and until"
        ) from error
    if sweep.figure.stage == TESTING_STAGE:
        raise VocabgraftError(
            f"{path}: figure.stage is {TESTING_STAGE}, which measures on the test splits, and those must not choose; "
            "take a validation figure, e.g. {stage: train_adapter, file: report.json, name: eval_loss, goal: min}"
        )
    return sweep


def grid(sweep: SweepParams, params: str, commit: str) -> list[Point]:
    """Every point, in the order of the file, the last parameter fastest; equal ones once.

    Args:
        sweep: what to try.
        params: the text of the params.yaml that the points start from.
        commit: whose code and data they run on.

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
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PARAMS_FILE
        path.write_text(params, encoding="utf-8")
        try:
            edit_params(path, [f"{key}={json.dumps(value)}" for key, value in values.items()])
        except VocabgraftError as error:
            said = str(error).replace(str(path), str(PARAMS_FILE)).replace("--set ", "params: ")
            raise VocabgraftError(f"{said} (with {_told(values)})") from error
        return path.read_text(encoding="utf-8")


def _told(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in values.items())


def figures_of(text: str, best_metric: str | None) -> dict[str, float]:
    """The figures of a stage's JSON file, by name.

    Of a training's report they are those of the evaluation whose weights were kept: the best by `best_metric`, or the
    last. `eval_loss` is the mean of the datasets' validation losses where there are several. Of any other file they are
    its numbers, by dotted key.
    """
    content = json.loads(text)
    log = content.get("log") if isinstance(content, dict) else None
    if not isinstance(log, list):
        return dict(_numbers(content, ""))
    evaluations: dict[tuple[int, int], dict[str, float]] = {}
    for entry in log:
        found = {key: value for key, value in entry.items() if key.startswith("eval_")}
        if found:
            evaluations.setdefault((entry["phase"], entry["step"]), {}).update(found)
    kept = [_with_mean_loss(figures) for _, figures in sorted(evaluations.items())]
    return _kept(kept, best_metric) if kept else {}


def _kept(evaluations: Sequence[dict[str, float]], best_metric: str | None) -> dict[str, float]:
    if best_metric is None:
        return evaluations[-1]
    name = best_metric if best_metric.startswith("eval_") else f"eval_{best_metric}"
    measured = [figures for figures in evaluations if name in figures]
    lower = name.endswith(("loss", "_mr", "mean_rank"))
    return (min if lower else max)(measured, key=lambda figures: figures[name]) if measured else evaluations[-1]


def _with_mean_loss(figures: dict[str, float]) -> dict[str, float]:
    losses = [value for key, value in figures.items() if key.endswith("_loss")]
    return {"eval_loss": sum(losses) / len(losses), **figures} if losses else figures


def _numbers(content: Any, prefix: str) -> list[tuple[str, float]]:
    if isinstance(content, bool):
        return []
    if isinstance(content, int | float):
        return [(prefix, float(content))]
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [pair for key, value in items for pair in _numbers(value, f"{prefix}.{key}" if prefix else str(key))]
