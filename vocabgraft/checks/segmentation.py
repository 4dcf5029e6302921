"""Checks of the tokenizer: the segmentation of texts, and the meaning of ids."""

import json
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vocabgraft.checks.context import Artifact, Evidence
from vocabgraft.checks.result import Finding, none_of, quoted
from vocabgraft.checks.rows import count_rows
from vocabgraft.tokens.tokenizer import ExtendedToken, added_token, load_tokenizer, normalised

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MADE: tuple[Artifact, ...] = ("resized", "adapter", "merged")
# Set by the caller who encodes a batch, and not part of the tokenizer.
BATCH_SETTINGS = ("padding", "truncation")


def segmentation(evidence: Evidence) -> Finding:
    """Texts without a new token whose ids changed."""
    texts = [text for text_list in evidence.probes.old for text in text_list]
    before, after = (_ids(evidence.model(artifact).tokenizer, texts) for artifact in ("base", "merged"))
    return none_of([quoted(text) for text, old, new in zip(texts, before, after, strict=True) if old != new])


def one_id_each(evidence: Evidence) -> Finding:
    """New tokens that are not one id, or do not decode to themselves."""
    tokenizer = evidence.model("merged").tokenizer
    broken = []
    for token in evidence.tokens:
        ids = tokenizer(token.text, add_special_tokens=False)["input_ids"]
        read = tokenizer.decode([token.id]).strip()
        # A token that matches in normalized text also decodes to normalized text, such as lower case.
        if ids != [token.id] or read not in _spellings(tokenizer, token):
            broken.append(f"{token.text} ({token.id}): read as {ids}, {token.id} decodes to {quoted(read)}")
    return none_of(broken)


def sizes_agree(evidence: Evidence) -> Finding:
    """Disagreements between tokens.json, tokenizer, matrix and configuration, of each artifact."""
    found: list[str] = []
    for artifact in MADE:
        model = evidence.model(artifact)
        tokenizer, rows, known = model.tokenizer, count_rows(model), model.tokenizer.get_vocab()
        configured = model[0].auto_model.config.get_text_config().vocab_size
        if rows < len(tokenizer):
            found.append(f"{artifact}: {rows} rows for the {len(tokenizer)} tokens of its tokenizer")
        if rows != configured:
            found.append(f"{artifact}: {rows} rows, config.json says {configured}")
        for token in evidence.tokens:
            if (seen := known.get(token.text)) != token.id:
                found.append(f"{artifact}: {token.text} is {token.id} in tokens.json, {seen} in its tokenizer")
            elif token.id >= rows:
                found.append(f"{artifact}: {token.text} has the id {token.id}, but there are {rows} rows")
    return none_of(found)


def tokenizers_equal(evidence: Evidence) -> Finding:
    """Differences between each artifact's tokenizer and that of extend_tokenizer."""
    texts = _all_texts(evidence)
    return none_of(
        [
            f"{artifact}: {difference}"
            for artifact in MADE
            for difference in differences(evidence.tokenizer, evidence.model(artifact).tokenizer, texts)
        ]
    )


def tokenizer_reload(evidence: Evidence) -> Finding:
    """Differences between the merged model's tokenizer and the same saved and loaded again."""
    tokenizer = evidence.model("merged").tokenizer
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        again = load_tokenizer(Path(folder), evidence.trust_remote_code)
    return none_of(differences(tokenizer, again, _all_texts(evidence)))


def special_tokens(evidence: Evidence) -> Finding:
    """Tokens that `skip_special_tokens` wrongly drops or keeps.

    It drops the base's own special tokens from a decoded text. New tokens stay, also those of relations, unless they
    were added as special.
    """
    base, tokenizer = evidence.model("base").tokenizer, evidence.model("merged").tokenizer
    broken = []
    for token in evidence.tokens:
        kept = bool(tokenizer.decode([token.id], skip_special_tokens=True).strip())
        if kept == added_token(token.new_token).special:
            broken.append(f"{token.text} is {'kept' if kept else 'dropped'}")
    for token_id in base.all_special_ids:
        if read := tokenizer.decode([token_id], skip_special_tokens=True).strip():
            broken.append(f"{base.convert_ids_to_tokens(token_id)} of the base is kept, as {quoted(read)}")
    return none_of(broken)


def differences(expected: "PreTrainedTokenizerFast", seen: "PreTrainedTokenizerFast", texts: list[str]) -> list[str]:
    """Differences between two tokenizers: vocabulary, added tokens, all other components, ids of texts."""
    before, after = expected.get_vocab(), seen.get_vocab()
    found = [
        f"{token} is {after.get(token)}, not {before.get(token)}"
        for token in sorted(set(before) | set(after))
        if before.get(token) != after.get(token)
    ]
    added, now = expected.added_tokens_decoder, seen.added_tokens_decoder
    found += [
        f"the added token {token_id} is {now.get(token_id)!r}, not {added.get(token_id)!r}"
        for token_id in sorted(set(added) | set(now))
        if repr(added.get(token_id)) != repr(now.get(token_id))
    ]
    parts, seen_parts = _parts(expected), _parts(seen)
    found += [f"its {name} differs" for name in sorted(parts) if parts[name] != seen_parts.get(name)]
    ids, seen_ids = _ids(expected, texts), _ids(seen, texts)
    found += [f"it reads {quoted(text)} differently" for text, a, b in zip(texts, ids, seen_ids, strict=True) if a != b]
    return found


def _parts(tokenizer: "PreTrainedTokenizerFast") -> dict[str, Any]:
    """All components except the vocabulary and the added tokens, which are compared entry by entry."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model = {name: value for name, value in parts.pop("model").items() if name != "vocab"}
    return {"model": model} | {name: parts[name] for name in parts if name not in (*BATCH_SETTINGS, "added_tokens")}


def _spellings(tokenizer: "PreTrainedTokenizerFast", token: ExtendedToken) -> tuple[str, str]:
    return token.text, normalised(tokenizer.backend_tokenizer, token.text).strip()


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return list(tokenizer(texts, verbose=False)["input_ids"]) if texts else []


def _all_texts(evidence: Evidence) -> list[str]:
    probes = evidence.probes
    return [text for entry in fields(probes) for text in getattr(probes, entry.name)]
