"""The rules for raw rows and the reasons for refusals; checked with pandas, shown in the Data Docs."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd

from vocabgraft.config.datasets import COLUMNS, MORE_NEGATIVES, DatasetParams, text_columns
from vocabgraft.config.losses import Format
from vocabgraft.config.stages import ValidateDataParams
from vocabgraft.data.texts import UNPRINTABLE
from vocabgraft.tokens.new_token import KINDS

BLANK = r"^\s*$"
# No general sentence of the package is longer.
LONGEST_GENERAL = 200


class Check(Protocol):
    """A condition on the values of a column; a missing value passes every check except `Filled`."""

    def passes(self, values: pd.Series) -> pd.Series:
        """Whether each value passes."""


@dataclass(frozen=True)
class Filled:
    """The value is not missing."""

    def passes(self, values: pd.Series) -> pd.Series:
        return values.notna()


@dataclass(frozen=True)
class Empty:
    """The value is missing."""

    def passes(self, values: pd.Series) -> pd.Series:
        return values.isna()


@dataclass(frozen=True)
class Matches:
    """The text contains a match of the pattern, or does not."""

    pattern: str
    wanted: bool

    def passes(self, values: pd.Series) -> pd.Series:
        # By `re`, because the engine of pandas' string type knows only ASCII white space.
        search = re.compile(self.pattern).search
        passed = [pd.isna(text) or (search(text) is not None) is self.wanted for text in values]
        return pd.Series(passed, index=values.index, dtype=bool)


@dataclass(frozen=True)
class AtMostLong:
    """The text has at most `longest` characters."""

    longest: int

    def passes(self, values: pd.Series) -> pd.Series:
        passed = [pd.isna(text) or len(text) <= self.longest for text in values]
        return pd.Series(passed, index=values.index, dtype=bool)


@dataclass(frozen=True)
class Between:
    """The number is in a closed interval; None means no bound."""

    least: float | None = None
    most: float | None = None

    def passes(self, values: pd.Series) -> pd.Series:
        numbers = pd.to_numeric(values)
        inside = pd.Series(True, index=values.index)
        if self.least is not None:
            inside &= numbers >= self.least
        if self.most is not None:
            inside &= numbers <= self.most
        return inside | numbers.isna()


@dataclass(frozen=True)
class OneOf:
    """The value is one of these."""

    allowed: tuple[Any, ...]

    def passes(self, values: pd.Series) -> pd.Series:
        return values.isin(self.allowed) | values.isna()


# In a condition: the column has any value.
PRESENT = object()
Condition = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Rule:
    """A requirement for the values of a column.

    Attributes:
        column: the column.
        check: the requirement.
        reason: what is wrong with a row that fails, and what to do; `{value}` is replaced by the value.
        shown: name of the column in the user's file.
        where: columns and values that a row must have for the rule to apply.
    """

    column: str
    check: Check
    reason: str
    shown: str
    where: Condition = ()

    def failures(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows that fail."""
        if self.column not in frame.columns or frame.empty:
            return frame.iloc[:0]
        return frame[~self.check.passes(frame[self.column]) & applies(frame, self.where)]


@dataclass(frozen=True)
class CountRule:
    """Limits for the number of rows, or of different values of `column`; `reason` as in `Rule`."""

    reason: str
    column: str | None = None
    least: int | None = None
    most: int | None = None
    where: Condition = ()

    def failure(self, frame: pd.DataFrame) -> str | None:
        """The reason if the number is not within the limits, otherwise None."""
        counted = frame[applies(frame, self.where)]
        seen = len(counted) if self.column is None else int(counted[self.column].nunique())
        enough = self.least is None or seen >= self.least
        return (
            None if enough and (self.most is None or seen <= self.most) else self.reason.replace("{value}", str(seen))
        )


def applies(frame: pd.DataFrame, where: Condition) -> pd.Series:
    """Whether the condition holds, for each row."""
    holds = pd.Series(True, index=frame.index)
    for column, value in where:
        holds &= frame[column].notna() if value is PRESENT else frame[column] == value
    return holds


