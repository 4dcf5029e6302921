"""Typed, frozen parameters: one class a section of `params.yaml`."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from vocabgraft.errors import VocabgraftError
from vocabgraft.evaluators import check_evaluator
from vocabgraft.losses import DEFAULT_LOSS, Format, check_loss, check_method
from vocabgraft.peft_methods import ROW_CLASSES, check_peft
from vocabgraft.training_arguments import check_training_arguments

PARAMS_FILE = Path("params.yaml")

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


def _inside_raw(name: str) -> str:
    if not name or name.startswith(("/", "~")) or ".." in Path(name).parts or "\0" in name:
        raise ValueError(f"{name!r} does not name a file inside data/raw/; give a relative path without '..'")
    return name


RawFile = Annotated[str, AfterValidator(_inside_raw)]
RawFiles = Annotated[
    list[RawFile],
    Field(min_length=1),
    BeforeValidator(lambda given: [given] if isinstance(given, str) else given),
    # A single name is written as such, which is how most people give it.
    PlainSerializer(lambda names: names[0] if len(names) == 1 else names),
]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Method = Literal["tokens", "lora", "lora_and_tokens", "peft", "peft_and_tokens", "full"]
# These keep the rows of new tokens apart from the rest, so that phases and a learning rate of their own can move them.
ROW_METHODS: tuple[Method, ...] = ("tokens", "lora_and_tokens", "peft_and_tokens")
PEFT_METHODS: tuple[Method, ...] = ("peft", "peft_and_tokens")
Place = Literal["before_pooling", "after_pooling"]
Heuristic = Literal["random_normal", "vocabulary_mean", "subword_mean", "description_mean", "similar_tokens"]
Precision = Literal["auto", "float32", "bfloat16"]
# These stand beside the datasets' names in the figures of `evaluate_model`.
RESERVED_NAMES = ("retention", "tokens_per_text")

# The first column is the one whose hash splits, unless a row has a group.
COLUMNS: dict[Format, tuple[str, ...]] = {
    "triples": ("head", "relation", "tail"),
    "pairs": ("anchor", "positive"),
    "triplets": ("anchor", "positive", "negative"),
    "scored_pairs": ("sentence1", "sentence2", "score"),
    "labelled_pairs": ("sentence1", "sentence2", "label"),
    "labelled_texts": ("text", "label"),
    "texts": ("text",),
    "teacher_embeddings": ("text", "embedding"),
    "margins": ("query", "positive", "negative", "margin"),
}
MORE_NEGATIVES = tuple(f"negative_{number}" for number in range(2, 17))
OPTIONAL_COLUMNS: dict[Format, tuple[str, ...]] = {
    **dict.fromkeys(COLUMNS, ("group",)),
    "triples": (),
    "triplets": (*MORE_NEGATIVES, "group"),
}
# Columns that hold no text; every other does.
NUMBERS = ("score", "margin")
LABELS = ("label",)
VECTORS = ("embedding",)
# Formats that ask a question and know its answer, which evaluate_model measures.
RETRIEVAL_FORMATS: tuple[Format, ...] = ("triples", "pairs", "triplets")
DEFAULT_TEMPLATE = "{head} {relation}"


def text_columns(dataset_format: Format) -> tuple[str, ...]:
    """The columns of a format that hold texts, those that it must have."""
    return tuple(name for name in COLUMNS[dataset_format] if name not in (*NUMBERS, *LABELS, *VECTORS))


class Section(BaseModel):
    """Strict and frozen: an unknown key, a value of another type, an infinity or a NaN is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class PromptParams(Section):
    """Text put before a query and before a document; None keeps what the base has."""

    query: str | None = None
    document: str | None = None


class BaseParams(Section):
    """Where the base model comes from, which weights it must have, and whether code in its folder may run."""

    model: Annotated[str, StringConstraints(min_length=1)]
    revision: str | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    prompts: PromptParams = PromptParams()
    trust_remote_code: bool = False


