"""The card of a model on a hub: metadata that the hub reads, licenses, and how to load it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vocabgraft.errors import VocabgraftError

UNKNOWN = "unknown"
TAGS = ("sentence-transformers", "feature-extraction", "sentence-similarity", "vocabgraft")
WORDS_NAMED = 40


@dataclass(frozen=True)
class CardFacts:
    """Facts about a shared model.

    Attributes:
        repo: `OWNER/NAME` or `NAME` on the hub.
        license: of the model as a whole.
        base: the model that it extends; "" if unknown.
        base_license: of the base.
        data_license: of the words and the training texts.
        words: the added words.
        metrics: by name; they are listed if the model has no card of its own.
        onnx: whether the repository has an ONNX model.
        code: whether loading the model runs code of the repository.
    """

    repo: str
    license: str
    base: str = ""
    base_license: str = UNKNOWN
    data_license: str = UNKNOWN
    words: Sequence[str] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    onnx: bool = False
    code: bool = False


def read_metadata(card: str) -> dict[str, Any]:
    """The metadata in the front matter of a card; empty if there is none.

    Raises:
        VocabgraftError: when the metadata is damaged.
    """
    return _split(card)[0]


def write_hub_card(existing: str, facts: CardFacts) -> str:
    """The card for the hub: the existing card with complete metadata, a section on licenses and one on loading.

    Args:
        existing: the model's own card; "" makes a new one.
        facts: of the model.

    Raises:
        VocabgraftError: when the existing card's metadata is damaged.
    """

    metadata, body = _split(existing)
    merged = {**metadata, **_metadata(metadata, facts)}
    body = body.strip() or "\n".join(_new_body(facts))
    lines = ["---", _as_yaml(merged).strip(), "---", body, "", *_licenses(facts), "", *_loading(facts), ""]
    return "\n".join(lines)


def _metadata(own: Mapping[str, Any], facts: CardFacts) -> dict[str, Any]:
    tags = [*_list(own.get("tags")), *TAGS, *(["onnx"] if facts.onnx else [])]
    found: dict[str, Any] = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": list(dict.fromkeys(tags)),
        "license": facts.license.lower(),
    }
    # The hub links this name to a repository, so a package or a folder is left out.
    if _is_hub_id(facts.base):
        found["base_model"] = facts.base
    return found


def _new_body(facts: CardFacts) -> list[str]:
    source = f" from `{_inline(facts.base)}`" if facts.base else ""
    named = ", ".join(f"`{_inline(word)}`" for word in facts.words[:WORDS_NAMED])
    more = f" and {len(facts.words) - WORDS_NAMED} more" if len(facts.words) > WORDS_NAMED else ""
    lines = [f"# {facts.repo.rpartition('/')[2]}", "", f"A sentence-embedding model, made{source} with vocabgraft."]
    if facts.words:
        lines += ["", f"{len(facts.words)} words added: {named}{more}."]
    if facts.metrics:
        lines += ["", "## Metrics", "", "| metric | value |", "|---|---|"]
        lines += [f"| {_inline(name)} | {_inline(str(value))} |" for name, value in facts.metrics.items()]
    return lines


def _licenses(facts: CardFacts) -> list[str]:
    return [
        "## Licenses",
        "",
        f"Model: {_inline(facts.license)}. Base: {_inline(facts.base_license)}. "
        f"Words and training texts: {_inline(facts.data_license)}.",
    ]


def _loading(facts: CardFacts) -> list[str]:
    lines = [
        "## From the hub",
        "",
        "```python",
        "from sentence_transformers import SentenceTransformer",
        "",
        f'model = SentenceTransformer("{facts.repo}"{", trust_remote_code=True" if facts.code else ""})',
        "```",
    ]
    if facts.onnx:
        lines += ["", "`onnx/model.onnx` is the same model for onnxruntime; `export.json` says how far they agree."]
    return lines


def _split(card: str) -> tuple[dict[str, Any], str]:
    import yaml

    lines = card.splitlines()
    if lines[:1] != ["---"] or "---" not in lines[1:]:
        return {}, card
    end = lines.index("---", 1)
    try:
        found = yaml.safe_load("\n".join(lines[1:end])) or {}
    except yaml.YAMLError as error:
        raise VocabgraftError(f"the metadata of the model's README.md is not YAML ({error}); correct it") from error
    if not isinstance(found, dict):
        raise VocabgraftError("the metadata of the model's README.md is not a mapping; write `key: value` lines")
    return found, "\n".join(lines[end + 1 :])


def _as_yaml(metadata: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True))


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(entry) for entry in value or ()]


def _is_hub_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, yet not listed

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    # A folder may have such a name.
    return name.count("/") == 1 and not Path(name).exists()


def _inline(text: str) -> str:
    """Text without characters that Markdown or HTML would interpret."""
    return "".join(mark for mark in " ".join(text.replace("`", "'").split()) if mark not in "<>|")
