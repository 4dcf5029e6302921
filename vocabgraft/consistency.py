"""Checks that an extended, trained and merged model is what it claims to be.

A check is a function of the `Evidence` that returns a `Check`; `CHECKS` lists them, so a new one is one function and
one entry.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from vocabgraft.adapters import CONFIG, merged_model
from vocabgraft.artifacts import read_json
from vocabgraft.base_model import load_model
from vocabgraft.custom_modules import custom_modules, custom_weight
from vocabgraft.encoding import Embeddings, encode
from vocabgraft.errors import VocabgraftError
from vocabgraft.params import ROW_METHODS, CheckConsistencyParams, Method
from vocabgraft.tokenizer import ExtendedToken, holds_new_token, normalised

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PROBES = 256
EVERYTHING = "none: this method trains every weight"
Verdict = Literal["passed", "failed", "does not apply"]


@dataclass(frozen=True)
class Check:
    """One check: what it protects, the figure seen, the limit and the verdict."""

    name: str
    protects: str
    figure: float
    limit: str
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """The check as a mapping for `checks.json`."""
        return asdict(self)


@dataclass(frozen=True)
class Evidence:
    """The models of a run, loaded from their folders on the CPU, and the texts they are probed with."""

    base: "SentenceTransformer"
    resized: "SentenceTransformer"
    adapter: "SentenceTransformer"
    merged: "SentenceTransformer"
    merged_in_memory: "SentenceTransformer"
    adapter_config: dict[str, Any]
    without_training_text: frozenset[str]
    tokens: tuple[ExtendedToken, ...]
    method: Method
    with_new: tuple[str, ...]
    without_new: tuple[str, ...]
    params: CheckConsistencyParams

    @property
    def new_ids(self) -> list[int]:
        """The ids of the new tokens."""
        return [token.id for token in self.tokens]

    def encode(self, model: "SentenceTransformer", texts: Sequence[str]) -> Embeddings:
        """Embeddings at one batch size, so that equal lists are batched equally."""
        return encode(model, texts, self.params.batch_size)


def gather_evidence(
    base: Path,
    resized: Path,
    adapter: Path,
    merged: Path,
    tokens: Sequence[ExtendedToken],
    method: Method,
    texts: Sequence[str],
    params: CheckConsistencyParams,
) -> Evidence:
    """Load everything from disk and choose the probes: the first distinct texts with and without a new token.

    Raises:
        VocabgraftError: when there is no probe of one of the two kinds.
    """
    on_disk = load_model(merged, device="cpu", own_modules=True)
    distinct = list(dict.fromkeys(texts))
    held = holds_new_token(on_disk.tokenizer, distinct, [token.id for token in tokens])
    with_new = tuple(np.array(distinct, dtype=object)[held][:PROBES])
    without_new = tuple(np.array(distinct, dtype=object)[~held][:PROBES])
    if not with_new or not without_new:
        raise VocabgraftError(
            f"the probe texts are {len(with_new)} with a new word and {len(without_new)} without; both kinds are "
            "needed, so add retention pairs with and without new words"
        )
    return Evidence(
        base=load_model(base, device="cpu"),
        resized=load_model(resized, device="cpu", own_modules=True),
        adapter=load_model(adapter, device="cpu", own_modules=True),
        merged=on_disk,
        merged_in_memory=merged_model(resized, adapter),
        adapter_config={} if method == "full" else read_json(adapter / CONFIG),
        without_training_text=_without_training_text(adapter / "report.json"),
        tokens=tuple(tokens),
        method=method,
        with_new=with_new,
        without_new=without_new,
        params=params,
    )


def _without_training_text(report: Path) -> frozenset[str]:
    return frozenset(read_json(report)["tokens_without_training_text"]) if report.is_file() else frozenset()


def check_all(evidence: Evidence) -> list[Check]:
    """Run every check, in order."""
    return [check(evidence) for check in CHECKS]


def old_rows_resized(evidence: Evidence) -> Check:
    """Rows of the base's own tokens after resizing."""
    return _equal_rows("old_rows_resized", "the resize left the base's own rows alone", evidence, evidence.resized)


