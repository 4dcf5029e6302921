"""Parameters of the base and of each stage but the training."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
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


class ValidateDataParams(Section):
    """Which files to read and what to accept.

    Attributes:
        retention: scored pairs that must not get worse; None takes the general pairs that come with the package.
        datasets: may be empty: the rows are then distilled and not trained.
        min_uses: texts of the training examples and contexts that a new word must be in. Words in few texts are
            listed in a warning; they are refused only where this is above 1.
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
            raise ValueError(f"a dataset is named {', '.join(reserved)}, a reserved name; name it otherwise")
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
        precision: float32 gives one result on every CPU; `auto` is bfloat16 where the hardware multiplies it.
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


# The names of `checks.runner.CHECKS`, which imports torch; a test holds the two together.
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

    A difference of embeddings is that of their numbers relative to the embedding's length. The tolerances are floors:
    where the base itself differs more in the same run, a multiple of that is allowed.

    Attributes:
        merged_tolerance: of the merged model from the adapter over the resized base.
        float32_tolerance: between batches, paddings, processes and folders.
        bfloat16_tolerance: cosine distance of bfloat16 from float32.
        onnx_tolerance: of the ONNX export from torch.
        min_change: least change by training of a text with a trained token.
        max_norm_ratio: how far a new row's norm may leave the range of the old ones; 1 is the edge.
        max_row_cosine: of two new rows.
        max_meaning_rank: how far a new token may be from all that it should mean, as a share of other meanings that
            are nearer: 0 is first, 0.5 chance.
        meaning_alpha: how often each check of meaning may fail by chance.
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
    """What a model must show to become champion.

    Every interval is a paired 95 % bootstrap interval over held-out items. "Shown to be above a limit" means: the whole
    interval is above it, over at least 6 independent groups of items, and the paired permutation test agrees.

    Attributes:
        benefit: the figure that has to be good, one of
            `DATASET.SUBSET.METRIC`: the gain over the base is shown to be above `min_gain`, in points of percent.
            `tokens_per_text`: the tokens saved per text are shown to be above `min_gain`. The texts are those of the
            test splits; where there are none, the contexts that distillation held out.
            `fidelity`: the mean cosine of the model's embedding of a text to the base's own is shown to be above
            `min_fidelity`. It measures how well one new token says what its subword tokens said, so the base has no
            value to gain over. The texts hold a new word and were not trained on: test splits and held-out contexts.
            `retention`: Spearman's rho on all retention pairs, those with a new word included, is shown to fall by
            less than `max_retention_drop`. The retention gate below asks less, and of pairs without a new word.
            None: there is no benefit to show. The model becomes champion where all other gates hold, and its version
            says that no benefit was asked for.
        min_gain: read for `DATASET.SUBSET.METRIC` and `tokens_per_text`.
        min_fidelity: read for `fidelity`.
        first_champion: `evidence` asks every version for its benefit. `any` does not ask a version that would be the
            first champion: one whose benefit is not shown is promoted, and its tags and card say that no evidence was
            asked for. One that is shown to have none is not promoted.
        max_retention_drop: of Spearman's rho on the retention pairs without a new word. The gate fails where the
            measured drop is larger. Where the drop is within the limit and its interval reaches beyond, the gate does
            not fail, and the report says that it was not shown.
        max_cost_ratio: seconds per text over the base's.
        allow_own_modules: whether a champion may need its own module classes.
    """

    benefit: Annotated[str, AfterValidator(_names_a_figure)] | None
    min_gain: float = 0.0
    min_fidelity: Fraction = 0.9
    first_champion: Literal["evidence", "any"] = "evidence"
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
