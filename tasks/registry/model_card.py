"""The model card of a registered version, written from the run's facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.registry.lineage import CODE_TAG
from vocabgraft.checks.result import Verdict, describe_counts
from vocabgraft.printable import printable
from vocabgraft.tokens.tokenizer import ExtendedToken

WORDS_NAMED, CHARACTERS_OF_A_VALUE = 40, 200
UNKNOWN_LICENCE = "unknown"
# `describe_code` begins with this if code of the folder runs.
RUN = "on: "


@dataclass(frozen=True)
class Facts:
    """The contents of a card, all measured or recorded by the run."""

    name: str
    tags: Mapping[str, str]
    licence: str
    tokens: Sequence[ExtendedToken]
    figures: Mapping[str, Any]
    comparison: Mapping[str, Any]
    retention: Mapping[str, Any]
    evidence: str
    method: str | None
    checks: Mapping[Verdict, int]
    changes: Mapping[str, Any] | None = None


def write_card(facts: Facts) -> str:
    """The card in Markdown, with front matter for model hubs."""
    return printable("\n".join(_lines(facts)))


def _lines(facts: Facts) -> list[str]:
    return [
        "---",
        "library_name: sentence-transformers",
        f"license: {facts.licence}",
        "---",
        f"# {facts.name}",
        "",
        f"{_plain(facts.tags['base'])} (SHA-256 of its weights {facts.tags['base_sha256']}), its vocabulary "
        f"extended by {len(facts.tokens)} tokens, {_how_made(facts.method)}. "
        f"License of the base: {facts.licence}.",
        "",
        f"Words added: {_words(facts.tokens)}.",
        "",
        "## Metrics on held-out items, in percent",
        "",
        *_figures(facts),
        "",
        "## Evidence",
        "",
        f"{facts.evidence[:1].upper()}{facts.evidence[1:]}.",
        "",
        *_changes(facts.changes),
        "## Checks",
        "",
        f"{describe_counts(facts.checks)}; `checks.json` of the run lists each check with its limit.",
        "",
        "## What stays valid",
        "",
        *_stays(facts),
        "",
        "## How to load it",
        "",
        "```python",
        "import mlflow",
        f'model = mlflow.sentence_transformers.load_model("models:/{facts.name}@champion")',
        "```",
        "",
        *_loading(facts.tags[CODE_TAG]),
        "",
        "## Limits",
        "",
        *_limits(facts),
        "",
        f"Content {facts.tags['content_digest']}, commit {facts.tags['git_commit']}.",
        "",
    ]


def _changes(found: Mapping[str, Any] | None) -> list[str]:
    """The changes since the champion; empty for a first version."""
    if found is None:
        return []
    lines = [
        f"- `{_on_one_line(key)}`: {_set(old)} before, {_set(new)} now" for key, (old, new) in found["params"].items()
    ]
    for kind in ("added", "removed"):
        if words := found["words"][kind]:
            lines.append(f"- words {kind}: {_named([f'`{_on_one_line(word)}`' for word in words])}")
    lines += [
        f"- rows of {_plain(name)}: {before:,} before, {after:,} now" for name, (before, after) in found["rows"].items()
    ]
    lines = lines or ["No parameter, word or data row changed."]
    rows = [
        f"| {_plain(entry['dataset'])}, {entry['subset'].replace('_', ' ')}: {entry['metric']} | "
        f"{_number(entry['before'])} | {_number(entry['after'])} | "
        f"{entry['gain']:+.2f} ({entry['low']:+.2f} to {entry['high']:+.2f}) |"
        for entry in found["figures"]
    ]
    table = (
        ["", "| on the same held-out items | before | now | gain, 95 % |", "|---|---|---|---|", *rows] if rows else []
    )
    problems = ["", *(f"{_plain(problem)}." for problem in found["problems"])] if found["problems"] else []
    return [f"## What changed since version {found['since']}", "", *lines, *table, *problems, ""]


def _set(value: str | None) -> str:
    return "not set" if value is None else f"`{_on_one_line(value)[:CHARACTERS_OF_A_VALUE]}`"


def _named(names: Sequence[str]) -> str:
    more = len(names) - WORDS_NAMED
    return ", ".join(names[:WORDS_NAMED]) + (f" and {more} more" if more > 0 else "")


def _how_made(method: str | None) -> str:
    return (
        "whose embeddings were distilled from the base and not trained"
        if method is None
        else f"trained with `{method}`"
    )


def _loading(remote_code: str) -> list[str]:
    if not remote_code.startswith(RUN):
        return [
            "Stock sentence-transformers loads the folder `model.sentence_transformer` of the artifact by itself.",
            "",
            f"Remote code: {remote_code}. The folder names no code, so no loader runs any.",
        ]
    return [
        "`SentenceTransformer(FOLDER, trust_remote_code=True)` loads the folder `model.sentence_transformer` of the "
        "artifact by itself, with the code in it. MLflow runs that code without asking.",
        "",
        f"Remote code: {_plain(remote_code)}.",
    ]


def licence_of(base: Path) -> str:
    """The license in the front matter of a base's own card."""
    card = base / "README.md"
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    front = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
    stated = [line.partition(":")[2].strip() for line in front if line.startswith("license:")]
    return _plain(stated[0]) if stated and stated[0] else UNKNOWN_LICENCE


def _words(tokens: Sequence[ExtendedToken]) -> str:
    return _named([f"`{_on_one_line(token.text)}`" for token in tokens]) or "none"


def _figures(facts: Facts) -> list[str]:
    rows = ["| metric | base | this model | gain, 95 % |", "|---|---|---|---|"]
    for item in facts.comparison["items"]:
        figure = f"{item['dataset']}, {item['subset'].replace('_', ' ')}: {item['metric']}"
        gain = f"{item['gain']:+.2f} ({item['low']:+.2f} to {item['high']:+.2f})"
        rows.append(f"| {figure} | {_number(item.get('base'))} | {_number(item.get('merged'))} | {gain} |")
    base, merged = facts.figures["base"]["tokens_per_text"], facts.figures["merged"]["tokens_per_text"]
    return [*rows, f"| tokens per text | {_number(base)} | {_number(merged)} | |"]


def _stays(facts: Facts) -> list[str]:
    share = facts.retention.get("valid_share")
    lines = [] if share is None else [f"The vectors of {share:.1f} % of the reference texts stay valid."]
    pairs = [facts.figures[model]["retention"].get("no_new_word", {}).get("spearman") for model in ("base", "merged")]
    if None not in pairs:
        lines.append(f"Spearman's rho on pairs without a new word: {pairs[0]:.2f} before, {pairs[1]:.2f} now.")
    return lines or ["Not measured."]


def _limits(facts: Facts) -> list[str]:
    few = sorted({item["dataset"] for item in facts.comparison["items"] if item.get("verdict") == "smoke figure"})
    lines = ["Only the metrics above were measured; texts of other domains were not tested."]
    if few:
        lines.append(f"The metrics of {', '.join(few)} are over few items; they show only that the pipeline works.")
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _plain(text: str) -> str:
    """Text of data without characters that Markdown or HTML would interpret."""
    return "".join(mark for mark in _on_one_line(text) if mark not in "<>|")


def _on_one_line(text: str) -> str:
    """Text of data on one line, for a code span."""
    return " ".join(text.replace("`", "'").split())
