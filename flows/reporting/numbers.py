"""Formats numbers, names and times for the report."""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime

METRICS = {"mrr": "MRR", "ndcg": "nDCG", "map": "MAP", "spearman": "Spearman's \N{GREEK SMALL LETTER RHO}"}
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


def metric_name(metric: str) -> str:
    """The display name of a metric: `link_hits@10` is Hits@10 of link prediction."""
    name, separator, place = metric.removeprefix("link_").partition("@")
    shown = METRICS.get(name, capital(name.replace("_", " "))) + separator + place
    return f"{shown} of link prediction" if metric.startswith("link_") else shown


def figure(value: float | None, digits: int = 2) -> str:
    """A number with two decimals; a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 2) -> str:
    """A difference, always with its sign unless it is zero."""
    if value is None:
        return DASH
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", MINUS) if rounded else f"{0:.{digits}f}"


def number(value: float | None) -> str:
    """A number of any size, with three significant digits."""
    return DASH if value is None else re.sub("^-", MINUS, f"{value:.3g}")


def rank(value: float) -> str:
    """A rank such as `1,402`; ties have their mean rank."""
    return f"{value:,.1f}".removesuffix(".0")


def p_value(value: float | None) -> str:
    """A p-value."""
    if value is None:
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def moment(stamp: str) -> str:
    """An ISO time in readable form."""
    return f"{datetime.fromisoformat(stamp):%Y-%m-%d %H:%M} UTC"


def counted(number: int, name: str, plural: str = "") -> str:
    """`1 word`, `1,117 words`; `plural` is for irregular plurals."""
    return f"{number:,} {name if number == 1 else plural or name + 's'}"


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells may contain line breaks and bars."""
    cells = [[cell.strip().replace("\n", "<br>").replace("|", "\\|") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([f"| {' | '.join(headings)} |", "|---" * len(headings) + "|", *lines])


def listed(names: Sequence[str]) -> str:
    """Names joined for a sentence, with commas and `and`."""
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else ""
