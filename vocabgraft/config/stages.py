"""Parameters of the base and of every stage except the training."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    field_serializer,
    model_validator,
)

from vocabgraft.config.benefits import parse_benefit
from vocabgraft.config.datasets import RESERVED_NAMES, DatasetParams
from vocabgraft.config.section import Count, Fraction, Name, Positive, RawFile, Section
from vocabgraft.config.training import Precision

Place = Literal["before_pooling", "after_pooling"]
Heuristic = Literal["random_normal", "vocabulary_mean", "subword_mean", "description_mean", "similar_tokens"]


def _names_a_figure(text: str) -> str:
    parse_benefit(text)
    return text


class PromptParams(Section):
    """Texts put before queries and documents.

    Attributes:
        query: text put before a query, such as "query: "; null keeps the base's own.
        document: text put before a document; null keeps the base's own.
    """

    query: str | None = None
    document: str | None = None


class BaseParams(Section):
    """The base model: its source, the hash of its weights, and whether code in its folder may run.

    Attributes:
        model: `package:MODULE/FOLDER`, a Hub id (give a `revision`), a local folder, or `models:/NAME@ALIAS`.
        revision: commit or tag of the Hub repository.
        sha256: SHA-256 of `model.safetensors`, checked before use; null records and prints the hash that was found.
        prompts: texts put before queries and documents, in training, evaluation and the registered model.
        trust_remote_code: whether Python files in the base's folder may run whenever the base or a model made from it
            is loaded. Read them first.
    """

    model: Annotated[str, StringConstraints(min_length=1)]
    revision: str | None = None
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None
    prompts: PromptParams = PromptParams()
    trust_remote_code: bool = False


class ValidateDataParams(Section):
    """Which files to read and what to accept.

    Attributes:
        vocabulary: file of the new words: token, kind (`word`, `symbol` or `special`), description.
        contexts: text files with one sentence per line that uses new words; may be empty.
        retention: scored pairs on which the model must not get worse; null uses the general pairs of the package.
        datasets: training and evaluation data. If empty, the new rows are distilled but not trained.
        on_invalid: `fail` stops at bad rows; `quarantine` drops them and writes them to a file with their reasons.
        max_rejected_fraction: with `quarantine`, a larger share of rejected rows is still a failure.
        max_new_tokens: the most words that may be added.
        min_uses: the number of texts (training examples and contexts) that must contain a new word. Words in few texts
            are listed in a warning; they are refused only if this is above 1.
        max_text_characters: the longest text that is accepted.
    """

    vocabulary: RawFile
    contexts: list[RawFile] = []
    retention: RawFile | None = None
    datasets: list[DatasetParams] = []
    on_invalid: Literal["fail", "quarantine"] = "fail"
    max_rejected_fraction: Fraction = 0.05
    max_new_tokens: Count = 3000
    min_uses: Annotated[int, Field(ge=0)] = 1
    max_text_characters: Count = 2000

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [dataset.name for dataset in self.datasets]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"datasets share the name {', '.join(repeated)}; give each its own")
        if reserved := sorted(set(names) & set(RESERVED_NAMES)):
            raise ValueError(f"a dataset is named {', '.join(reserved)}, which is a reserved name; rename it")
        return self

    @model_validator(mode="after")
    def _descriptions_are_split_once(self) -> Self:
        made = [dataset.name for dataset in self.datasets if dataset.source]
        if len(made) > 1:
            raise ValueError(
                f"datasets {', '.join(made)} are all made from the descriptions, so one would train on what another "
                "holds out; keep one of them"
            )
        return self


class ExtendTokenizerParams(Section):
    """Limits on new tokens, and which tokens of an earlier run are trained again.

    Attributes:
        max_token_characters: the longest token that is accepted.
        retrain: words that the base has from an earlier run and whose rows are trained again.
    """

    max_token_characters: Count = 64
    retrain: list[Annotated[str, StringConstraints(min_length=1)]] = []


class DistillationParams(Section):
    """Distillation: new rows train until a text gets the embedding that it had with the old subword tokens.

    Attributes:
        start: the initialization method of the rows before distillation.
        epochs: passes over the contexts.
        least_steps: the fewest training steps; with few contexts there are more epochs.
        batch_size: texts per step.
        learning_rate: initial learning rate of Adam; it decays to zero along a cosine.
        contexts_per_token: the most texts from which a token is distilled; templates fill up the rest.
        held_out: share of the contexts held out to measure fidelity.
        least_fidelity: tokens with a lower fidelity are listed.
        precision: `float32` gives the same result on every CPU; `auto` times both and uses the faster.
    """

    start: Heuristic = "subword_mean"
    epochs: Count = 2
    least_steps: Count = 100
    batch_size: Count = 32
    learning_rate: Positive = 5e-3
    contexts_per_token: Count = 64
    held_out: Fraction = 0.1
    least_fidelity: Fraction = 0.9
    precision: Precision = "float32"


class LayerParams(Section):
    """A layer of a Router.

    Attributes:
        type: a class of sentence-transformers by name, or your own as `MODULE.CLASS`.
        arguments: arguments of the class.
    """

    type: Annotated[str, StringConstraints(min_length=1)]
    arguments: dict[str, Any] = {}


class ModuleParams(LayerParams):
    """A layer before or after the pooling.

    Attributes:
        type: a class of sentence-transformers by name, or your own as `MODULE.CLASS`.
        arguments: arguments of the class.
        place: whether the layer comes before or after the pooling.
        routes: for a `Router`: the layers for `query` and those for `document`.
    """

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
    """How new rows are initialized, how many rows there are, and which layers are added to the model.

    Attributes:
        initialisation: `distillation`, or an initialization method alone.
        distillation: settings of the distillation.
        pad_to_multiple_of: pads the number of rows to a multiple, such as 64 for tensor cores.
        modules: layers before or after the pooling.
    """

    initialisation: Heuristic | Literal["distillation"] = "distillation"
    distillation: DistillationParams = DistillationParams()
    pad_to_multiple_of: Count | None = None
    modules: list[ModuleParams] = []


class MergeAdapterParams(Section):
    """The vocabulary pack that is written beside the merged model.

    Attributes:
        name: name of the pack, for example in a bank.
        licence: license of the pack, such as CC-BY-4.0; null if none was chosen.
        contexts_per_token: training texts per token kept in the pack, from which its rows can be transferred to
            another base; 0 keeps none.
    """

    name: Name
    licence: str | None = None
    contexts_per_token: Annotated[int, Field(ge=0)] = 4


# The names of `checks.runner.CHECKS`, which imports torch; a test compares the two.
CheckName = Literal[
    "old_rows_resized",
    "old_rows_adapter",
    "old_rows_merged",
    "new_rows_finite",
    "new_row_norms",
    "new_rows_apart",
    "new_rows_trained",
    "attention_sinks",
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
    "meaning_kept",
    "description_cosine",
    "descriptions_told_apart",
    "swapped_tokens",
    "relations_told_apart",
    "swapped_relations",
    "onnx_export",
]


class CheckConsistencyParams(Section):
    """Limits of the checks.

    Differences between embeddings are relative to their norm. The tolerances are lower bounds of the limit: if the base
    itself differs more in the same run, a multiple of that difference is allowed.

    Attributes:
        batch_size: batch size of the encoding.
        merged_tolerance: difference between the merged model and the adapter over the resized base.
        float32_tolerance: difference between batches, paddings, processes and folders.
        bfloat16_tolerance: cosine distance between bfloat16 and float32.
        onnx_tolerance: difference between the ONNX export and torch.
        min_change: the least change that training makes to the embedding of a text with a trained token.
        max_norm_ratio: the largest ratio of a new row's norm to the largest old norm, or of the smallest old norm to
            it.
        max_row_cosine: the largest cosine between two new rows.
        max_meaning_rank: the worst rank of a new token's meaning, as the share of other meanings that are nearer: 0 is
            first, 0.5 chance.
        meaning_alpha: the probability that a check of meaning fails by chance, however many tokens there are.
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
    max_meaning_rank: Fraction = 0.1
    meaning_alpha: Annotated[float, Field(gt=0, le=0.05)] = 0.001
    waived: dict[CheckName, Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]] = {}