class FileParams(Section):
    """A dataset's files inside `data/raw/`: for each split a name, a pattern such as `part-*.parquet`, or several."""

    train: RawFiles
    validation: RawFiles | None = None
    test: RawFiles | None = None


class HeldOutParams(Section):
    """Share of the groups kept out of training for each split."""

    validation: Fraction = 0.0
    test: Fraction = 0.0

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test is {self.validation + self.test}; it must leave something to train on")
        return self


class WrapperParams(Section):
    """A loss around another, such as MatryoshkaLoss: its class and its arguments."""

    name: Annotated[str, StringConstraints(min_length=1)]
    arguments: dict[str, Any] = {}


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class LossParams(WrapperParams):
    """The loss of a dataset: its class, its arguments, and what is put around it, innermost first."""

    wrappers: list[Annotated[WrapperParams, BeforeValidator(_by_name)]] = []


class DatasetParams(Section):
    """One dataset: its format, its files, how its held-out rows are chosen, and what is learnt from it.

    Attributes:
        loss: by name, or with arguments and wrappers; None is the default of the format.
        weight: of the dataset's loss.
        template: what a triple asks for its tail, where its loss is one for pairs.
    """

    name: Name
    format: Format
    files: FileParams
    held_out: HeldOutParams = HeldOutParams()
    loss: Annotated[LossParams | None, BeforeValidator(_by_name)] = None
    weight: Positive = 1.0
    template: str = DEFAULT_TEMPLATE

    @field_validator("template")
    @classmethod
    def _template_asks_with_both(cls, template: str) -> str:
        try:
            filled = template.format(head="\0", relation="\1")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(f"{template!r} is no template of {{head}} and {{relation}} ({error})") from error
        if "\0" not in filled or "\1" not in filled:
            raise ValueError(f"{template!r} leaves out {{head}} or {{relation}}; a template holds both")
        return template

    @model_validator(mode="after")
    def _loss_fits_the_format(self) -> Self:
        loss = self.chosen_loss
        check_loss(self.format, loss.name, loss.arguments, [(entry.name, entry.arguments) for entry in loss.wrappers])
        if self.template != DEFAULT_TEMPLATE and self.format != "triples":
            raise ValueError(f"template is of triples, and the format is {self.format}; take it out")
        return self

    @property
    def chosen_loss(self) -> LossParams:
        """The loss, or the default of the format."""
        return self.loss or LossParams(name=DEFAULT_LOSS[self.format])

    @property
    def has_validation(self) -> bool:
        """Whether a file or a share is given for the validation split."""
        return bool(self.files.validation or self.held_out.validation)

    @model_validator(mode="after")
    def _one_source_a_split(self) -> Self:
        for split in ("validation", "test"):
            if getattr(self.files, split) and getattr(self.held_out, split):
                raise ValueError(f"'{split}' is given as a file and as a share held out; keep one of them")
        return self


class ValidateDataParams(Section):
    """Which files to read and what to accept."""

    vocabulary: RawFile
    contexts: list[RawFile] = []
    retention: RawFile
    datasets: Annotated[list[DatasetParams], Field(min_length=1)]
    on_invalid: Literal["fail", "quarantine"] = "fail"
    max_rejected_fraction: Fraction = 0.05
    max_new_tokens: Count = 3000
    min_uses: Annotated[int, Field(ge=0)] = 8
    max_text_characters: Count = 2000

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [dataset.name for dataset in self.datasets]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"datasets share the name {', '.join(repeated)}; give each its own")
        if reserved := sorted(set(names) & set(RESERVED_NAMES)):
            raise ValueError(f"a dataset is named {', '.join(reserved)}, as a figure of its own is; name it otherwise")
        return self


class ExtendTokenizerParams(Section):
    """Limits on what may become a token, and which tokens of an earlier run train again."""

    max_token_characters: Count = 64
    retrain: list[Annotated[str, StringConstraints(min_length=1)]] = []


