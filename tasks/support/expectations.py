"""Great Expectations: the suites, their run and their Data Docs. The one module that imports it."""

import logging
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd

from vocabgraft.config.datasets import COLUMNS, MORE_NEGATIVES, DatasetParams, text_columns
from vocabgraft.config.losses import Format
from vocabgraft.config.stages import ValidateDataParams
from vocabgraft.tokens.new_token import KINDS

SITE = "vocabgraft"
BLANK = r"^\s*$"
UNPRINTABLE = "[\u0000-\u0008\u000b\u000c\u000e-\u001f\ufffd]"


@dataclass(frozen=True)
class Table:
    """A frame to be judged, with its suite. The frame's index is 0, 1, 2, ..."""

    name: str
    frame: pd.DataFrame
    expectations: tuple[gxe.Expectation, ...]


@dataclass(frozen=True)
class Rejection:
    """A row that an expectation refused; `position` is its place in the table's frame, None for the whole table."""

    table: str
    position: int | None
    column: str
    value: str
    reason: str


def vocabulary_table(frame: pd.DataFrame, params: ValidateDataParams, max_token_characters: int) -> Table:
    """The suite of the vocabulary; a token that the base has from an earlier run is not asked what a new one is."""
    column = gx.expectations.row_conditions.Column
    new, described = column("kept") == 0, column("needs_description") == 1
    return Table(
        "vocabulary",
        frame,
        (
            *_text("token", max_token_characters, "extend_tokenizer.max_token_characters"),
            _expect(
                gxe.ExpectColumnValuesToNotMatchRegex,
                "token",
                "holds whitespace; a token is one word, so add its words apart",
                regex=r"\S\s+\S|^\s+\S|\S\s+$",
            ),
            _expect(gxe.ExpectColumnValuesToNotBeNull, "kind", f"is empty; allowed: {', '.join(KINDS)}"),
            _expect(
                gxe.ExpectColumnValuesToBeInSet,
                "kind",
                f"is no kind; allowed: {', '.join(KINDS)}",
                value_set=list(KINDS),
            ),
            _nothing_in("collides_with", "token", "repeats, in another casing or the same, {value}; keep one"),
            _expect(
                gxe.ExpectColumnValuesToBeBetween,
                "one_token",
                "is one token in the base already; take it out",
                shown="token",
                max_value=0,
            ),
            _nothing_in("kept_as", "kind", "is not its kind in the base, which has it as {value}; make it that"),
            _expect(
                gxe.ExpectColumnValuesToNotMatchRegex,
                "normal",
                "is nothing after the base's normalisation, so it would match everywhere; take it out",
                shown="token",
                regex=BLANK,
            ),
            _nothing_in(
                "rewritten_as",
                "token",
                "is not what texts hold after normalisation, which makes it {value}; spell it with plain characters",
            ),
            _nothing_in(
                "hides",
                "token",
                "hides {value} of the base in texts that hold it in part; make it a symbol or take it out",
            ),
            _expect(
                gxe.ExpectColumnValuesToNotBeNull,
                "description",
                "is empty, which only a word whose pieces the base can read may have; describe it",
                row_condition=described,
            ),
            _expect(
                gxe.ExpectColumnValuesToBeBetween,
                "readable_description",
                "has no piece that the base can read; describe it in words of the base's language",
                shown="description",
                min_value=1,
                row_condition=described & column("description").is_not_null(),
            ),
            _expect(
                gxe.ExpectColumnValuesToBeBetween,
                "uses",
                f"is used in {{value}} texts of the training examples and contexts; needed: {params.min_uses} "
                "(validate_data.min_uses); add examples or take it out",
                shown="token",
                min_value=params.min_uses,
                row_condition=new,
            ),
            gxe.ExpectTableRowCountToBeBetween(
                max_value=params.max_new_tokens,
                row_condition=new,
                meta={
                    "reason": f"has {{value}} rows; allowed: 1 to {params.max_new_tokens} new tokens "
                    "(validate_data.max_new_tokens); take some out or raise it"
                },
            ),
        ),
    )


def contexts_table(frame: pd.DataFrame, params: ValidateDataParams) -> Table:
    """The suite of the context sentences."""
    repeated = _nothing_in("duplicate_of", "text", "repeats {value}; keep one")
    return Table("contexts", frame, (*_text("text", params.max_text_characters), repeated))


