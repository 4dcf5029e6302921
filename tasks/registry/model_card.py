"""The model card of a registered version, written from the run's facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.registry.lineage import CODE_TAG
from vocabgraft.checks.result import Verdict, describe_counts
from vocabgraft.tokens.tokenizer import ExtendedToken

WORDS_NAMED = 40
UNKNOWN_LICENCE = "unknown"
# How `describe_code` begins where a base's code ran.
RUN = "on: "


@dataclass(frozen=True)
class Facts:
    """What a card says of a model, all of it measured or recorded by the run."""

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
    own_classes: Sequence[str] = ()


def write_card(facts: Facts) -> str:
    """The card in Markdown, with the front matter that model hubs read."""
    return "\n".join(
        [
            "---",
            "library_name: sentence-transformers",
            f"license: {facts.licence}",
            "---",
            f"# {facts.name}",
            "",
            f"{_plain(facts.tags['base'])} (SHA-256 of its weights {facts.tags['base_sha256']}), its vocabulary "
            f"extended by {len(facts.tokens)} tokens, {_how_made(facts.method)}. "
            f"Licence of the base: {facts.licence}.",
            "",
            f"Words added: {_words(facts.tokens)}.",
            "",
            "## Figures on held-out items, in percent",
            "",
            *_figures(facts),
            "",
            "## Evidence",
            "",
            f"{facts.evidence[:1].upper()}{facts.evidence[1:]}.",
            "",
            "## Checks",
            "",
            f"{describe_counts(facts.checks)}; `checks.json` of the run has each with its limit.",
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
            *_loading(facts.tags[CODE_TAG], facts.own_classes),
            "",
            "## Limits",
            "",
            *_limits(facts),
            "",
            f"Content {facts.tags['content_digest']}, commit {facts.tags['git_commit']}.",
            "",
        ]
    )


def _how_made(method: str | None) -> str:
    return "whose rows were distilled from the base and not trained" if method is None else f"trained with `{method}`"


def _loading(remote_code: str, own_classes: Sequence[str]) -> list[str]:
    if own_classes:
        return [
            "`SentenceTransformer(FOLDER, trust_remote_code=True)` loads the folder `model.sentence_transformer` of "
            "the artifact by itself. It runs the code of layers that lies in the folder: "
            f"{', '.join(map(_plain, own_classes))}. MLflow runs that code without being asked.",
        ]
    if not remote_code.startswith(RUN):
        return [
            "Stock sentence-transformers loads the folder `model.sentence_transformer` of the artifact by itself.",
            "",
            f"Remote code: {remote_code}. The folder names none, and no loader runs any.",
        ]
    return [
        "`SentenceTransformer(FOLDER, trust_remote_code=True)` loads the folder `model.sentence_transformer` of the "
        "artifact by itself, with the code of the base that lies in it. MLflow runs that code without being asked.",
        "",
        f"Remote code: {_plain(remote_code)}.",
    ]


def licence_of(base: Path) -> str:
    """The licence that a base's own card states in its front matter."""
    card = base / "README.md"
    lines = card.read_text(encoding="utf-8").splitlines() if card.is_file() else []
    front = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
    stated = [line.partition(":")[2].strip() for line in front if line.startswith("license:")]
    return _plain(stated[0]) if stated and stated[0] else UNKNOWN_LICENCE


def _words(tokens: Sequence[ExtendedToken]) -> str:
    named = ", ".join(f"`{_on_one_line(token.text)}`" for token in tokens[:WORDS_NAMED])
    more = len(tokens) - WORDS_NAMED
    return (named or "none") + (f" and {more} more" if more > 0 else "")


def _figures(facts: Facts) -> list[str]:
    rows = ["| figure | base | this model | gain, 95 % |", "|---|---|---|---|"]
    for item in facts.comparison["items"]:
        figure = f"{item['dataset']}, {item['subset'].replace('_', ' ')}: {item['metric']}"
        gain = f"{item['gain']:+.2f} ({item['low']:+.2f} to {item['high']:+.2f})"
        rows.append(f"| {figure} | {_number(item.get('base'))} | {_number(item.get('merged'))} | {gain} |")
    base, merged = facts.figures["base"]["tokens_per_text"], facts.figures["merged"]["tokens_per_text"]
    return [*rows, f"| tokens per text | {_number(base)} | {_number(merged)} | |"]


def _stays(facts: Facts) -> list[str]:
    share = facts.retention.get("valid_share")
    lines = [] if share is None else [f"Of the reference texts, {share:.1f} % have vectors that stay valid."]
    pairs = [facts.figures[model]["retention"].get("no_new_word", {}).get("spearman") for model in ("base", "merged")]
    if None not in pairs:
        lines.append(f"Spearman's rho on pairs without a new word: {pairs[0]:.2f} before, {pairs[1]:.2f} now.")
    return lines or ["Not measured."]


def _limits(facts: Facts) -> list[str]:
    few = sorted({item["dataset"] for item in facts.comparison["items"] if item.get("verdict") == "smoke figure"})
    lines = ["Only what was measured above is known; texts of other domains were not tried."]
    if few:
        lines.append(f"Figures of {', '.join(few)} are of few items and show that the pipeline works, no more.")
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _plain(text: str) -> str:
    """Text of data without what Markdown or HTML would read as more than text."""
    return "".join(mark for mark in _on_one_line(text) if mark not in "<>|")


def _on_one_line(text: str) -> str:
    """Text of data that stays inside of a code span."""
    return " ".join(text.replace("`", "'").split())