class DistillationParams(Section):
    """How the new tokens are pulled to what their old pieces said.

    Attributes:
        start: the method that gives the rows to start from.
        epochs: passes over the contexts.
        least_steps: few contexts are passed over more often, until there are as many steps.
        batch_size: texts a step.
        learning_rate: of Adam at the start; it falls to zero along a cosine.
        contexts_per_token: texts that each token is distilled from, at most; plain templates fill up what is missing.
        held_out: share of the contexts kept out, to measure fidelity.
        least_fidelity: tokens under it are listed.
        precision: `auto` is bfloat16 where the hardware multiplies it.
    """

    start: Heuristic = "subword_mean"
    epochs: Count = 2
    least_steps: Count = 100
    batch_size: Count = 32
    learning_rate: Positive = 5e-3
    contexts_per_token: Count = 64
    held_out: Fraction = 0.1
    least_fidelity: Fraction = 0.9
    precision: Precision = "auto"


class LayerParams(Section):
    """A layer: a stock class of sentence-transformers by name or an own one as MODULE.CLASS, and its arguments."""

    type: Annotated[str, StringConstraints(min_length=1)]
    arguments: dict[str, Any] = {}


class ModuleParams(LayerParams):
    """A layer beside the pooling; a Router has one list of layers for queries and one for documents."""

    place: Place
    routes: dict[str, Annotated[list[LayerParams], Field(min_length=1)]] = {}

    @model_validator(mode="after")
    def _a_router_has_both_routes(self) -> Self:
        if self.type != "Router" and self.routes:
            raise ValueError(f"{self.type} has no routes; only a Router has")
        if self.type == "Router" and set(self.routes) != {"query", "document"}:
            seen = ", ".join(self.routes) or "none"
            raise ValueError(f"the routes of a Router are query and document, each with layers; here: {seen}")
        return self


class ResizeBaseParams(Section):
    """How the new rows start, how many rows there are, and which layers stand beside the pooling."""

    initialisation: Heuristic | Literal["distillation"] = "distillation"
    distillation: DistillationParams = DistillationParams()
    pad_to_multiple_of: Count | None = None
    modules: list[ModuleParams] = []


class LoraParams(Section):
    """Fields of peft's LoraConfig."""

    r: Count = 16
    alpha: Count = 32
    dropout: Fraction = 0.05
    target_modules: Annotated[list[str], Field(min_length=1)]


class PeftParams(Section):
    """A configuration class of peft by its name, and its fields (`vocabgraft.peft_methods`)."""

    config: Annotated[str, StringConstraints(min_length=1)]
    arguments: dict[str, Any] = {}

    @model_validator(mode="after")
    def _peft_has_it(self) -> Self:
        check_peft(self.config, self.arguments)
        return self


class PhaseParams(Section):
    """One phase of training: which of the method's parameters move, and for how long."""

    train: Literal["rows", "adapter", "all"] = "all"
    epochs: Count | None = None
    learning_rate: Positive | None = None
    rows_learning_rate: Positive | None = None


class EvaluatorParams(Section):
    """An evaluator on the validation split of a dataset; without a name, that of its format."""

    dataset: Name
    name: Annotated[str, StringConstraints(min_length=1)] | None = None
    arguments: dict[str, Any] = {}


class EarlyStoppingParams(Section):
    """Stop after so many evaluations in a row in which the best metric did not improve by more than the threshold."""

    patience: Count = 3
    threshold: Annotated[float, Field(ge=0)] = 0.0


class LauncherParams(Section):
    """How many processes train together, each with its share of every batch.

    They are of one machine, or of as many as `meta.resources.nodes` of the stage in dvc.yaml says: where they run makes
    no difference to the result, and is no parameter.
    """

    processes: Count = 1


