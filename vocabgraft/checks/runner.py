"""Checks that an extended, trained and merged model is what it claims to be.

A check is a function of the `Evidence` that returns a `Finding`, and one entry of `CHECKS`, which says what it protects
and when it does not apply. So a new one is one function, one entry, and its name in `params.CheckName`.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from vocabgraft.checks import conditions as when
from vocabgraft.checks import encodings, export, meaning, rows, segmentation, silent_identity
from vocabgraft.checks.context import Evidence
from vocabgraft.checks.result import Finding
from vocabgraft.errors import VocabgraftError

Verdict = Literal["passed", "failed", "waived", "does not apply"]
Group = Literal["rows", "segmentation", "encodings", "silent identity", "meaning", "export"]


@dataclass(frozen=True)
class Check:
    """One check's result.

    Attributes:
        figure: None where none was seen, or where it is no number.
        reason: why it was waived, does not apply or could not run.
        details: the tokens, texts or weights that broke it, at most ten.
    """

    name: str
    group: Group
    protects: str
    figure: float | None
    limit: str
    verdict: Verdict
    reason: str
    details: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The check as a mapping for `checks.json`."""
        return asdict(self) | {"details": list(self.details)}


@dataclass(frozen=True)
class CheckEntry:
    """One row of the table: the function, its group, what it protects, and the reason not to apply it, if any."""

    find: Callable[[Evidence], Finding]
    group: Group
    protects: str
    unless: Callable[[Evidence], str] = when.never

    @property
    def name(self) -> str:
        """The function's name, which `params.yaml` waives it by."""
        return self.find.__name__


