"""`params.yaml`: reads it, checks it across sections, and explains its errors."""

from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    model_validator,
)

from vocabgraft.config.benefits import (
    BENCHMARK_METRICS,
    FIDELITY,
    RETENTION,
    SPEARMAN,
    TOKENS_PER_TEXT,
    metrics_of,
    parse_benefit,
    require_measured,
)
from vocabgraft.config.datasets import RESERVED_NAMES, DatasetParams
from vocabgraft.config.evaluators import check_evaluator
from vocabgraft.config.losses import check_method
from vocabgraft.config.section import Section
from vocabgraft.config.stages import (
    HIDDEN,
    BaseParams,
    CheckConsistencyParams,
    EvaluateModelParams,
    ExtendTokenizerParams,
    FailureHookParams,
    MergeAdapterParams,
    RegisterModelParams,
    ResizeBaseParams,
    TrainControlParams,
    ValidateDataParams,
)
from vocabgraft.config.training import EvaluatorParams, TrainAdapterParams
from vocabgraft.config.yaml_text import load_yaml
from vocabgraft.errors import VocabgraftError

PARAMS_FILE = Path("params.yaml")
# Characters of a value in a message.
LONGEST_VALUE = 200


class Params(Section):
    """All of `params.yaml`: the seed, the base, the failure hook and one section per stage.

    Attributes:
        seed: seed of initialization, distillation, training and bootstrap.
        base: the base model.
        failure_hook: a webhook for failed runs.
        validate_data: files, datasets, limits, and what to do with bad rows.
        extend_tokenizer: limits on new tokens; tokens of an earlier run to train again.
        resize_base: initialization of new rows, distillation, your own layers.
        train_adapter: the training.
        merge_adapter: the vocabulary pack.
        train_control: empty; the control is trained with the settings of `train_adapter`.
        check_consistency: limits of the checks, and waived checks with their reasons.
        evaluate_model: metrics, the control, your own benchmarks, MTEB tasks.
        register_model: the registered model's name and its gates.
    """

    seed: Annotated[int, Field(ge=0)]
    base: BaseParams
    failure_hook: FailureHookParams = FailureHookParams()
    validate_data: ValidateDataParams
    extend_tokenizer: ExtendTokenizerParams
    resize_base: ResizeBaseParams
    train_adapter: TrainAdapterParams
    merge_adapter: MergeAdapterParams
    train_control: TrainControlParams
    check_consistency: CheckConsistencyParams
    evaluate_model: EvaluateModelParams
    register_model: RegisterModelParams

    @model_validator(mode="after")
    def _phases_have_something_to_train(self) -> Self:
        if self.train_adapter.method == "tokens" and not self.resize_base.modules:
            for number, phase in enumerate(self.train_adapter.phases, start=1):
                if phase.train == "adapter":
                    raise ValueError(
                        f"train_adapter.phases: phase {number} trains 'adapter', which method 'tokens' does not have "
                        "(with resize_base.modules it would train these)"
                    )
        return self

    @model_validator(mode="after")
    def _gate_has_no_modules(self) -> Self:
        if self.train_adapter.method == "gated" and self.resize_base.modules:
            raise ValueError(
                "train_adapter.method is gated, but trained resize_base.modules would change every text; "
                "set resize_base.modules: [], or another method"
            )
        return self

    @model_validator(mode="after")
    def _losses_can_be_trained(self) -> Self:
        for number, dataset in enumerate(self.validate_data.datasets):
            loss = dataset.chosen_loss
            try:
                wrappers = [wrapper.name for wrapper in loss.wrappers]
                check_method(loss.name, loss.arguments, self.train_adapter.method, wrappers)
            except ValueError as error:
                raise ValueError(f"validate_data.datasets.{number}.loss: {error}") from error
        return self

    @model_validator(mode="after")
    def _evaluators_have_data(self) -> Self:
        datasets = {entry.name: entry for entry in self.validate_data.datasets}
        for number, evaluator in enumerate(self.train_adapter.evaluators):
            try:
                _check_evaluator(evaluator, datasets)
            except ValueError as error:
                raise ValueError(f"train_adapter.evaluators.{number}: {error}") from error
        if self.train_adapter.best_metric and not any(entry.has_validation for entry in datasets.values()):
            raise ValueError(
                "train_adapter.best_metric is measured on validation splits, but no dataset has one; give "
                "held_out.validation or files.validation"
            )
        return self

    @model_validator(mode="after")
    def _control_can_be_trained(self) -> Self:
        if self.evaluate_model.control and not self.trains:
            raise ValueError(
                "evaluate_model.control trains LoRA on the same data, but nothing is trained here "
                "(validate_data.datasets is empty or train_adapter.epochs is 0); set evaluate_model.control to false"
            )
        for dataset in self.validate_data.datasets if self.evaluate_model.control else ():
            loss = dataset.chosen_loss
            try:
                check_method(loss.name, loss.arguments, "lora")
            except ValueError as error:
                raise ValueError(
                    f"evaluate_model.control trains LoRA with the losses of all datasets, but that of {dataset.name} "
                    f"does not allow it: {error}; or set evaluate_model.control to false"
                ) from error
        return self

    @model_validator(mode="after")
    def _benchmarks_have_names_of_their_own(self) -> Self:
        taken = {entry.name for entry in self.validate_data.datasets} | set(RESERVED_NAMES)
        names = [*(entry.name for entry in self.evaluate_model.benchmarks), *self.evaluate_model.mteb_tasks]
        if both := sorted(taken & set(names)):
            raise ValueError(
                f"evaluate_model has a benchmark named {', '.join(both)}, the name of a dataset or metric; rename it"
            )
        return self

    @model_validator(mode="after")
    def _benefit_is_measured(self) -> Self:
        if self.register_model.gates.benefit is not None:
            require_measured(parse_benefit(self.register_model.gates.benefit), self.measured)
        return self

    @property
    def trains(self) -> bool:
        """Whether there are examples and epochs; otherwise rows stay as distilled."""
        return bool(self.validate_data.datasets) and self.train_adapter.trains

    @property
    def measured(self) -> dict[str, tuple[str, ...]]:
        """The metrics that `evaluate_model` computes item by item, by dataset, benchmark or metric without labels."""
        datasets, evaluation = self.validate_data.datasets, self.evaluate_model
        found: dict[str, tuple[str, ...]] = {}
        if any(dataset.has_test for dataset in datasets) or self._holds_out_contexts:
            found = {FIDELITY.dataset: (FIDELITY.metric,), TOKENS_PER_TEXT.dataset: (TOKENS_PER_TEXT.metric,)}
        found[RETENTION] = (SPEARMAN,)
        for dataset in datasets:
            if dataset.has_test and (metrics := metrics_of(dataset.format, evaluation.recall_at)):
                found[dataset.name] = metrics
        return found | {entry.name: BENCHMARK_METRICS for entry in evaluation.benchmarks}

    @property
    def _holds_out_contexts(self) -> bool:
        learnt = self.resize_base.initialisation == "distillation" and not self.resize_base.distillation.held_out
        return bool(self.validate_data.contexts) and not learnt