class TrainAdapterParams(Section):
    """What is trained, and how.

    Attributes:
        method: `tokens` trains the rows of new tokens; `lora` and `peft` an adapter, and with `_and_tokens` the rows
            too; `full` every weight of the model, with `learning_rate` alone, since rows are then part of a matrix.
        learning_rate: of all that is not a row of a new token.
        rows_learning_rate: of the rows, where the method keeps them apart.
        lora: what `lora` and `lora_and_tokens` make.
        peft: what `peft` and `peft_and_tokens` make.
        batch_size: rows of a batch, those of all processes together.
        group_by_length: batches of rows of like length, which pad less; not for `labelled_texts`.
        precision: `auto` is bfloat16 where the hardware multiplies it.
        checkpoint_every: steps between two checkpoints, from which a training that was killed goes on; None for none.
        launcher: of several processes; None is one.
        arguments: of SentenceTransformerTrainingArguments, by name.
        evaluators: run with each evaluation on the validation split.
        best_metric: the weights of the evaluation that was best in it are kept; None keeps the last.
        early_stopping: on `best_metric`.
    """

    method: Method
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Positive
    rows_learning_rate: Positive
    warmup_ratio: Fraction = 0.1
    scale: Positive = 20.0
    group_by_length: bool = False
    lora: LoraParams
    peft: PeftParams | None = None
    phases: list[PhaseParams] = []
    arguments: dict[str, Any] = {}
    evaluators: list[EvaluatorParams] = []
    best_metric: Annotated[str, StringConstraints(min_length=1)] | None = None
    early_stopping: EarlyStoppingParams | None = None
    precision: Precision = "auto"
    checkpoint_every: Count | None = 50
    launcher: LauncherParams | None = None

    @field_validator("arguments")
    @classmethod
    def _arguments_are_the_trainers(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        check_training_arguments(arguments)
        return arguments

    @model_validator(mode="after")
    def _stopping_has_a_metric(self) -> Self:
        if self.early_stopping and not self.best_metric:
            raise ValueError("early_stopping watches best_metric, which is not set; set it, such as eval_loss")
        return self

    @model_validator(mode="after")
    def _processes_share_a_batch(self) -> Self:
        processes = self.processes
        if self.batch_size % processes or self.batch_size < 2 * processes:
            raise ValueError(
                f"launcher.processes is {processes} and batch_size {self.batch_size}, the rows of all processes "
                f"together; give a multiple of {processes} with at least 2 rows for each process"
            )
        if processes > 1 and self.arguments.get("auto_find_batch_size"):
            raise ValueError("auto_find_batch_size works in one process alone; take it or launcher out of the section")
        return self

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.launcher.processes if self.launcher else 1

    @model_validator(mode="after")
    def _precision_is_said_once(self) -> Self:
        if self.arguments.get("fp16") and self.precision != "auto":
            raise ValueError(f"arguments.fp16 is set and precision is {self.precision}; keep one of them")
        return self

    @model_validator(mode="after")
    def _peft_is_given(self) -> Self:
        if self.method not in PEFT_METHODS:
            return self
        if self.peft is None:
            raise ValueError(
                f"method is {self.method} and peft is not set; give a configuration class of peft, such as "
                "{config: LoHaConfig, arguments: {r: 8, target_modules: [query, value]}}"
            )
        if self.method == "peft_and_tokens" and self.peft.config not in ROW_CLASSES:
            raise ValueError(
                f"method is peft_and_tokens, and {self.peft.config} cannot train rows of new tokens; "
                f"{_rows_beside(self.peft)}"
            )
        return self

    @model_validator(mode="after")
    def _phases_fit_the_method(self) -> Self:
        for number, phase in enumerate(self.phases, start=1):
            if self.method == "full" and phase.train != "all":
                raise ValueError(
                    f"phase {number} trains '{phase.train}', and method 'full' trains every weight in each phase; "
                    "allowed: all"
                )
            if self.method in ROW_METHODS:
                continue
            if phase.train == "rows":
                hint = f"; {_rows_beside(self.peft)}" if self.peft and self.method == "peft" else ""
                raise ValueError(f"phase {number} trains 'rows', which method '{self.method}' does not have{hint}")
            if phase.rows_learning_rate is not None:
                raise ValueError(
                    f"phase {number} sets rows_learning_rate, and method '{self.method}' does not keep rows apart; "
                    "set learning_rate"
                )
        return self


def _rows_beside(peft: PeftParams) -> str:
    if peft.config in ROW_CLASSES:
        return "method peft_and_tokens has them"
    return (
        f"of peft's classes {', '.join(ROW_CLASSES)} alone has trainable_token_indices: take it with method "
        "peft_and_tokens, or train the rows in a run of their own (method: tokens) and take its model as base.model"
    )


class MergeAdapterParams(Section):
    """What the vocabulary pack beside the merged model says of itself.

    Attributes:
        name: by which a bank of vocabularies knows it.
        licence: under which the pack may be used; None where nobody decided.
        contexts_per_token: training texts kept in it for each token, from which its rows can be carried over to
            another base; 0 keeps none.
    """

    name: Name
    licence: str | None = None
    contexts_per_token: Annotated[int, Field(ge=0)] = 4


# The names of `consistency.CHECKS`, which imports torch; a test holds the two together.
CheckName = Literal[
    "old_rows_resized",
    "old_rows_adapter",
    "old_rows_merged",
    "new_rows_finite",
    "new_row_norms",
    "new_rows_apart",
    "new_rows_trained",
    "other_weights",
    "segmentation",
    "one_id_each",
    "sizes_agree",
    "tokenizers_equal",
    "tokenizer_reload",
    "special_tokens",
    "artifacts_load",
    "untouched_texts",
    "reload",
    "merged_as_adapter",
    "adapter_switch",
    "fresh_process",
    "moved_folder",
    "base_absent",
    "one_at_a_time",
    "padding",
    "bfloat16",
    "adapter_names_base",
    "trained_differs",
    "adapter_moved",
    "description_cosine",
    "description_place",
    "descriptions_told_apart",
    "relation_place",
    "relations_told_apart",
    "onnx_export",
]


class CheckConsistencyParams(Section):
    """Limits of the checks.

    A difference of embeddings is that of their numbers relative to the embedding's length. A place is from 0 (first)
    over 0.5 (chance) to 1 (last).

    Attributes:
        merged_tolerance: largest difference of the merged model from the adapter over the resized base.
        float32_tolerance: largest difference between batches, paddings, processes and folders.
        bfloat16_tolerance: largest cosine distance of bfloat16 from float32.
        onnx_tolerance: largest difference of the ONNX export from torch.
        min_change: least change by training of a text with a trained token.
        max_norm_ratio: how far a new row's norm may leave the range of the old ones; 1 is the edge.
        max_row_cosine: of two new rows.
        min_description_cosine: of each new token to its description.
        max_description_place: of each new token's own description among all.
        max_relation_place: of each relation's token over its held-out triples, in the mean.
        max_mean_place: of all descriptions, and of all held-out triples.
        waived: checks that may fail or not run, each with its reason, which the report shows.
    """

    batch_size: Count = 64
    merged_tolerance: Positive = 1e-5
    float32_tolerance: Positive = 1e-6
    bfloat16_tolerance: Positive = 2e-3
    onnx_tolerance: Positive = 1e-5
    min_change: Positive = 1e-4
    max_norm_ratio: Annotated[float, Field(ge=1)] = 1.0
    max_row_cosine: Fraction = 0.99
    min_description_cosine: Annotated[float, Field(ge=-1, le=1)] = 0.1
    max_description_place: Fraction = 0.5
    max_relation_place: Fraction = 0.6
    max_mean_place: Fraction = 0.4
    waived: dict[CheckName, Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]] = {}


