"""Checks that an extended, trained and merged model is what it claims to be.

A check is a function of the `Evidence` that returns a `Finding`, and one entry of `CHECKS`, which says what it protects
and when it does not apply. So a new one is one function, one entry, and its name in `stages.CheckName`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from vocabgraft.checks import conditions as when
from vocabgraft.checks import encodings, export, meaning, rows, segmentation, silent_identity
from vocabgraft.checks.context import Evidence
from vocabgraft.checks.result import Finding, TooFew, Verdict
from vocabgraft.errors import VocabgraftError

Group = Literal["rows", "segmentation", "encodings", "silent identity", "meaning", "export"]


@dataclass(frozen=True)
class Check:
    """One check's result.

    Attributes:
        figure: None where none was seen, or where it is NaN or infinite.
        noise: the same measurement on the base alone, where the limit depends on it.
        reason: why it was waived, does not apply, could not run or cannot be judged.
        details: the tokens, texts or weights that broke it, at most ten.
        warnings: tokens that stand out, though the check passed, at most ten.
        setting, remedy: as in `CheckEntry`.
        by_token: as of `Finding`; `checks.json` does not have it.
    """

    name: str
    group: Group
    protects: str
    setting: str | None
    remedy: str
    figure: float | None
    noise: float | None
    limit: str
    verdict: Verdict
    reason: str
    details: tuple[str, ...]
    warnings: tuple[str, ...]
    by_token: Mapping[str, tuple[float, bool]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The check as a mapping for `checks.json`."""
        content = asdict(self) | {"details": list(self.details), "warnings": list(self.warnings)}
        del content["by_token"]
        return content


@dataclass(frozen=True)
class CheckEntry:
    """One row of the table of checks.

    Attributes:
        find: measures the value and compares it with its limit.
        protects: what holds if the check passes.
        remedy: what usually helps if it fails, in one sentence.
        setting: the key of params.yaml that governs the limit or the cause; None where no setting does.
        unless: the reason why the check does not apply; "" if it applies.
        skip_if_waived: a waived check is run all the same and its value shown, but for one that costs seconds.
    """

    find: Callable[[Evidence], Finding | TooFew]
    group: Group
    protects: str
    remedy: str
    setting: str | None = None
    unless: Callable[[Evidence], str] = when.never
    skip_if_waived: bool = False

    @property
    def name(self) -> str:
        """The function's name, which `params.yaml` waives it by."""
        return self.find.__name__


