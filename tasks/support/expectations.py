"""Data Docs: the rules as suites of Great Expectations. Only this module imports it.

`vocabgraft.data.judgement` judges the rows and reports errors at once, because this import takes three seconds.
"""

import logging
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

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
from vocabgraft.printable import printable

SITE = "vocabgraft"
REFUSED = "refused"
# No script can run, whatever the data contain, and nothing is requested from another host.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLES = Path(__file__).with_name("data_docs.css")
# Great Expectations takes styles and a logo from five hosts, and advertises a newsletter.
FOREIGN = re.compile(
    r"<script\b.*?</script>|<style\b.*?</style>|<footer\b.*?</footer>|<link\b[^>]*>|<img\b[^>]*>", re.DOTALL
)


def write_data_docs(tables: Iterable[JudgedTable], site: Path) -> dict[str, list[Any]]:
    """Validate the tables with Great Expectations and write Data Docs as static HTML to `site`.

    Returns:
        The results of each table's expectations, in the order of its rules.
    """
    # It logs the temporary folder of a default site that is not used.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}
    _configure_site(context, site)
    source = context.data_sources.add_pandas("raw")
    results = {}
    for table in tables:
        definition = source.add_dataframe_asset(table.name).add_batch_definition_whole_dataframe("all")
        # All expectations at once, because a stored suite is rewritten for each expectation added to it.
        suite = context.suites.add(gx.ExpectationSuite(table.name, expectations=_expectations(table)))
        validation = gx.ValidationDefinition(name=table.name, data=definition, suite=suite)
        context.validation_definitions.add(validation)
        frame = table.frame.assign(**{REFUSED: (~table.frame.index.isin(table.accepted.index)).astype(int)})
        run = validation.run(batch_parameters={"dataframe": frame}, result_format={"result_format": "COMPLETE"})
        results[table.name] = list(run.results)
    _escape_values(context)
    context.build_data_docs(site_names=[SITE])
    for page in site.rglob("*.html"):
        page.write_text(_self_contained(page.read_text(encoding="utf-8")), encoding="utf-8")
    # Styles and pictures that the pages no longer use.
    shutil.rmtree(site / "static", ignore_errors=True)
    # Great Expectations' own index needs scripts from a CDN.
    (site / "index.html").write_text(_index(results, site), encoding="utf-8")
    return results


def _escape_values(context: Any) -> None:
    """Escape the texts of the data in the stored results, because the pages do not escape them."""
    store = context.validation_results_store
    for key in store.list_keys():
        found = store.get(key)
        for result in found.results:
            result.result = _escaped(result.result)
            result.exception_info = _escaped(result.exception_info)
        store.set(key, found)


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return escape(printable(value))
    if isinstance(value, dict):
        return {key: _escaped(part) for key, part in value.items()}
    return [_escaped(part) for part in value] if isinstance(value, list | tuple) else value


def _self_contained(page: str) -> str:
    return FOREIGN.sub("", page).replace("<head>", f"<head>{_head()}", 1)


def _head() -> str:
    policy = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    viewport = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return f"{policy}{viewport}<style>{STYLES.read_text(encoding='utf-8')}</style>"


def _index(results: Mapping[str, list[Any]], site: Path) -> str:
    rows = [
        f'<li><a href="{quote(page.relative_to(site).as_posix())}">{escape(name)}</a>: '
        f"{sum(result.success for result in found)} of {len(found)} expectations are met</li>"
        for name, found in results.items()
        for page in sorted((site / "validations" / name).rglob("*.html"))
    ]
    title = "Data Docs: the raw data and their expectations"
    return (
        f'<!doctype html>\n<html lang="en"><head>{_head()}<title>{title}</title></head>\n'
        f"<body><h1>{title}</h1>\n<ul>\n" + "\n".join(rows) + "\n</ul></body></html>\n"
    )


def _expectations(table: JudgedTable) -> list[Any]:
    return [*map(_of_rule, table.rules), *map(_of_count, table.counts)]


def _readable(pattern: str) -> str:
    """The same pattern with control characters as escapes, because a browser shows them as boxes."""
    return re.sub(r"[\x00-\x1f]", lambda found: f"\\x{ord(found[0]):02x}", pattern)


# An expectation and its arguments for each kind of check.
TRANSLATIONS: Mapping[type, Callable[[Any], tuple[type[gxe.Expectation], dict[str, Any]]]] = {
    Filled: lambda check: (gxe.ExpectColumnValuesToNotBeNull, {}),
    Empty: lambda check: (gxe.ExpectColumnValuesToBeNull, {}),
    Matches: lambda check: (
        gxe.ExpectColumnValuesToMatchRegex if check.wanted else gxe.ExpectColumnValuesToNotMatchRegex,
        {"regex": _readable(check.pattern)},
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
    # Only accepted rows are counted.
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
