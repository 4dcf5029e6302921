"""Parameters of a dataset: its format and columns, its files, its held-out rows, its loss."""

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
# These stand beside the datasets' names in the figures of `evaluate_model`.
RESERVED_NAMES = tuple(WITHOUT_LABELS)

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
# The texts that make rows one group. Negatives are left out: they are mostly answers of other rows, so that all rows
# would be one group. So are tails: a graph is connected, and link prediction asks for entities that are known.
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
        source: `from` in params.yaml. With `descriptions` the pairs are made of the vocabulary, and there are no files:
            each word, and sentences of the contexts with it, against the word's description.
        loss: by name, or with arguments and wrappers; None is the default of the format.
        weight: of the dataset's loss.
        template: what a triple asks for its tail, where its loss is one for pairs.
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

    @model_validator(mode="after")
    def _rows_come_from_one_place(self) -> Self:
        if (self.files is None) is (self.source is None):
            seen = "both" if self.files else "neither"
            raise ValueError(f"a dataset has either files or from (allowed: descriptions), and this one has {seen}")
        if self.source and self.format != "pairs":
            raise ValueError(f"from: {self.source} makes pairs, and the format is {self.format}; set format to pairs")
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
        """Whether its loss reads a relation as a vector to add (Bordes et al., 2013)."""
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