CHECKS: tuple[CheckEntry, ...] = (
    CheckEntry(rows.old_rows_resized, "rows", "the resize left the base's own rows alone, bit for bit"),
    CheckEntry(
        rows.old_rows_adapter,
        "rows",
        "the adapter leaves the base's own rows alone, bit for bit",
        unless=when.all_trained,
    ),
    CheckEntry(
        rows.old_rows_merged,
        "rows",
        "training and merging left the base's own rows alone, bit for bit",
        unless=when.all_trained,
    ),
    CheckEntry(rows.new_rows_finite, "rows", "every new row is made of numbers"),
    CheckEntry(rows.new_row_norms, "rows", "new rows are of the size of old ones: 1 is the edge of their range"),
    CheckEntry(rows.new_rows_apart, "rows", "no two new tokens are nearly the same row"),
    CheckEntry(
        rows.new_rows_trained,
        "rows",
        "every new row with a training text was trained and reached the merged model",
        unless=when.no_row_trained,
    ),
    CheckEntry(rows.other_weights, "rows", "training rows changed nothing but rows", unless=when.not_rows_alone),
    CheckEntry(segmentation.segmentation, "segmentation", "a text without a new word has the ids that it had"),
    CheckEntry(segmentation.one_id_each, "segmentation", "every new token is one id and decodes to itself"),
    CheckEntry(
        segmentation.sizes_agree, "segmentation", "ids in the tokenizer, the matrix and the configuration agree"
    ),
    CheckEntry(
        segmentation.tokenizers_equal,
        "segmentation",
        "resized, adapter and merged have the tokenizer that extend_tokenizer made",
    ),
    CheckEntry(segmentation.tokenizer_reload, "segmentation", "the tokenizer, saved and loaded again, is the same"),
    CheckEntry(
        segmentation.special_tokens,
        "segmentation",
        "decoding with skip_special_tokens keeps new tokens and drops the base's special ones",
    ),
    CheckEntry(encodings.artifacts_load, "encodings", "every artifact of the run loads as a model"),
    CheckEntry(
        encodings.untouched_texts,
        "encodings",
        "stored vectors of texts without a new word stay valid, bit for bit",
        unless=when.every_text_moves,
    ),
    CheckEntry(encodings.reload, "encodings", "what was saved is what was in memory"),
    CheckEntry(encodings.merged_as_adapter, "encodings", "the merged model is the adapter's, without PEFT"),
    CheckEntry(
        encodings.adapter_switch,
        "encodings",
        "the adapter switched off is the resized base, and switched on again itself",
        unless=when.no_adapter,
    ),
    CheckEntry(
        encodings.fresh_process,
        "encodings",
        "a process with stock sentence-transformers alone gives the same embeddings",
        unless=when.own_classes,
    ),
    CheckEntry(
        encodings.moved_folder,
        "encodings",
        "a copy of the merged folder elsewhere gives the same embeddings",
        unless=when.own_classes,
    ),
    CheckEntry(
        encodings.base_absent,
        "encodings",
        "the merged folder alone is enough: base, resized base and adapter are not opened",
        unless=when.own_classes,
    ),
    CheckEntry(encodings.one_at_a_time, "encodings", "a text has one embedding, alone or in a batch"),
    CheckEntry(encodings.padding, "encodings", "a text has one embedding, padded or not"),
    CheckEntry(encodings.bfloat16, "encodings", "computing in bfloat16 gives nearly the same direction"),
    CheckEntry(
        encodings.adapter_names_base,
        "encodings",
        "the adapter names its base without an absolute path",
        unless=when.no_adapter,
    ),
    CheckEntry(
        silent_identity.trained_differs,
        "silent identity",
        "the trained weights were loaded: a saved adapter can load without error and act as the base",
    ),
    CheckEntry(
        silent_identity.adapter_moved,
        "silent identity",
        "no weight of the adapter is at its initial value",
        unless=when.no_adapter,
    ),
    CheckEntry(
        meaning.description_cosine,
        "meaning",
        "each new token, alone, points to where its description does",
        unless=when.none_described,
    ),
    CheckEntry(
        meaning.description_place,
        "meaning",
        "each new token is nearer to its own description than to most others (0 first, 0.5 chance)",
        unless=when.few_described,
    ),
    CheckEntry(
        meaning.descriptions_told_apart,
        "meaning",
        "new tokens find their own descriptions: the mean place (0 first, 0.5 chance)",
        unless=when.few_described,
    ),
    CheckEntry(
        meaning.relation_place,
        "meaning",
        "no relation's token is worse than chance between head and tail of its held-out triples (0 first, 0.5 chance)",
        unless=when.no_relation_held_out,
    ),
    CheckEntry(
        meaning.relations_told_apart,
        "meaning",
        "the right relation is found for held-out triples: the mean place (0 first, 0.5 chance)",
        unless=when.no_relation_held_out,
    ),
    CheckEntry(export.onnx_export, "export", "the model exported to ONNX gives the same embeddings"),
)


def check_all(evidence: Evidence) -> list[Check]:
    """Run every check, in order."""
    return [run_check(entry, evidence) for entry in CHECKS]


def run_check(entry: CheckEntry, evidence: Evidence) -> Check:
    """Run one check; one that cannot run has failed, unless it is waived."""
    waived = next((reason for name, reason in evidence.params.waived.items() if name == entry.name), None)
    try:
        if reason := entry.unless(evidence):
            return _result(entry, "does not apply", reason=reason)
        found = entry.find(evidence)
    except Exception as error:  # noqa: BLE001  # whatever stopped it, it did not show what it is there to show
        told = f"could not run: {error if isinstance(error, VocabgraftError) else _named(error)}"
        return _result(entry, "waived", reason=waived, details=(told,)) if waived else _result(entry, "failed", told)
    verdict: Verdict = "passed" if found.holds else "waived" if waived else "failed"
    reason = waived or "" if verdict == "waived" else ""
    return _result(entry, verdict, reason, found.limit, found.figure, found.details)


def _result(
    entry: CheckEntry,
    verdict: Verdict,
    reason: str = "",
    limit: str = "none",
    figure: float | None = None,
    details: tuple[str, ...] = (),
) -> Check:
    if figure is not None and not math.isfinite(figure):
        figure, reason = None, reason or "the figure is no number"
    return Check(entry.name, entry.group, entry.protects, figure, limit, verdict, reason, details)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
