"""Cheap checks before anything runs: files, the base, and settings that a later stage would refuse."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from vocabgraft.config.datasets import DatasetParams
from vocabgraft.config.params import Params
from vocabgraft.config.stages import BaseParams, ResizeBaseParams
from vocabgraft.config.training import TrainAdapterParams
from vocabgraft.config.training_arguments import library_values, require_reports
from vocabgraft.data.mteb import require_mteb
from vocabgraft.data.raw_files import check_raw_files
from vocabgraft.errors import VocabgraftError, did_you_mean, problems_of
from vocabgraft.model_folder.model_files import check_files
from vocabgraft.model_folder.remote_code import check_code
from vocabgraft.models.base import REGISTRY_PREFIX, edited_code, look_up_base, tokenizer_file
from vocabgraft.storage.artifacts import read_json


def check_project(params: Params, raw: Path | None, say: Callable[[str], None], resized: Path | None = None) -> None:
    """Run all cheap checks; nothing is downloaded or written.

    Args:
        params: the project's parameters.
        raw: the folder of raw files; with None they are not checked.
        say: function that reports what could not be checked.
        resized: the output folder of resize_base, with the code of its own layers.

    Raises:
        VocabgraftError: with every problem, not only the first.
    """
    folders: list[Path | None] = []
    problems = [] if raw is None else check_raw_files(raw, params.validate_data)
    problems += problems_of(
        [
            lambda: folders.append(_look_up(params.base, say)),
            partial(require_mteb, params.evaluate_model.mteb_tasks),
        ]
    )
    if resized is not None:
        _tell_of_edits(resized, say)
    folder = folders[0] if folders else None
    problems += settings_problems(params.train_adapter, params.resize_base, params.validate_data.datasets, folder)
    _refuse(problems)


def check_settings(
    train_adapter: TrainAdapterParams, resize_base: ResizeBaseParams, datasets: Sequence[DatasetParams], base: Path
) -> None:
    """Refuse settings that a later stage would refuse, some of them only after minutes.

    Args:
        train_adapter: the trainer's arguments, the evaluators and the best metric.
        resize_base: the additional modules.
        datasets: the datasets in params.yaml.
        base: the folder of the base.

    Raises:
        VocabgraftError: with every problem.
    """
    _refuse(settings_problems(train_adapter, resize_base, datasets, base))


def settings_problems(
    train_adapter: TrainAdapterParams,
    resize_base: ResizeBaseParams,
    datasets: Sequence[DatasetParams],
    base: Path | None,
) -> list[str]:
    """The problems that `check_settings` raises; a base of None is not on this machine yet.

    Libraries are imported only for settings that need them.
    """
    checks: list[Callable[[], object]] = [partial(library_values, train_adapter.arguments)]
    checks.append(partial(require_reports, train_adapter.arguments))
    if train_adapter.evaluators or train_adapter.best_metric:
        checks.append(partial(_check_metrics, train_adapter, datasets, base))
    problems = problems_of(checks)
    if resize_base.modules:
        from vocabgraft.models.extra_modules import check_modules

        problems += check_modules(resize_base.modules)
    return problems


def _refuse(problems: Sequence[str]) -> None:
    if len(problems) > 1:
        raise VocabgraftError("\n".join([f"{len(problems)} problems:", *(f"- {problem}" for problem in problems)]))
    if problems:
        raise VocabgraftError(problems[0])


def _tell_of_edits(resized: Path, say: Callable[[str], None]) -> None:
    """Report edits of a class that params.yaml names, because DVC does not see them."""
    if (resized / "modules.json").is_file() and (edited := edited_code(resized)):
        say(
            f"{', '.join(edited)} was edited after resize_base ran, and DVC does not see that; "
            "use it with `dvc repro --force --downstream resize_base`"
        )


def _look_up(base: BaseParams, say: Callable[[str], None]) -> Path | None:
    if base.model.startswith(REGISTRY_PREFIX):
        from tasks.registry.lookup import resolve_version

        resolve_version(base.model)
        return None
    folder = look_up_base(base.model, base.revision, base.trust_remote_code)
    if folder is None:
        say(f"base.model: {base.model} is not on this machine; validate_data downloads it from the Hub")
        return None
    tokenizer_file(folder)
    check_files(folder)
    check_code(folder, base.trust_remote_code)
    return folder


def _check_metrics(params: TrainAdapterParams, datasets: Sequence[DatasetParams], base: Path | None) -> None:
    """Refuse evaluators that cannot run, and a best metric that no evaluation gives."""
    from tasks.support.trainer_log import losses_of, metrics_of

    known = losses_of(datasets)
    if params.evaluators:
        known += metrics_of(params.evaluators, datasets, _similarity(base))
    if params.best_metric is None:
        return
    if str(params.arguments.get("eval_strategy")).rpartition(".")[2].lower() == "no":
        raise VocabgraftError(
            f"train_adapter.best_metric is {params.best_metric!r}, but nothing is evaluated, because "
            f"arguments.eval_strategy is {params.arguments['eval_strategy']!r}; set it to epoch or steps"
        )
    name = f"eval_{params.best_metric.removeprefix('eval_')}"
    if not any(fnmatchcase(name, pattern) for pattern in known):
        shown = [entry.removeprefix("eval_") if entry != "eval_loss" else entry for entry in known]
        raise VocabgraftError(
            f"train_adapter.best_metric is {params.best_metric!r}, which no evaluation gives"
            f"{did_you_mean(params.best_metric, shown)}; allowed: {', '.join(shown)}"
        )


def _similarity(base: Path | None) -> str | None:
    """The similarity function in a model's config, part of metric names; None if the config has none."""
    file = (base or Path()) / "config_sentence_transformers.json"
    found: str | None = read_json(file).get("similarity_fn_name") if base is not None and file.is_file() else None
    return found