def vocabulary_rules(max_token_characters: int) -> list[Rule]:
    """Rules for single words; some do not apply to words that the base has from an earlier run."""
    described = (("needs_description", 1),)
    return [
        *_text("token", max_token_characters, "extend_tokenizer.max_token_characters"),
        _rule(
            "token",
            Matches(r"\S\s+\S|^\s+\S|\S\s+$", wanted=False),
            "contains whitespace; a token is one word, so add its words separately",
        ),
        _rule("kind", Filled(), f"is empty; allowed: {', '.join(KINDS)}"),
        _rule("kind", OneOf(KINDS), f"is not a kind; allowed: {', '.join(KINDS)}"),
        _rule("one_token", Between(most=0), "is one token in the base already; take it out", "token"),
        _rule("kept_as", Empty(), "differs from its kind in the base; set it to {value}", "kind"),
        _rule(
            "normal",
            Matches(BLANK, wanted=False),
            "is empty after the base's normalization, so it would match everywhere; take it out",
            "token",
        ),
        _rule(
            "rewritten_as",
            Empty(),
            "is changed to {value} by the base's normalization, so no text contains it; spell it with plain characters",
            "token",
        ),
        _rule(
            "hides",
            Empty(),
            "hides the base's token {value} in texts with only a part of the word; make it a symbol or take it out",
            "token",
        ),
        _rule(
            "description",
            Filled(),
            "is empty, which is allowed only for words whose subword tokens the base knows; describe it",
            where=described,
        ),
        _readable_description((*described, ("description", PRESENT))),
    ]


def description_rules(params: ValidateDataParams) -> list[Rule]:
    """Rules for descriptions that are training texts."""
    return [
        *_printable("description", params.max_text_characters),
        _readable_description((("kept", 0), ("description", PRESENT))),
    ]


def collision_rules() -> list[Rule]:
    """Rules for words compared with each other."""
    return [
        _rule("collides_with", Empty(), "repeats {value}, in the same or another casing; keep one", "token"),
    ]


def uses_rule(params: ValidateDataParams) -> Rule:
    """The rule for the number of texts that use a new word; without `min_uses` any number is allowed."""
    return _rule(
        "uses",
        Between(least=params.min_uses if params.min_uses > 1 else 0),
        f"is used in {{value}} texts of the training examples and contexts; needed: {params.min_uses} "
        "(validate_data.min_uses); add examples or take it out",
        "token",
        (("kept", 0),),
    )


def vocabulary_counts(params: ValidateDataParams) -> list[CountRule]:
    """The limit for the number of new words."""
    return [
        CountRule(
            f"has {{value}} rows; allowed: 1 to {params.max_new_tokens} new tokens "
            "(validate_data.max_new_tokens); take some out or raise it",
            most=params.max_new_tokens,
            where=(("kept", 0),),
        )
    ]


def context_rules(params: ValidateDataParams) -> list[Rule]:
    """Rules for context sentences."""
    return _text("text", params.max_text_characters)


def retention_rules(params: ValidateDataParams) -> list[Rule]:
    """Rules for single retention pairs. The package's own pairs may exceed a user's lower limit."""
    most = params.max_text_characters if params.retention else max(params.max_text_characters, LONGEST_GENERAL)
    return [
        *_text("sentence1", most),
        *_text("sentence2", most),
        *_number("score", 0, 1),
    ]


def retention_counts() -> list[CountRule]:
    """The least number of different scores."""
    return [
        CountRule(
            "all scores are the same, so no correlation can be measured; allowed: two or more different scores; "
            "add pairs",
            "number",
            least=2,
        )
    ]


def example_rules(
    dataset: DatasetParams, frame: pd.DataFrame, params: ValidateDataParams, known_tokens: Sequence[str] | None
) -> list[Rule]:
    """Rules for single examples.

    Args:
        dataset: the dataset's settings.
        frame: its rows, which give the usual width of vectors and the labels.
        params: parameters of the stage.
        known_tokens: tokens that relations may have; None if the vocabulary could not be read.
    """
    more = [name for name in MORE_NEGATIVES if name in frame.columns]
    texts = [
        rule for column in (*text_columns(dataset.format), *more) for rule in _text(column, params.max_text_characters)
    ]
    own: dict[Format, Callable[[], list[Rule]]] = {
        "triples": lambda: _of_triples(known_tokens),
        "pairs": lambda: [_same_text()],
        "triplets": lambda: [_same_text(), _same_negative()],
        "scored_pairs": lambda: _of_scores(dataset),
        "labelled_pairs": lambda: _of_labels(dataset, frame),
        "labelled_texts": lambda: _of_labels(dataset, frame),
        "texts": list,
        "teacher_embeddings": lambda: _of_embeddings(frame),
        "margins": lambda: [*_number("margin", None, None), _same_negative()],
    }
    return [*texts, *own[dataset.format]()]


def comparison_rules(dataset: DatasetParams) -> list[Rule]:
    """Rules for examples compared with each other."""
    first = COLUMNS[dataset.format][0]
    reason = "leaks: one of its texts is also in {value}, which is held out; take the row out"
    leaks = _rule("leaks_from", Empty(), reason, first)
    contradictions: dict[Format, Rule] = {
        "triples": _rule(
            "contradicts",
            Empty(),
            "contradicts {value}, which has the opposite relation for the same texts",
            "relation",
        ),
        "scored_pairs": contradiction_rule("score"),
        "labelled_pairs": contradiction_rule("label"),
        "labelled_texts": contradiction_rule("label"),
        "margins": contradiction_rule("margin"),
        "teacher_embeddings": contradiction_rule("embedding", "text"),
    }
    return [*([contradictions[dataset.format]] if dataset.format in contradictions else []), leaks]