def _check_evaluator(evaluator: EvaluatorParams, datasets: dict[str, DatasetParams]) -> None:
    if evaluator.dataset not in datasets:
        allowed = ", ".join(datasets) or "none, since validate_data.datasets is empty"
        raise ValueError(f"there is no dataset {evaluator.dataset}; allowed: {allowed}")
    dataset = datasets[evaluator.dataset]
    check_evaluator(dataset.format, dataset.chosen_loss.name, evaluator.name, evaluator.arguments)
    if not dataset.has_validation:
        raise ValueError(
            f"the dataset {dataset.name} has no validation split to evaluate on; give held_out.validation or "
            "files.validation"
        )


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check `params.yaml`.

    Raises:
        VocabgraftError: naming the key, the value seen and what is allowed.
    """
    return parse_params_text(read_params_text(path), str(path))


def read_params_text(path: Path) -> str:
    """Read the text of a `params.yaml`.

    Raises:
        VocabgraftError: if the file is missing or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise VocabgraftError(f"{path} is missing; run from the project's root, or `git checkout {path}`") from error
    except UnicodeDecodeError as error:
        raise VocabgraftError(f"{path} is not UTF-8: {error}; save the file as UTF-8") from error


def parse_params_text(text: str, origin: str) -> Params:
    """Parse the text of a `params.yaml`; `origin` names it in errors."""
    return parse_params(load_yaml(text, origin), origin)


def parse_params(loaded: Any, origin: str) -> Params:
    """Convert a loaded mapping to `Params`; `origin` names it in errors."""
    if not isinstance(loaded, dict):
        raise VocabgraftError(f"{origin} holds {type(loaded).__name__}, not a mapping of sections")
    try:
        return Params.model_validate(loaded)
    except ValidationError as error:
        lines = [_explain(dict(detail)) for detail in error.errors()]
        raise VocabgraftError(f"{origin}: " + "\n".join(lines)) from error


def _shortened(text: str) -> str:
    """The beginning of a value that is too long for a message."""
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _explain(detail: dict[str, Any]) -> str:
    location: tuple[str | int, ...] = detail["loc"]
    # The address of a hook may be a secret, even under a wrong key of its section.
    seen = HIDDEN if location[:1] == ("failure_hook",) else _shortened(repr(detail["input"]))
    key = ".".join(str(part) for part in location) or "(whole file)"
    if detail["type"] == "extra_forbidden":
        allowed = ", ".join(_fields_at(location[:-1])) or "none"
        return f"unknown key '{key}' (value {seen}); allowed here: {allowed}"
    if detail["type"] == "missing":
        return f"key '{key}' is missing; add it"
    if detail["type"] == "value_error":
        return f"{key}: {detail['ctx']['error']}" if location else str(detail["ctx"]["error"])
    return f"key '{key}' is {seen}; {detail['msg'].replace('Input should', 'it should')}"


def _fields_at(location: tuple[str | int, ...]) -> list[str]:
    model: Any = Params
    for part in location:
        # Names that the user chooses, such as a Router's routes, are not fields.
        if isinstance(part, str) and part in model.model_fields:
            model = _section_of(model.model_fields[part].annotation)
    return [field.alias or name for name, field in model.model_fields.items()]


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_of(argument) for argument in get_args(annotation))
    return next((section for section in found if section is not None), None)