def old_rows_merged(evidence: Evidence) -> Check:
    """Rows of the base's own tokens after training and merging."""
    protects = "training left the base's own rows alone"
    if evidence.method == "full":
        return _not_applicable("old_rows_merged", protects, EVERYTHING)
    return _equal_rows("old_rows_merged", protects, evidence, evidence.merged)


def new_rows_finite(evidence: Evidence) -> Check:
    """Numbers of the new rows that are not finite."""
    rows = _rows(evidence.merged)[evidence.new_ids]
    return _at_most("new_rows_finite", "every new row is made of numbers", float((~rows.isfinite()).sum()), 0)


def new_rows_trained(evidence: Evidence) -> Check:
    """New rows that training left where they started, those apart that no training text holds."""
    protects = "every new row with a training text was trained and reached the merged model"
    if evidence.method not in (*ROW_METHODS, "full"):
        return _not_applicable("new_rows_trained", protects)
    trained = [token.id for token in evidence.tokens if token.text not in evidence.without_training_text]
    start, end = (_rows(model)[trained] for model in (evidence.resized, evidence.merged))
    return _at_most("new_rows_trained", protects, float((start == end).all(dim=1).sum()), 0)


def other_weights(evidence: Evidence) -> Check:
    """Weights of the base other than the embeddings that differ after merging; custom modules are no part of it."""
    protects = "training rows changed nothing but rows"
    if evidence.method != "tokens":
        return _not_applicable("other_weights", protects)
    base, merged = evidence.base.state_dict(), evidence.merged.state_dict()
    embeddings = {name for name, tensor in merged.items() if tensor.shape[:1] == _rows(evidence.merged).shape[:1]}
    compared = (set(base) | set(merged)) - embeddings
    different = [
        name
        for name in sorted(compared)
        if not custom_weight(name)
        and (name not in base or name not in merged or not torch.equal(base[name], merged[name]))
    ]
    return _at_most("other_weights", protects, float(len(different)), 0)


def untouched_texts(evidence: Evidence) -> Check:
    """Largest change of an encoding of a text without a new token, at equal batches."""
    protects = "stored vectors of texts without a new word stay valid, bit for bit"
    if evidence.method != "tokens":
        return _not_applicable("untouched_texts", protects)
    if custom_modules(evidence.merged):
        reason = "none: custom modules were trained, and they move every text"
        return _not_applicable("untouched_texts", protects, reason)
    return _at_most("untouched_texts", protects, _difference(evidence, "base", "merged", evidence.without_new), 0)


def segmentation(evidence: Evidence) -> Check:
    """Texts without a new token whose ids changed."""
    texts = list(evidence.without_new)
    before, after = (model.tokenizer(texts, verbose=False)["input_ids"] for model in (evidence.base, evidence.merged))
    changed = sum(old != new for old, new in zip(before, after, strict=True))
    return _at_most("segmentation", "a text without a new word has the ids that it had", float(changed), 0)


def one_id_each(evidence: Evidence) -> Check:
    """New tokens that are not one id, or do not decode back."""
    tokenizer = evidence.merged.tokenizer
    broken = [
        token
        for token in evidence.tokens
        if tokenizer(token.text, add_special_tokens=False)["input_ids"] != [token.id]
        # A token that is matched in normalised text is also decoded to it: of an uncased base, in lower case.
        or tokenizer.decode([token.id], skip_special_tokens=True).strip()
        not in (token.text, normalised(tokenizer.backend_tokenizer, token.text).strip())
    ]
    return _at_most("one_id_each", "every new token is one id and decodes to itself", float(len(broken)), 0)