class TrainControlParams(Section):
    """The control is trained as `train_adapter` says, where `evaluate_model.control` asks for it."""


class BenchmarkParams(Section):
    """A retrieval benchmark of the user's: its name in the figures and its folder inside `data/raw/`."""

    name: Name
    folder: RawFile
    format: Literal["beir"] = "beir"


class EvaluateModelParams(Section):
    """How the held-out items are scored.

    Attributes:
        batch_size: of the encoding.
        recall_at: the k of recall@k.
        smoke_under: figures of fewer items carry no claim.
        reference_texts: of the corpus whose drift and neighbours are looked at, at most.
        control: whether a control without new words is trained and scored too.
        benchmarks: the user's own.
        mteb_tasks: tasks of MTEB by name, with the extra `mteb`.
    """

    batch_size: Count = 64
    recall_at: Count = 10
    smoke_under: Annotated[int, Field(ge=0)] = 200
    reference_texts: Count = 2000
    control: bool = False
    benchmarks: list[BenchmarkParams] = []
    mteb_tasks: list[Annotated[str, StringConstraints(min_length=1)]] = []

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [*(entry.name for entry in self.benchmarks), *self.mteb_tasks]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"benchmarks share the name {', '.join(repeated)}; give each its own")
        return self


class GateParams(Section):
    """What a model must reach to become champion."""

    benefit: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+\.(all|new_word|no_new_word)\.[a-z_0-9@]+$")]
    min_gain: float = 0.0
    max_retention_drop: Annotated[float, Field(ge=0)] = 0.01
    max_cost_ratio: Positive = 1.5
    allow_own_modules: bool = False