CHECKS: tuple[CheckEntry, ...] = (
    CheckEntry(
        rows.old_rows_resized,
        "rows",
        "the resize left the base's own rows alone, bit for bit",
        remedy="Run resize_base again; if it fails again, save the base with this version of transformers.",
    ),
    CheckEntry(
        rows.old_rows_adapter,
        "rows",
        "the adapter leaves the base's own rows alone, bit for bit",
        unless=when.all_trained,
        remedy="Train again from the present output of resize_base; the adapter was trained over other rows.",
    ),
    CheckEntry(
        rows.old_rows_merged,
        "rows",
        "training and merging left the base's own rows alone, bit for bit",
        unless=when.all_trained,
        remedy="Run merge_adapter again; if it fails again, something but the new rows was trained.",
    ),
    CheckEntry(
        rows.new_rows_finite,
        "rows",
        "every new row is made of numbers",
        setting="train_adapter.rows_learning_rate",
        remedy="Lower rows_learning_rate, or train with precision: float32.",
    ),
    CheckEntry(
        rows.new_row_norms,
        "rows",
        "new rows are of the size of old ones: 1 is the edge of their range",
        setting="check_consistency.max_norm_ratio",
        remedy="Lower rows_learning_rate or train fewer epochs, so that rows grow less.",
    ),
    CheckEntry(
        rows.new_rows_apart,
        "rows",
        "no two new tokens are nearly the same row",
        setting="check_consistency.max_row_cosine",
        remedy="Give the two tokens texts or descriptions that tell them apart, or drop one of them.",
    ),
    CheckEntry(
        rows.new_rows_trained,
        "rows",
        "every new row with a training text was trained and reached the merged model",
        unless=when.no_row_trained,
        setting="train_adapter.rows_learning_rate",
        remedy="Check that the texts of these tokens are in a training split and that the learning rate is not zero.",
    ),
    CheckEntry(
        rows.attention_sinks,
        "rows",
        "no new token acts as an attention sink: its hidden activations stay below those of the first token",
        unless=when.ratio_tells_nothing,
        setting="train_adapter.rows_learning_rate",
        remedy="Lower rows_learning_rate or distillation.learning_rate, so that no step carries the row that far.",
    ),
    CheckEntry(
        rows.other_weights,
        "rows",
        "training rows changed nothing but rows",
        unless=when.not_rows_alone,
        setting="train_adapter.method",
        remedy="Use a method that may change other weights (lora_and_tokens), or find what changed them.",
    ),
    CheckEntry(
        segmentation.segmentation,
        "segmentation",
        "a text without a new word has the ids that it had",
        remedy="Drop the words whose addition changes how other texts are segmented, or add them as kind: word.",
    ),
    CheckEntry(
        segmentation.one_id_each,
        "segmentation",
        "every new token is one id and decodes to itself",
        setting="validate_data.vocabulary",
        remedy="Drop or respell the tokens named: the tokenizer changes their text before it matches them.",
    ),
    CheckEntry(
        segmentation.sizes_agree,
        "segmentation",
        "ids in the tokenizer, the matrix and the configuration agree",
        remedy="Run extend_tokenizer and resize_base again, so that all parts come from one run.",
    ),
    CheckEntry(
        segmentation.tokenizers_equal,
        "segmentation",
        "resized, adapter and merged have the tokenizer that extend_tokenizer made",
        remedy="Run the stages after extend_tokenizer again, so that all folders hold its tokenizer.",
    ),
    CheckEntry(
        segmentation.tokenizer_reload,
        "segmentation",
        "the tokenizer, saved and loaded again, is the same",
        remedy="Save the base's tokenizer with this version of transformers and use that folder as the base.",
    ),
    CheckEntry(
        segmentation.special_tokens,
        "segmentation",
        "decoding with skip_special_tokens keeps new tokens and drops the base's special ones",
        setting="validate_data.vocabulary",
        remedy="Give the tokens named the kind that fits them: special is for relations and markers.",
    ),
    CheckEntry(
        encodings.artifacts_load,
        "encodings",
        "every artifact of the run loads as a model",
        remedy="Run the stage that writes the folder named again.",
    ),
    CheckEntry(
        encodings.untouched_texts,
        "encodings",
        "stored vectors of texts without a new word stay valid, bit for bit",
        unless=when.every_text_moves,
        setting="train_adapter.method",
        remedy="Merge again from unchanged folders; with method: tokens nothing but new rows may differ.",
    ),
    CheckEntry(
        encodings.reload,
        "encodings",
        "what was saved is what was in memory",
        remedy="Run merge_adapter again; what it saved is not the model that it made.",
    ),
    CheckEntry(
        encodings.merged_as_adapter,
        "encodings",
        "the merged model is the adapter's, without PEFT",
        setting="check_consistency.merged_tolerance",
        remedy="Run merge_adapter again from the present outputs of resize_base and train_adapter.",
    ),
    CheckEntry(
        encodings.adapter_switch,
        "encodings",
        "the adapter switched off is the resized base, and switched on again itself",
        unless=when.no_adapter,
        setting="check_consistency.float32_tolerance",
        remedy="Train again from the present output of resize_base.",
    ),
    CheckEntry(
        encodings.fresh_process,
        "encodings",
        "a process with stock sentence-transformers alone gives the same embeddings",
        unless=when.own_classes,
        setting="check_consistency.float32_tolerance",
        remedy="Compare the library versions and the environment of both processes.",
    ),
    CheckEntry(
        encodings.moved_folder,
        "encodings",
        "a copy of the merged folder elsewhere gives the same embeddings",
        unless=when.own_classes,
        setting="check_consistency.float32_tolerance",
        remedy="Look for a path or a file outside the merged folder that the model reads.",
    ),
    CheckEntry(
        encodings.base_absent,
        "encodings",
        "the merged folder alone is enough: base, resized base and adapter are not opened",
        unless=when.own_classes,
        setting="check_consistency.float32_tolerance",
        remedy="Look for a path of the base, the resized base or the adapter in the merged folder's files.",
    ),
    CheckEntry(
        encodings.one_at_a_time,
        "encodings",
        "a text has one embedding, alone or in a batch",
        setting="check_consistency.float32_tolerance",
        remedy="Look for a layer whose result depends on the other texts of a batch.",
    ),
    CheckEntry(
        encodings.padding,
        "encodings",
        "a text has one embedding, padded or not",
        setting="check_consistency.float32_tolerance",
        remedy="Look for a layer that reads padding: an attention mask or a pooling that ignores it.",
    ),
    CheckEntry(
        encodings.bfloat16,
        "encodings",
        "computing in bfloat16 gives nearly the same direction",
        setting="check_consistency.bfloat16_tolerance",
        remedy="Train with precision: float32, or waive the check if nobody computes in bfloat16.",
    ),
    CheckEntry(
        encodings.adapter_names_base,
        "encodings",
        "the adapter names its base without an absolute path",
        unless=when.no_adapter,
        remedy="Run train_adapter from the project's root.",
    ),
    CheckEntry(
        silent_identity.trained_differs,
        "silent identity",
        "the trained weights were loaded: a saved adapter can load without error and act as the base",
        unless=when.nothing_trained,
        setting="check_consistency.min_change",
        remedy="Run merge_adapter again; if it fails again, raise the learning rate or the number of epochs.",
    ),
    CheckEntry(
        silent_identity.adapter_moved,
        "silent identity",
        "no weight of the adapter is at its initial value",
        unless=when.no_trained_adapter,
        setting="train_adapter.learning_rate",
        remedy="Raise the learning rate, or narrow target_modules to layers that the embedding depends on.",
    ),
    CheckEntry(
        meaning.meaning_kept,
        "meaning",
        "no new token lost its meaning: it is near what the base read in it, its description or the texts that use it",
        setting="check_consistency.max_meaning_rank",
        remedy="Add texts that use the tokens named, or lower rows_learning_rate.",
    ),
    CheckEntry(
        meaning.description_cosine,
        "meaning",
        "no new token points away from its description",
        unless=when.none_described,
        setting="check_consistency.meaning_alpha",
        remedy="Add texts that use the tokens named, correct their descriptions, or lower rows_learning_rate.",
    ),
    CheckEntry(
        meaning.descriptions_told_apart,
        "meaning",
        "new tokens, as a whole, find their own descriptions better than by chance (mean rank: 0 first, 0.5 chance)",
        unless=when.none_described,
        setting="check_consistency.meaning_alpha",
        remedy="Check that tokens.json and the rows have one order, and that training did not diverge.",
    ),
    CheckEntry(
        meaning.swapped_tokens,
        "meaning",
        "no new token has the meaning of another: it is nearest to the texts that use it",
        setting="check_consistency.meaning_alpha",
        remedy="Check that tokens.json and the rows have one order; add texts that tell the two tokens apart.",
    ),
    CheckEntry(
        meaning.relations_told_apart,
        "meaning",
        "relations, as a whole, are found for held-out triples better than by chance (mean rank: 0 first, 0.5 chance)",
        unless=when.no_relation_trained,
        setting="check_consistency.meaning_alpha",
        remedy="Add training triples, or check that their relations are the right ones.",
    ),
    CheckEntry(
        meaning.swapped_relations,
        "meaning",
        "no relation has the meaning of another: it scores its own triples highest",
        unless=when.no_relation_trained,
        setting="check_consistency.meaning_alpha",
        remedy="Check that tokens.json and the rows have one order; add triples that tell the two relations apart.",
    ),
    CheckEntry(
        export.onnx_export,
        "export",
        "the model exported to ONNX gives the same embeddings and finds the same texts",
        unless=when.no_onnx,
        setting="check_consistency.onnx_tolerance",
        remedy="Waive the check if the model is never exported; torch may not export its architecture as it is.",
        skip_if_waived=True,
    ),
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
        if waived and entry.skip_if_waived:
            return _result(entry, "waived", reason=waived)
        found = entry.find(evidence)
    except Exception as error:  # noqa: BLE001  # whatever stopped it, it did not show what it is there to show
        told = f"could not run: {error if isinstance(error, VocabgraftError) else _named(error)}"
        return _result(entry, "waived", reason=waived, details=(told,)) if waived else _result(entry, "failed", told)
    if isinstance(found, TooFew):
        return _result(entry, "too few to judge", found.reason, figure=found.figure, warnings=found.warnings)
    verdict: Verdict = "passed" if found.holds else "waived" if waived else "failed"
    reason = waived or "" if verdict == "waived" else ""
    result = _result(
        entry, verdict, reason, found.limit, found.figure, found.details, noise=found.noise, warnings=found.warnings
    )
    return replace(result, by_token=found.by_token)


def _result(
    entry: CheckEntry,
    verdict: Verdict,
    reason: str = "",
    limit: str = "none",
    figure: float | None = None,
    details: tuple[str, ...] = (),
    noise: float | None = None,
    warnings: tuple[str, ...] = (),
) -> Check:
    if figure is not None and not math.isfinite(figure):
        figure, reason = None, reason or "the figure is NaN or infinite"
    return Check(
        name=entry.name,
        group=entry.group,
        protects=entry.protects,
        setting=entry.setting,
        remedy=entry.remedy,
        figure=figure,
        noise=noise if noise is not None and math.isfinite(noise) else None,
        limit=limit,
        verdict=verdict,
        reason=reason,
        details=details,
        warnings=warnings,
    )


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