def sizes_agree(evidence: Evidence) -> Check:
    """Disagreements between tokenizer, matrix and configuration."""
    disagreements = 0
    for model in (evidence.resized, evidence.merged):
        rows = _rows(model).shape[0]
        disagreements += rows < len(model.tokenizer)
        disagreements += rows != model[0].auto_model.config.vocab_size
        disagreements += max(evidence.new_ids) >= rows
    return _at_most("sizes_agree", "tokenizer, matrix and configuration agree on the size", float(disagreements), 0)


def reload(evidence: Evidence) -> Check:
    """Largest difference between the merged model in memory and as loaded from disk."""
    figure = _difference(evidence, "merged_in_memory", "merged", evidence.with_new)
    return _at_most("reload", "what was saved is what was in memory", figure, 0)


def merged_as_adapter(evidence: Evidence) -> Check:
    """Largest difference between the merged model and the base with the adapter."""
    figure = _difference(evidence, "adapter", "merged", [*evidence.with_new, *evidence.without_new])
    limit = evidence.params.merged_tolerance
    return _at_most("merged_as_adapter", "the merged model is the adapter's, without PEFT", figure, limit)


def trained_differs(evidence: Evidence) -> Check:
    """Largest change by training of an encoding of a text with a new token."""
    figure = _difference(evidence, "resized", "merged", evidence.with_new)
    limit = evidence.params.min_change
    return Check(
        name="trained_differs",
        protects="the trained weights were loaded: a saved adapter can load without error and act as the base",
        figure=figure,
        limit=f"at least {limit:g}",
        verdict="passed" if figure >= limit else "failed",
    )


def adapter_names_base(evidence: Evidence) -> Check:
    """Whether the adapter names its base by a path of this machine, or by none."""
    protects = "the adapter names its base without an absolute path"
    if evidence.method == "full":
        return _not_applicable("adapter_names_base", protects, "none: this method has no adapter")
    named = str(evidence.adapter_config.get("base_model_name_or_path") or "")
    broken = not named or re.match(r"^(/|~|[A-Za-z]:)", named) is not None
    return _at_most("adapter_names_base", protects, float(broken), 0)


CHECKS: tuple[Callable[[Evidence], Check], ...] = (
    old_rows_resized,
    old_rows_merged,
    new_rows_finite,
    new_rows_trained,
    other_weights,
    untouched_texts,
    segmentation,
    one_id_each,
    sizes_agree,
    reload,
    merged_as_adapter,
    trained_differs,
    adapter_names_base,
)


def _rows(model: "SentenceTransformer") -> torch.Tensor:
    weight: torch.Tensor = model[0].auto_model.get_input_embeddings().weight
    return weight.detach()


def _equal_rows(name: str, protects: str, evidence: Evidence, model: "SentenceTransformer") -> Check:
    before, after = _rows(evidence.base), _rows(model)[: len(_rows(evidence.base))]
    # New rows may stand among old ones: tokens of an earlier run that train again, rows that were padding.
    old = torch.ones(len(before), dtype=torch.bool)
    old[[token_id for token_id in evidence.new_ids if token_id < len(before)]] = False
    comparable = before.shape == after.shape
    different = float((before != after).any(dim=1)[old].sum()) if comparable else float(old.sum())
    return _at_most(name, protects, different, 0)


def _difference(evidence: Evidence, left: str, right: str, texts: Sequence[str]) -> float:
    embeddings = [evidence.encode(getattr(evidence, name), texts) for name in (left, right)]
    return float(np.abs(embeddings[0] - embeddings[1]).max())


def _at_most(name: str, protects: str, figure: float, limit: float) -> Check:
    # A figure that is not a number compares false, and so fails.
    return Check(name, protects, figure, f"at most {limit:g}", "passed" if figure <= limit else "failed")


def _not_applicable(name: str, protects: str, reason: str = "none for this method") -> Check:
    return Check(name, protects, 0.0, reason, "does not apply")