def retention_table(frame: pd.DataFrame, params: ValidateDataParams) -> Table:
    """The suite of the retention pairs."""
    return Table(
        "retention",
        frame,
        (
            *_text("sentence1", params.max_text_characters),
            *_text("sentence2", params.max_text_characters),
            _expect(gxe.ExpectColumnValuesToNotBeNull, "score", "is empty; allowed: a number from 0 to 1"),
            _expect(
                gxe.ExpectColumnValuesToNotBeNull,
                "number",
                "is not a number; allowed: 0 to 1",
                shown="score",
                row_condition=gx.expectations.row_conditions.Column("score").is_not_null(),
            ),
            _expect(
                gxe.ExpectColumnValuesToBeBetween,
                "number",
                "is out of range; allowed: 0 to 1",
                shown="score",
                min_value=0,
                max_value=1,
            ),
            _nothing_in("duplicate_of", "sentence1", "the pair repeats {value}; keep one"),
            _nothing_in("contradicts", "score", "contradicts {value}, the same pair with another score; keep one"),
            gxe.ExpectColumnUniqueValueCountToBeBetween(
                column="number",
                min_value=2,
                meta={
                    "reason": "all scores are the same, so no correlation can be measured; allowed: two or more "
                    "different scores; add pairs"
                },
            ),
        ),
    )


def examples_table(
    dataset: DatasetParams, frame: pd.DataFrame, params: ValidateDataParams, known_tokens: Sequence[str]
) -> Table:
    """The suite of one dataset."""
    first = COLUMNS[dataset.format][0]
    more = [name for name in MORE_NEGATIVES if name in frame.columns]
    texts = [
        rule for column in (*text_columns(dataset.format), *more) for rule in _text(column, params.max_text_characters)
    ]
    between_rows = [
        _nothing_in("duplicate_of", first, "the row repeats {value}; keep one"),
        _nothing_in("leaks_from", first, "leaks: a text of it is held out as well, in {value}"),
    ]
    own: dict[Format, Callable[[], list[Any]]] = {
        "triples": lambda: _of_triples(known_tokens),
        "pairs": lambda: [_same_text()],
        "triplets": lambda: [_same_text(), _same_negative()],
        "scored_pairs": lambda: _of_scores(dataset),
        "labelled_pairs": lambda: _of_labels(dataset, frame),
        "labelled_texts": lambda: _of_labels(dataset, frame),
        "texts": list,
        "teacher_embeddings": lambda: _of_embeddings(frame),
        "margins": lambda: [*_number("margin", None, None), _other_value("margin"), _same_negative()],
    }
    return Table(dataset.name, frame, (*texts, *own[dataset.format](), *between_rows))


def _of_triples(known_tokens: Sequence[str]) -> list[Any]:
    return [
        _expect(
            gxe.ExpectColumnValuesToBeInSet,
            "token",
            "has no token in the vocabulary; add `<|NAME|>` with kind special and a description",
            shown="relation",
            # Without the gaps: a suite that holds a NaN differs from itself, which Great Expectations refuses.
            value_set=[token for token in known_tokens if isinstance(token, str)],
        ),
        _nothing_in("contradicts", "relation", "contradicts {value}, which relates the same two the other way"),
    ]


def _of_scores(dataset: DatasetParams) -> list[Any]:
    # The others compare scores with each other, so that any numbers will do.
    is_cosine = dataset.chosen_loss.name == "CosineSimilarityLoss"
    return [*_number("score", *((-1, 1) if is_cosine else (None, None))), _other_value("score")]


def _of_labels(dataset: DatasetParams, frame: pd.DataFrame) -> list[Any]:
    highest = _highest_label(dataset, frame)
    allowed = "a whole number from 0" + ("" if highest is None else f" to {highest} ({dataset.chosen_loss.name})")
    whole = _expect(
        gxe.ExpectColumnValuesToMatchRegex,
        "label",
        f"is no label; allowed: {allowed}",
        regex=r"^\s*[+-]?\d+(\.0*)?\s*$",
    )
    return [*_number("label", 0, highest, allowed), whole, _other_value("label")]


def _highest_label(dataset: DatasetParams, frame: pd.DataFrame) -> int | None:
    """Of a pair: 1, or with classes one less than there are; labels of texts have no limit."""
    if dataset.format == "labelled_texts":
        return None
    if dataset.chosen_loss.name != "SoftmaxLoss":
        return 1
    # A gap in the numbers would be a class without an example.
    return int(dataset.chosen_loss.arguments.get("num_labels", frame["number"].nunique())) - 1


def _of_embeddings(frame: pd.DataFrame) -> list[Any]:
    widths = frame["width"].mode()
    width = int(widths.iloc[0]) if len(widths) else 0
    return [
        _expect(gxe.ExpectColumnValuesToNotBeNull, "width", "has no embedding; fill it or take the row out", "text"),
        _expect(
            gxe.ExpectColumnValuesToBeInSet,
            "width",
            f"has an embedding of {{value}} numbers where most have {width}; make them alike",
            "text",
            value_set=[width],
        ),
        _expect(
            gxe.ExpectColumnValuesToBeInSet,
            "finite",
            "has an embedding that holds a NaN or an infinity; embed it anew",
            "text",
            value_set=[1],
        ),
    ]