def contradiction_rule(column: str, shown: str | None = None) -> Rule:
    """The rule that the same texts have only one value of `column`."""
    reason = f"contradicts {{value}}, the same texts with another {column}; keep one"
    return _rule("contradicts", Empty(), reason, shown or column)


def _rule(column: str, check: Check, reason: str, shown: str | None = None, where: Condition = ()) -> Rule:
    return Rule(column, check, reason, shown or column, where)


def _text(column: str, longest: int, setting: str = "validate_data.max_text_characters") -> list[Rule]:
    return [
        _rule(column, Filled(), "is empty; fill it or take the row out"),
        _rule(column, Matches(BLANK, wanted=False), "has only spaces; fill it"),
        *_printable(column, longest, setting),
    ]


def _printable(column: str, longest: int, setting: str = "validate_data.max_text_characters") -> list[Rule]:
    return [
        _rule(
            column,
            Matches(UNPRINTABLE, wanted=False),
            "contains a control or replacement character; check the file's encoding",
        ),
        _rule(column, AtMostLong(longest), f"is too long; allowed: {longest} characters ({setting})"),
    ]


def _readable_description(where: Condition) -> Rule:
    return _rule(
        "readable_description",
        Between(least=1),
        "has no subword token that the base knows; describe it in words of the base's language",
        "description",
        where,
    )


def _of_triples(known_tokens: Sequence[str] | None) -> list[Rule]:
    if known_tokens is None:
        return []
    # Without missing values: a suite with a NaN differs from itself, which Great Expectations refuses.
    known = OneOf(tuple(token for token in known_tokens if isinstance(token, str)))
    reason = "has no token in the vocabulary; add `<|NAME|>` with kind special and a description"
    return [_rule("token", known, reason, "relation")]


def _of_scores(dataset: DatasetParams) -> list[Rule]:
    # The other losses only compare scores with each other, so any number is allowed.
    is_cosine = dataset.chosen_loss.name == "CosineSimilarityLoss"
    return _number("score", *((-1, 1) if is_cosine else (None, None)))


def _of_labels(dataset: DatasetParams, frame: pd.DataFrame) -> list[Rule]:
    highest = _highest_label(dataset, frame)
    allowed = "a whole number, 0 or more"
    if highest is not None:
        allowed = f"a whole number from 0 to {highest} ({dataset.chosen_loss.name})"
    whole = _rule("label", Matches(r"^\s*[+-]?\d+(\.0*)?\s*$", wanted=True), f"is not a label; allowed: {allowed}")
    return [*_number("label", 0, highest, allowed), whole]


def _highest_label(dataset: DatasetParams, frame: pd.DataFrame) -> int | None:
    """The highest label of a pair: 1, or for classes their number minus 1; labels of texts have no limit."""
    if dataset.format == "labelled_texts":
        return None
    if dataset.chosen_loss.name != "SoftmaxLoss":
        return 1
    # A missing number would be a class without examples.
    return int(dataset.chosen_loss.arguments.get("num_labels", frame["number"].nunique())) - 1


def _of_embeddings(frame: pd.DataFrame) -> list[Rule]:
    widths = frame["width"].mode()
    width = int(widths.iloc[0]) if len(widths) else 0
    return [
        _rule("width", Filled(), "has no embedding; fill it or take the row out", "text"),
        _rule(
            "width",
            OneOf((width,)),
            f"has an embedding of {{value}} numbers, but most have {width}; give all the same number",
            "text",
        ),
        _rule("finite", OneOf((1,)), "has an embedding with a NaN or an infinity; embed it again", "text"),
    ]


def _number(column: str, least: float | None, most: float | None, allowed: str | None = None) -> list[Rule]:
    allowed = allowed or ("a number" if least is None else f"a number from {least} to {most}")
    # The largest floats, because infinities are not allowed either.
    limits = Between(-sys.float_info.max if least is None else least, sys.float_info.max if most is None else most)
    return [
        _rule(column, Filled(), f"is empty; allowed: {allowed}"),
        _rule("number", Filled(), f"is not a number; allowed: {allowed}", column, ((column, PRESENT),)),
        _rule("number", limits, f"is out of range; allowed: {allowed}", column),
    ]


def _same_text() -> Rule:
    return _rule(
        "same_text",
        OneOf((False,)),
        "equals its positive; for SimCSE use format: texts with loss: SimCSELoss, which needs each text only once",
        "anchor",
    )


def _same_negative() -> Rule:
    reason = "is a negative that equals the text it should differ from; take the row out"
    return _rule("same_negative", OneOf((False,)), reason, "negative")