def _registry_takes(name: str) -> str:
    """MLflow refuses these, some of them only when the model is written; PostgreSQL takes 256 characters."""
    if not name.strip() or any(mark in name for mark in "/:\0") or name == "." or name.startswith(".."):
        raise ValueError(f"{name!r} is no name for MLflow; give one without '/' and ':' that does not start with '..'")
    if len(name) > 256 or not name.isprintable():
        raise ValueError(f"{name!r} is no name for MLflow; give at most 256 printable characters")
    return name


class RegisterModelParams(Section):
    """The registered model's name and its gates."""

    name: Annotated[str, AfterValidator(_registry_takes)]
    gates: GateParams


# A webhook's address is often its secret, and params.yaml is in Git.
FROM_ENVIRONMENT = "env:"


class FailureHookParams(Section):
    """The webhook that is told of a failed run; no stage reads it. None: nobody is told."""

    url: Annotated[str, StringConstraints(pattern=r"^(https?://\S+|env:[A-Za-z_][A-Za-z0-9_]*)$")] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0


class Params(Section):
    """The whole of `params.yaml`: the seed, the base, the failure hook and one section a stage."""

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
    def _losses_can_be_trained(self) -> Self:
        for number, dataset in enumerate(self.validate_data.datasets):
            loss = dataset.chosen_loss
            try:
                check_method(loss.name, loss.arguments, self.train_adapter.method)
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
                "train_adapter.best_metric is measured on validation splits, and no dataset has one; give "
                "held_out.validation or files.validation"
            )
        return self

    @model_validator(mode="after")
    def _control_can_be_trained(self) -> Self:
        for dataset in self.validate_data.datasets if self.evaluate_model.control else ():
            loss = dataset.chosen_loss
            try:
                check_method(loss.name, loss.arguments, "lora")
            except ValueError as error:
                raise ValueError(
                    f"evaluate_model.control trains LoRA with the losses of all datasets, and that of {dataset.name} "
                    f"does not allow it: {error}; or set evaluate_model.control to false"
                ) from error
        return self

    @model_validator(mode="after")
    def _benchmarks_have_names_of_their_own(self) -> Self:
        taken = {entry.name for entry in self.validate_data.datasets} | set(RESERVED_NAMES)
        names = [*(entry.name for entry in self.evaluate_model.benchmarks), *self.evaluate_model.mteb_tasks]
        if both := sorted(taken & set(names)):
            raise ValueError(
                f"evaluate_model has a benchmark named {', '.join(both)}, as a dataset or figure is; name it otherwise"
            )
        return self

    @model_validator(mode="after")
    def _benefit_is_measured(self) -> Self:
        dataset, _, metric = self.register_model.gates.benefit.split(".")
        measured = self._measured()
        if dataset not in measured:
            raise ValueError(
                f"register_model.gates.benefit names the dataset '{dataset}'; allowed: {', '.join(measured)}"
            )
        if metric not in measured[dataset]:
            raise ValueError(
                f"register_model.gates.benefit names the metric '{metric}'; allowed: {', '.join(measured[dataset])}"
            )
        return self

    def _measured(self) -> dict[str, list[str]]:
        """The metrics of each dataset whose items are scored one by one."""
        retrieval = ["mrr", f"recall@{self.evaluate_model.recall_at}"]
        metrics = dict.fromkeys(RETRIEVAL_FORMATS, retrieval) | {"scored_pairs": ["spearman"]}
        return {entry.name: metrics[entry.format] for entry in self.validate_data.datasets if entry.format in metrics}


