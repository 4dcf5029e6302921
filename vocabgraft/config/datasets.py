"""Parameters of a dataset: format and columns, files, held-out rows, loss."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from vocabgraft.config.benefits import WITHOUT_LABELS
from vocabgraft.config.losses import DEFAULT_LOSS, LOSSES, Format, check_loss
from vocabgraft.config.section import Fraction, Name, Positive, RawFiles, Section

Split = Literal["train", "validation", "test"]
# The metrics of `evaluate_model` have these keys beside the names of the datasets.
# `retain` names the general texts of train_adapter.retain, which are a training set like a dataset.
RETAIN = "retain"
RESERVED_NAMES = (*WITHOUT_LABELS, RETAIN)

# The hash of the first column decides the split, unless a row has a group.
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
# The texts that make rows one group. Negatives are left out, since most are answers of other rows, and all rows would
# be one group. So are tails: a graph is connected, and link prediction asks for known entities.
JOINING: dict[Format, tuple[str, ...]] = {
    "triples": ("head",),
    "pairs": ("anchor", "positive"),
    "triplets": ("anchor", "positive"),
    "scored_pairs": ("sentence1", "sentence2"),
    "labelled_pairs": ("sentence1", "sentence2"),
    "labelled_texts": ("text",),
    "texts": ("text",),
    "teacher_embeddings": ("text",),
    "margins": ("query", "positive"),
}
# Columns that hold no text; every other column does.
NUMBERS = ("score", "margin")
LABELS = ("label",)
VECTORS = ("embedding",)
# Formats of a query and its answer, which evaluate_model scores as retrieval.
RETRIEVAL_FORMATS: tuple[Format, ...] = ("triples", "pairs", "triplets")
DEFAULT_TEMPLATE = "{head} {relation}"


def text_columns(dataset_format: Format) -> tuple[str, ...]:
    """The required columns of a format that hold texts."""
    return tuple(name for name in COLUMNS[dataset_format] if name not in (*NUMBERS, *LABELS, *VECTORS))


class FileParams(Section):
    """A dataset's files inside `data/raw/`.

    A split is a file, a pattern such as `part-*.parquet`, or a list of both.

    Attributes:
        train: files of the train split.
        validation: files of the validation split; or hold out a share (`held_out`).
        test: files of the test split; or hold out a share (`held_out`).
    """

    train: RawFiles
    validation: RawFiles | None = None
    test: RawFiles | None = None


class HeldOutParams(Section):
    """Share of the groups that is held out from training for each split.

    Attributes:
        validation: share of the validation split.
        test: share of the test split.
    """

    validation: Fraction = 0.0
    test: Fraction = 0.0

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test is {self.validation + self.test}; it must leave something to train on")
        return self


class WrapperParams(Section):
    """A loss that wraps another, such as MatryoshkaLoss.

    Attributes:
        name: class of the wrapper.
        arguments: arguments of the class.
    """

    name: Annotated[str, StringConstraints(min_length=1)]
    arguments: dict[str, Any] = {}


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class LossParams(WrapperParams):
    """The loss of a dataset.

    Attributes:
        name: class of the loss.
        arguments: arguments of the class.
        wrappers: losses that wrap it, innermost first, by name or with arguments.
    """

    wrappers: list[Annotated[WrapperParams, BeforeValidator(_by_name)]] = []


class DatasetParams(Section):
    """One dataset.

    Attributes:
        name: name of the dataset.
        format: format of the rows, which determines their columns and the losses that fit.
        from: `descriptions` makes the pairs from the vocabulary: each word, and contexts that hold it, against its
            description; null reads them from `files`. The field is `source`.
        files: files of each split; null with `from`.
        held_out: shares of the train files to hold out for validation and test.
        loss: loss by name, or with arguments and wrappers; null uses the default of the format.
        weight: weight of the dataset's loss.
        template: text of the query that a triple makes for its tail; used with losses for pairs.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    name: Name
    format: Format
    source: Literal["descriptions"] | None = Field(default=None, alias="from")
    files: FileParams | None = None
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
            raise ValueError(f"{template!r} is not a template of {{head}} and {{relation}} ({error})") from error
        if "\0" not in filled or "\1" not in filled:
            raise ValueError(f"{template!r} lacks {{head}} or {{relation}}; a template contains both")
        return template

    @model_validator(mode="after")
    def _loss_fits_the_format(self) -> Self:
        loss = self.chosen_loss
        check_loss(self.format, loss.name, loss.arguments, [(entry.name, entry.arguments) for entry in loss.wrappers])
        if self.template != DEFAULT_TEMPLATE and self.format != "triples":
            raise ValueError(f"template is for triples, but the format is {self.format}; remove it")
        return self

    @model_validator(mode="after")
    def _rows_come_from_one_place(self) -> Self:
        if (self.files is None) is (self.source is None):
            seen = "both" if self.files else "neither"
            raise ValueError(f"a dataset has either files or from (allowed: descriptions), but this one has {seen}")
        if self.source and self.format != "pairs":
            raise ValueError(f"from: {self.source} makes pairs, but the format is {self.format}; set format to pairs")
        return self

    def files_of(self, split: Split) -> Sequence[str]:
        """The files given for a split."""
        return (getattr(self.files, split) or ()) if self.files else ()

    @property
    def chosen_loss(self) -> LossParams:
        """The loss, or the default of the format."""
        return self.loss or LossParams(name=DEFAULT_LOSS[self.format])

    @property
    def is_translation(self) -> bool:
        """Whether the loss reads a relation as a vector to add (Bordes et al., 2013)."""
        return LOSSES[self.chosen_loss.name].reads == "triple"

    @property
    def has_validation(self) -> bool:
        """Whether a file or a share is given for the validation split."""
        return bool(self.files_of("validation") or self.held_out.validation)

    @property
    def has_test(self) -> bool:
        """Whether a file or a share is given for the test split."""
        return bool(self.files_of("test") or self.held_out.test)

    @model_validator(mode="after")
    def _one_source_a_split(self) -> Self:
        splits: tuple[Split, ...] = ("validation", "test")
        for split in splits:
            if self.files_of(split) and getattr(self.held_out, split):
                raise ValueError(f"'{split}' is given as a file and as a share held out; keep one of them")
        return self
