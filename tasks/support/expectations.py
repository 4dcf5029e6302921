"""Great Expectations: the rules as suites, and their results as Data Docs. The one module that imports it.

Rows are judged by `vocabgraft.data.judgement`, which tells a fault at once: this import alone takes three seconds.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import great_expectations as gx
import great_expectations.expectations as gxe

from vocabgraft.data.judgement import JudgedTable
from vocabgraft.data.rules import (
    PRESENT,
    AtMostLong,
    Between,
    Condition,
    CountRule,
    Empty,
    Filled,
    Matches,
    OneOf,
    Rule,
)

SITE = "vocabgraft"
REFUSED = "refused"


def write_data_docs(tables: Iterable[JudgedTable], site: Path) -> dict[str, list[Any]]:
    """Validate the tables with Great Expectations and write Data Docs as static HTML to `site`.

    Returns:
        The results of each table's expectations, in the order of its rules.
    """
    # It announces, at a level of its own, a temporary folder for a default site that is not used.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    _configure_site(context, site)
    source = context.data_sources.add_pandas("raw")
    results = {}
    for table in tables:
        definition = source.add_dataframe_asset(table.name).add_batch_definition_whole_dataframe("all")
        # Added whole: a suite in the store is written anew for each expectation that it gets.
        suite = context.suites.add(gx.ExpectationSuite(table.name, expectations=_expectations(table)))
        validation = gx.ValidationDefinition(name=table.name, data=definition, suite=suite)
        context.validation_definitions.add(validation)
        frame = table.frame.assign(**{REFUSED: (~table.frame.index.isin(table.accepted.index)).astype(int)})
        run = validation.run(batch_parameters={"dataframe": frame}, result_format={"result_format": "COMPLETE"})
        results[table.name] = list(run.results)
    context.build_data_docs(site_names=[SITE])
    return results


def _expectations(table: JudgedTable) -> list[Any]:
    return [*map(_of_rule, table.rules), *map(_of_count, table.counts)]


# An expectation and its arguments for each kind of check.
TRANSLATIONS: Mapping[type, Callable[[Any], tuple[type[gxe.Expectation], dict[str, Any]]]] = {
    Filled: lambda check: (gxe.ExpectColumnValuesToNotBeNull, {}),
    Empty: lambda check: (gxe.ExpectColumnValuesToBeNull, {}),
    Matches: lambda check: (
        gxe.ExpectColumnValuesToMatchRegex if check.wanted else gxe.ExpectColumnValuesToNotMatchRegex,
        {"regex": check.pattern},
    ),
    AtMostLong: lambda check: (gxe.ExpectColumnValueLengthsToBeBetween, {"max_value": check.longest}),
    Between: lambda check: (
        gxe.ExpectColumnValuesToBeBetween,
        {"min_value": check.least, "max_value": check.most},
    ),
    OneOf: lambda check: (gxe.ExpectColumnValuesToBeInSet, {"value_set": list(check.allowed)}),
}


def _of_rule(rule: Rule) -> Any:
    kind, arguments = TRANSLATIONS[type(rule.check)](rule.check)
    meta = {"reason": rule.reason, "shown": rule.shown}
    return kind(column=rule.column, meta=meta, row_condition=_condition(rule.where), **arguments)


def _of_count(rule: CountRule) -> Any:
    # Of the rows that are accepted, since a refused one takes part in nothing.
    limits = {"min_value": rule.least, "max_value": rule.most, "meta": {"reason": rule.reason}}
    condition = _condition((*rule.where, (REFUSED, 0)))
    if rule.column is None:
        return gxe.ExpectTableRowCountToBeBetween(row_condition=condition, **limits)
    return gxe.ExpectColumnUniqueValueCountToBeBetween(column=rule.column, row_condition=condition, **limits)


def _condition(where: Condition) -> Any:
    condition: Any = None
    for name, value in where:
        column = gx.expectations.row_conditions.Column(name)
        part = column.is_not_null() if value is PRESENT else column == value
        condition = part if condition is None else condition & part
    return condition


def _configure_site(context: Any, site: Path) -> None:
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(site.resolve())}
    index = {"class_name": "DefaultSiteIndexBuilder"}
    builder = {
        "class_name": "SiteBuilder",
        "site_index_builder": index,
        "store_backend": store,
        "show_how_to_buttons": False,
    }
    context.add_data_docs_site(SITE, builder)