class TrainControlParams(Section):
    """The control uses the settings of `train_adapter`; `evaluate_model.control` turns it on."""


class BenchmarkParams(Section):
    """Your own retrieval benchmark.

    Attributes:
        name: name of the benchmark in the metrics.
        folder: its folder inside `data/raw/`.
        format: layout of the folder.
    """

    name: Name
    folder: RawFile
    format: Literal["beir"] = "beir"


class EvaluateModelParams(Section):
    """How held-out items are scored.

    Attributes:
        batch_size: batch size of the encoding.
        recall_at: the k of recall@k.
        smoke_under: with fewer items a metric gets the verdict `smoke figure`, whatever the gain.
        reference_texts: the most texts whose drift and neighbors are measured.
        control: whether LoRA without new words is trained on the same data and scored too.
        benchmarks: your own benchmarks.
        mteb_tasks: MTEB tasks by name; needs the extra `mteb`.
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
    """What a model must show to become champion.

    Every interval is a paired 95 % bootstrap interval over held-out items. A value is "shown to be above a limit" if
    the whole interval is above the limit, over at least 6 independent groups of items, and the paired permutation test
    agrees.

    Attributes:
        benefit: the metric that must be good, in one of five forms.
            `DATASET.SUBSET.METRIC`: the gain over the base is shown to be above `min_gain`, in percentage points.
            `tokens_per_text`: the tokens saved per text are shown to be above `min_gain`. The texts are those of the
            test splits; if there are none, the contexts that distillation held out.
            `fidelity`: the mean cosine between the model's embedding of a text and the base's is shown to be above
            `min_fidelity`. It measures how well one new token replaces its subword tokens, so it is not a gain over the
            base. The texts contain a new word and were not trained on: test splits and held-out contexts.
            `retention`: Spearman's rho on all retention pairs, including those with a new word, is shown to fall by
            less than `max_retention_drop`. This is stricter than the retention gate, which reads the pairs without a
            new word.
            null: no benefit is required. The model becomes champion if all other gates hold, and its version says that
            no benefit was required.
        min_gain: limit for `DATASET.SUBSET.METRIC` and `tokens_per_text`.
        min_fidelity: limit for `fidelity`.
        first_champion: `evidence` requires the benefit of every version. `any` does not require it of the first
            champion: a version whose benefit is not shown is promoted, and its tags and card say that no evidence was
            required. A version that is shown to have no benefit is not promoted.
        max_retention_drop: the largest drop of Spearman's rho on the retention pairs without a new word. The gate fails
            if the measured drop is larger. If the drop is within the limit but its interval is not, the gate holds and
            the report says that this was not shown.
        max_cost_ratio: the largest ratio of seconds per text to the base's.
        allow_own_modules: whether a model that loads only with your own module classes may become champion.
    """

    benefit: Annotated[str, AfterValidator(_names_a_figure)] | None
    min_gain: float = 0.0
    min_fidelity: Fraction = 0.9
    first_champion: Literal["evidence", "any"] = "evidence"
    max_retention_drop: Annotated[float, Field(ge=0)] = 0.01
    max_cost_ratio: Positive = 1.5
    allow_own_modules: bool = False


def _registry_takes(name: str) -> str:
    """Refuse names that MLflow refuses (some only when the model is written) or PostgreSQL cuts (256 characters)."""
    if not name.strip() or any(mark in name for mark in "/:\0") or name == "." or name.startswith(".."):
        raise ValueError(
            f"MLflow refuses the name {name!r}; give one without '/' and ':' that does not start with '..'"
        )
    if len(name) > 256 or not name.isprintable():
        raise ValueError(f"MLflow refuses the name {name!r}; give at most 256 printable characters")
    return name


ExportName = Literal["onnx", "onnx_int8", "onnx_uint8"]


class RegisterModelParams(Section):
    """The registered model and its gates.

    Attributes:
        name: name of the registered model in MLflow.
        gates: what a version must show to become champion.
        exports: forms of the model that are logged with the version, each in a folder of its name; `_int8` and `_uint8`
            have weights of 8 bits.
    """

    name: Annotated[str, AfterValidator(_registry_takes)]
    gates: GateParams
    exports: list[ExportName] = []


# A webhook's address is often secret, and params.yaml is in Git.
FROM_ENVIRONMENT = "env:"
HIDDEN = "***"


class FailureHookParams(Section):
    """The webhook that receives a message for each failed run. No stage depends on it.

    Attributes:
        url: URL of the webhook, or `env:NAME` for an environment variable that holds it; null sends nothing.
        timeout_s: seconds to wait for an answer.
    """

    url: Annotated[
        Annotated[str, StringConstraints(pattern=r"^(https?://\S+|env:[A-Za-z_][A-Za-z0-9_]*)$")] | None,
        Field(repr=False),
    ] = None
    timeout_s: Annotated[float, Field(gt=0, le=60)] = 10.0

    @field_serializer("url")
    def _without_secret(self, url: str | None) -> str | None:
        """Keep a literal address out of run records and MLflow parameters."""
        return url if url is None or url.startswith(FROM_ENVIRONMENT) else HIDDEN
