"""Parameters of the training."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from vocabgraft.config.peft_methods import ROW_CLASSES, check_peft
from vocabgraft.config.section import Count, Fraction, Name, Positive, RawFile, Section
from vocabgraft.config.training_arguments import check_training_arguments

Method = Literal["tokens", "gated", "lora", "lora_and_tokens", "peft", "peft_and_tokens", "full"]
# These train the rows of new tokens separately, so that the rows can have their own phases and learning rate.
ROW_METHODS: tuple[Method, ...] = ("tokens", "gated", "lora_and_tokens", "peft_and_tokens")
# These do not change texts without a new token.
STILL_METHODS: tuple[Method, ...] = ("tokens", "gated")
PEFT_METHODS: tuple[Method, ...] = ("peft", "peft_and_tokens")
Precision = Literal["auto", "float32", "bfloat16"]


class LoraParams(Section):
    """Fields of peft's LoraConfig.

    Attributes:
        r: rank of the LoRA matrices.
        alpha: scaling: the update is multiplied by `alpha / r`.
        dropout: dropout probability on the LoRA's input.
        target_modules: names of the linear layers that get a LoRA.
    """

    r: Count = 16
    alpha: Count = 32
    dropout: Fraction = 0.05
    target_modules: Annotated[list[str], Field(min_length=1)] = ["query", "key", "value", "dense"]


class PeftParams(Section):
    """Another method of peft.

    Attributes:
        config: configuration class of peft by name (`vocabgraft/config/peft_methods.py` lists the classes allowed).
        arguments: fields of that class.
    """

    config: Annotated[str, StringConstraints(min_length=1)]
    arguments: dict[str, Any] = {}

    @model_validator(mode="after")
    def _peft_has_it(self) -> Self:
        check_peft(self.config, self.arguments)
        return self


class PhaseParams(Section):
    """One phase of training: which of the method's parameters train, and for how long.

    Attributes:
        train: `rows` (of new tokens), `adapter` (and your own layers), or `all`.
        epochs: epochs of the phase; null uses `train_adapter.epochs`.
        learning_rate: learning rate of the phase; null uses `train_adapter.learning_rate`.
        rows_learning_rate: learning rate of the rows; null uses `train_adapter.rows_learning_rate`.
    """

    train: Literal["rows", "adapter", "all"] = "all"
    epochs: Count | None = None
    learning_rate: Positive | None = None
    rows_learning_rate: Positive | None = None


class RetainParams(Section):
    """Keep general texts near the base's embeddings while an adapter or every weight trains.

    Attributes:
        weight: weight of the mean cosine distance to the base, beside the losses of the datasets.
        texts: file in data/raw with one general text per line; null uses half of the retention pairs, which are then
            not evaluated.
    """

    weight: Positive = 1.0
    texts: RawFile | None = None


class EvaluatorParams(Section):
    """An evaluator on the validation split of a dataset.

    Attributes:
        dataset: name of the dataset.
        name: class of the evaluator; null uses the default of the dataset's format.
        arguments: arguments of the class.
    """

    dataset: Name
    name: Annotated[str, StringConstraints(min_length=1)] | None = None
    arguments: dict[str, Any] = {}


class EarlyStoppingParams(Section):
    """Early stopping on `best_metric`.

    Attributes:
        patience: evaluations in a row without improvement after which training stops.
        threshold: an improvement must be larger than this.
    """

    patience: Count = 3
    threshold: Annotated[float, Field(ge=0)] = 0.0


class LauncherParams(Section):
    """Training in several processes.

    They run on one machine, or on the number of machines that `meta.resources.nodes` of the stage in dvc.yaml gives.
    Where they run does not change the result, so it is not a parameter.

    Attributes:
        processes: number of processes; each takes an equal share of every batch.
    """

    processes: Count = 1


class TrainAdapterParams(Section):
    """What is trained, and how.

    Attributes:
        method: `tokens` trains the rows of new tokens; `gated` also trains LoRA, which acts only on texts with a new
            token; `lora` and `peft` train an adapter, and with `_and_tokens` the rows too; `full` trains every weight
            with only `learning_rate`, since the rows are then part of the matrix.
        epochs: epochs of each phase that sets none; 0 trains nothing, and the rows stay as distilled.
        batch_size: rows per batch, over all processes together.
        learning_rate: learning rate of everything except the rows of new tokens; with `full` of all weights.
        rows_learning_rate: learning rate of the rows; not used with `lora`, `peft` and `full`.
        warmup_ratio: share of the steps during which the learning rate rises from 0.
        scale: factor on the cosine in losses with an in-batch softmax, unless the loss's arguments set it.
        group_by_length: batches texts of similar length together, which saves padding; not for `labelled_texts`.
        lora: settings of `lora`, `lora_and_tokens` and `gated`.
        peft: settings of `peft` and `peft_and_tokens`.
        phases: phases of training in order, such as `[{train: rows, epochs: 2}, {train: all, epochs: 2}]`; if empty,
            one phase trains everything.
        arguments: arguments of SentenceTransformerTrainingArguments by name, such as `{max_grad_norm: 0.5}`.
        evaluators: evaluators that run on validation splits, such as `[{dataset: terms, arguments: {mrr_at_k: [10]}}]`.
        best_metric: metric, such as `eval_loss` or `terms_cosine_mrr@10`, whose best evaluation gives the weights that
            are kept; null keeps the last.
        early_stopping: stops early on `best_metric`.
        precision: `float32` gives the same result on every CPU; `auto` times both and uses the faster.
        checkpoint_every: steps between checkpoints; a killed training resumes from the last one. null saves none.
        launcher: trains in several processes; null is one process.
        retain: keeps general texts near the base; not for `tokens` and `gated`, which do not move them.
    """

    method: Method = "tokens"
    epochs: Annotated[int, Field(ge=0)] = 2
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Positive = 5e-4
    rows_learning_rate: Positive = 5e-3
    warmup_ratio: Fraction = 0.1
    scale: Positive = 20.0
    group_by_length: bool = False
    lora: LoraParams = LoraParams()
    peft: PeftParams | None = None
    phases: list[PhaseParams] = []
    arguments: dict[str, Any] = {}
    evaluators: list[EvaluatorParams] = []
    best_metric: Annotated[str, StringConstraints(min_length=1)] | None = None
    early_stopping: EarlyStoppingParams | None = None
    precision: Precision = "float32"
    checkpoint_every: Count | None = 50
    launcher: LauncherParams | None = None
    retain: RetainParams | None = None

    @field_validator("arguments")
    @classmethod
    def _arguments_are_the_trainers(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        check_training_arguments(arguments)
        return arguments

    @model_validator(mode="after")
    def _stopping_has_a_metric(self) -> Self:
        if self.early_stopping and not self.best_metric:
            raise ValueError("early_stopping watches best_metric, which is not set; set it, for example to eval_loss")
        return self

    @model_validator(mode="after")
    def _general_texts_can_move(self) -> Self:
        if self.retain and self.method in STILL_METHODS:
            raise ValueError(
                f"retain is set, but method {self.method} does not change texts without a new word; set "
                "retain: null, or another method"
            )
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
            raise ValueError("auto_find_batch_size works in one process only; remove it, or remove launcher")
        return self

    def for_control(self) -> Self:
        """Settings of the control, LoRA over the unchanged base: one phase with the epochs of all phases.

        Batch size, losses, LoRA and its learning rate stay the same. The control trains in one process, without
        `retain`.
        """
        epochs = sum(phase.epochs or self.epochs for phase in self.phases) or self.epochs
        update = {"method": "lora", "phases": [], "epochs": epochs, "launcher": None, "retain": None}
        return self.model_copy(update=update)

    @model_validator(mode="after")
    def _phases_have_epochs(self) -> Self:
        for number, phase in enumerate(self.phases, start=1):
            if not (phase.epochs or self.epochs):
                raise ValueError(
                    f"epochs is 0 and phase {number} sets none; give the phase its epochs, or train nothing without "
                    "phases"
                )
        return self

    @property
    def trains(self) -> bool:
        """Whether anything is trained, given examples."""
        return bool(self.phases or self.epochs)

    @property
    def processes(self) -> int:
        """The number of processes that train together."""
        return self.launcher.processes if self.launcher else 1

    @model_validator(mode="after")
    def _precision_is_said_once(self) -> Self:
        if self.arguments.get("fp16") and self.precision != "auto":
            raise ValueError(
                f"arguments.fp16 is set, but precision is {self.precision}; set precision: auto to train in float16, "
                "or drop arguments.fp16"
            )
        return self

    @model_validator(mode="after")
    def _peft_is_given(self) -> Self:
        if self.method not in PEFT_METHODS:
            return self
        if self.peft is None:
            raise ValueError(
                f"method is {self.method}, but peft is not set; give a configuration class of peft, such as "
                "{config: LoHaConfig, arguments: {r: 8, target_modules: [query, value]}}"
            )
        if self.method == "peft_and_tokens" and self.peft.config not in ROW_CLASSES:
            raise ValueError(
                f"method is peft_and_tokens, but {self.peft.config} cannot train rows of new tokens; "
                f"{_rows_beside(self.peft)}"
            )
        return self

    @model_validator(mode="after")
    def _phases_fit_the_method(self) -> Self:
        for number, phase in enumerate(self.phases, start=1):
            if self.method == "full" and phase.train != "all":
                raise ValueError(
                    f"phase {number} trains '{phase.train}', but method 'full' trains every weight in each phase; "
                    "allowed: all"
                )
            if self.method in ROW_METHODS:
                continue
            if phase.train == "rows":
                hint = f"; {_rows_beside(self.peft)}" if self.peft and self.method == "peft" else ""
                raise ValueError(f"phase {number} trains 'rows', which method '{self.method}' does not have{hint}")
            if phase.rows_learning_rate is not None:
                raise ValueError(
                    f"phase {number} sets rows_learning_rate, but method '{self.method}' does not train rows apart; "
                    "set learning_rate"
                )
        return self


def _rows_beside(peft: PeftParams) -> str:
    if peft.config in ROW_CLASSES:
        return "method peft_and_tokens has them"
    return (
        f"only {', '.join(ROW_CLASSES)} of peft's classes has trainable_token_indices: use it with method "
        "peft_and_tokens, or train the rows in a separate run (method: tokens) and use its model as base.model"
    )