def _check_evaluator(evaluator: EvaluatorParams, datasets: dict[str, DatasetParams]) -> None:
    if evaluator.dataset not in datasets:
        raise ValueError(f"there is no dataset {evaluator.dataset}; allowed: {', '.join(datasets)}")
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
    """The text of a `params.yaml`; refused when it is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise VocabgraftError(f"{path} is missing; run from the project's root, or `git checkout {path}`") from error
    except UnicodeDecodeError as error:
        raise VocabgraftError(f"{path} is not UTF-8: {error}; save the file as UTF-8") from error


def parse_params_text(text: str, origin: str) -> Params:
    """Turn the text of a `params.yaml` into `Params`; `origin` names it in errors."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        # YAML 1.2, as DVC reads the file: in PyYAML's 1.1 `5e-4` is text and `on` is true.
        loaded = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise VocabgraftError(f"{origin} is not YAML: {error}") from error
    return parse_params(loaded, origin)


def parse_params(loaded: Any, origin: str) -> Params:
    """Turn a loaded mapping into `Params`; `origin` names it in errors."""
    if not isinstance(loaded, dict):
        raise VocabgraftError(f"{origin} holds {type(loaded).__name__}, not a mapping of sections")
    try:
        return Params.model_validate(loaded)
    except ValidationError as error:
        lines = [_explain(dict(detail)) for detail in error.errors()]
        raise VocabgraftError(f"{origin}: " + "\n".join(lines)) from error


def _explain(detail: dict[str, Any]) -> str:
    location: tuple[str | int, ...] = detail["loc"]
    key = ".".join(str(part) for part in location) or "(whole file)"
    if detail["type"] == "extra_forbidden":
        allowed = ", ".join(_fields_at(location[:-1])) or "none"
        return f"unknown key '{key}' (value {detail['input']!r}); allowed here: {allowed}"
    if detail["type"] == "missing":
        return f"key '{key}' is missing; add it"
    if detail["type"] == "value_error":
        return f"{key}: {detail['ctx']['error']}" if location else str(detail["ctx"]["error"])
    return f"key '{key}' is {detail['input']!r}; {detail['msg'].replace('Input should', 'it should')}"


def _fields_at(location: tuple[str | int, ...]) -> list[str]:
    model: Any = Params
    for part in location:
        # Names that the user gives, such as a Router's routes, are no fields.
        if isinstance(part, str) and part in model.model_fields:
            model = _section_of(model.model_fields[part].annotation)
    return list(model.model_fields)


def _section_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_of(argument) for argument in get_args(annotation))
    return next((section for section in found if section is not None), None)