def _number(column: str, least: float | None, most: float | None, allowed: str | None = None) -> list[Any]:
    allowed = allowed or ("a number" if least is None else f"a number from {least} to {most}")
    given = gx.expectations.row_conditions.Column(column).is_not_null()
    rules = [
        _expect(gxe.ExpectColumnValuesToNotBeNull, column, f"is empty; allowed: {allowed}"),
        _expect(
            gxe.ExpectColumnValuesToNotBeNull,
            "number",
            f"is not a number; allowed: {allowed}",
            shown=column,
            row_condition=given,
        ),
    ]
    reason = f"is out of range; allowed: {allowed}"
    # The largest floats, since an infinity is no number either.
    limits = {"min_value": -sys.float_info.max if least is None else least}
    limits["max_value"] = sys.float_info.max if most is None else most
    return [*rules, _expect(gxe.ExpectColumnValuesToBeBetween, "number", reason, shown=column, **limits)]


def _other_value(column: str) -> Any:
    return _nothing_in("contradicts", column, f"contradicts {{value}}, the same texts with another {column}; keep one")


def _same_text() -> Any:
    return _expect(
        gxe.ExpectColumnValuesToBeInSet,
        "same_text",
        "equals its positive, so it teaches nothing",
        shown="anchor",
        value_set=[False],
    )


def _same_negative() -> Any:
    return _expect(
        gxe.ExpectColumnValuesToBeInSet,
        "same_negative",
        "is a negative that equals the text that it should differ from; take it out",
        shown="negative",
        value_set=[False],
    )


def judge(tables: Sequence[Table], site: Path) -> list[Rejection]:
    """Run every suite and write Data Docs as static HTML to `site`."""
    # It announces, at a level of its own, a temporary folder for a default site that is not used.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    _configure_site(context, site)
    source = context.data_sources.add_pandas("raw")
    rejections: list[Rejection] = []
    for table in tables:
        definition = source.add_dataframe_asset(table.name).add_batch_definition_whole_dataframe("all")
        # Added whole: a suite in the store is written anew for each expectation that it gets.
        suite = context.suites.add(gx.ExpectationSuite(table.name, expectations=list(table.expectations)))
        validation = gx.ValidationDefinition(name=table.name, data=definition, suite=suite)
        context.validation_definitions.add(validation)
        result = validation.run(
            batch_parameters={"dataframe": table.frame}, result_format={"result_format": "COMPLETE"}
        )
        for outcome in result.results:
            rejections.extend(_rejections(table, outcome))
    context.build_data_docs(site_names=[SITE])
    return rejections


def _expect(kind: type[gxe.Expectation], column: str, reason: str, shown: str | None = None, **arguments: Any) -> Any:
    return kind(column=column, meta={"reason": reason, "shown": shown or column}, **arguments)


def _text(column: str, longest: int, setting: str = "validate_data.max_text_characters") -> list[Any]:
    return [
        _expect(gxe.ExpectColumnValuesToNotBeNull, column, "is empty; fill it or take the row out"),
        _expect(gxe.ExpectColumnValuesToNotMatchRegex, column, "holds spaces only; fill it", regex=BLANK),
        _expect(
            gxe.ExpectColumnValuesToNotMatchRegex,
            column,
            "holds a control or replacement character; check the file's encoding",
            regex=UNPRINTABLE,
        ),
        _expect(
            gxe.ExpectColumnValueLengthsToBeBetween,
            column,
            f"is too long; allowed: {longest} characters ({setting})",
            min_value=1,
            max_value=longest,
        ),
    ]


def _nothing_in(column: str, shown: str, reason: str) -> Any:
    return _expect(gxe.ExpectColumnValuesToBeNull, column, reason, shown)


def _rejections(table: Table, outcome: Any) -> list[Rejection]:
    if outcome.success:
        return []
    config = outcome.expectation_config
    if outcome.exception_info and (message := _exception(outcome.exception_info)):
        return [Rejection(table.name, None, config.kwargs.get("column", ""), config.type, message)]
    reason = config.meta["reason"]
    if "unexpected_index_list" not in outcome.result:
        seen = str(outcome.result.get("observed_value"))
        return [Rejection(table.name, None, "", seen, reason.replace("{value}", seen))]
    column, shown = config.kwargs["column"], config.meta["shown"]
    return [
        Rejection(
            table=table.name,
            position=int(position),
            column=shown,
            value=_shorten(table.frame[shown].iloc[position]),
            reason=reason.replace("{value}", str(table.frame[column].iloc[position])),
        )
        for position in outcome.result["unexpected_index_list"]
    ]


def _exception(info: dict[str, Any]) -> str:
    entries = [info] if "raised_exception" in info else list(info.values())
    return "; ".join(str(entry.get("exception_message")) for entry in entries if entry.get("raised_exception"))


def _shorten(value: Any) -> str:
    text = "" if pd.isna(value) else re.sub(r"\s", " ", str(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _configure_site(context: Any, site: Path) -> None:
    shutil.rmtree(site, ignore_errors=True)
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(site.resolve())}
    index = {"class_name": "DefaultSiteIndexBuilder"}
    builder = {
        "class_name": "SiteBuilder",
        "site_index_builder": index,
        "store_backend": store,
        "show_how_to_buttons": False,
    }
    context.add_data_docs_site(SITE, builder)
