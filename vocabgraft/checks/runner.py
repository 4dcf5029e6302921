"""The table of checks, and how a check runs and gets its verdict.

A check is a function of the `Evidence` that returns a `Finding`, and an entry of `CHECKS` that says what it protects
and when it does not apply. A new check needs one function, one entry, and its name in `stages.CheckName`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from vocabgraft.checks import conditions as when
from vocabgraft.checks import encodings, meaning, rows, segmentation, silent_identity
from vocabgraft.checks.context import Evidence
from vocabgraft.checks.result import Finding, TooFew, Verdict
from vocabgraft.errors import VocabgraftError

Group = Literal["rows", "segmentation", "encodings", "silent identity", "meaning", "export"]


@dataclass(frozen=True)
class Check:
    """One check's result.

    Attributes:
        name: name of the check.
        group: its group.
        protects: as in `CheckEntry`.
        setting: as in `CheckEntry`.
        remedy: as in `CheckEntry`.
        figure: the value; None if there is none, or if it is NaN or infinite.
        noise: the same measurement on the base, if the limit depends on it; otherwise None.
        limit: the limit in words.
        verdict: the verdict.
        reason: why it was waived, does not apply, could not run or cannot be judged.
        details: the tokens, texts or weights that violate it, at most ten.
        warnings: remarkable tokens of a check that passed, at most ten.
        by_token: as in `Finding`; not part of `checks.json`.
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
        setting: the key of params.yaml that controls the limit or the cause; None if there is none.
        unless: the reason why the check does not apply; "" if it applies.
        skip_if_waived: whether a waived check is skipped because it takes seconds; others still run and show their
            value.
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
        """Name of the function, by which `params.yaml` waives the check."""
        return self.find.__name__


CHECKS: tuple[CheckEntry, ...] = (
    CheckEntry(
        rows.old_rows_resized,
        "rows",
        "resizing left the base's own rows unchanged, bit for bit",
        remedy="Run resize_base again; if it fails again, save the base with this version of transformers.",
    ),
    CheckEntry(
        rows.old_rows_adapter,
        "rows",
        "the adapter leaves the base's own rows unchanged, bit for bit",
        unless=when.all_trained,
        remedy="Train again from the current output of resize_base; the adapter was trained over other rows.",
    ),
    CheckEntry(
        rows.old_rows_merged,
        "rows",
        "training and merging left the base's own rows unchanged, bit for bit",
        unless=when.all_trained,
        remedy="Run merge_adapter again; if it fails again, something other than the new rows was trained.",
    ),
    CheckEntry(
        rows.new_rows_finite,
        "rows",
        "no new row has NaN or infinity",
        setting="train_adapter.rows_learning_rate",
        remedy="Lower rows_learning_rate, or train with precision: float32.",
    ),
    CheckEntry(
        rows.new_row_norms,
        "rows",
        "the norms of new rows are in the range of the old ones (1 is the edge of the range)",
        setting="check_consistency.max_norm_ratio",
        remedy="Lower rows_learning_rate or train fewer epochs, so that rows grow less.",
    ),
    CheckEntry(
        rows.new_rows_apart,
        "rows",
        "no two new rows are nearly the same",
        setting="check_consistency.max_row_cosine",
        remedy="Give the two tokens texts or descriptions that distinguish them, or drop one of them.",
    ),
    CheckEntry(
        rows.new_rows_trained,
        "rows",
        "every new row with a training text was trained and is in the merged model",
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
        "training rows changed no other weights",
        unless=when.not_rows_alone,
        setting="train_adapter.method",
        remedy="Use a method that may change other weights (lora_and_tokens), or find what changed them.",
    ),
    CheckEntry(
        segmentation.segmentation,
        "segmentation",
        "a text without a new word has the same ids as before",
        remedy="Drop the words whose addition changes how other texts are segmented, or add them as kind: word.",
    ),
    CheckEntry(
        segmentation.one_id_each,
        "segmentation",
        "every new token is one id and decodes to itself",
        setting="validate_data.vocabulary",
        remedy="Drop or respell the named tokens: the tokenizer changes their text before it matches them.",
    ),
    CheckEntry(
        segmentation.sizes_agree,
        "segmentation",
        "the sizes of tokenizer, embedding matrix and configuration agree",
        remedy="Run extend_tokenizer and resize_base again, so that all parts come from one run.",
    ),
    CheckEntry(
        segmentation.tokenizers_equal,
        "segmentation",
        "the resized model, the adapter and the merged model have the tokenizer that extend_tokenizer made",
        remedy="Run the stages after extend_tokenizer again, so that all folders hold its tokenizer.",
    ),
    CheckEntry(
        segmentation.tokenizer_reload,
        "segmentation",
        "the tokenizer is the same after it is saved and loaded again",
        remedy="Save the base's tokenizer with this version of transformers and use that folder as the base.",
    ),
    CheckEntry(
        segmentation.special_tokens,
        "segmentation",
        "decoding with skip_special_tokens keeps new tokens and drops the base's special ones",
        setting="validate_data.vocabulary",
        remedy="Give the named tokens the kind that fits them: special is for relations and markers.",
    ),
    CheckEntry(
        encodings.artifacts_load,
        "encodings",
        "every artifact of the run loads as a model",
        remedy="Run the stage that writes the named folder again.",
    ),
    CheckEntry(
        encodings.untouched_texts,
        "encodings",
        "stored vectors of texts without a new word stay valid, bit for bit",
        unless=when.every_text_moves,
        setting="train_adapter.method",
        remedy="Merge again from unchanged folders; with method: tokens only new rows may differ.",
    ),
    CheckEntry(
        encodings.reload,
        "encodings",
        "the saved model gives the same embeddings as the one in memory",
        remedy="Run merge_adapter again; the saved model differs from the merged one.",
    ),
    CheckEntry(
        encodings.merged_as_adapter,
        "encodings",
        "the merged model gives the embeddings of the adapter over the resized base",
        setting="check_consistency.merged_tolerance",
        remedy="Run merge_adapter again from the current outputs of resize_base and train_adapter.",
    ),
    CheckEntry(
        encodings.adapter_switch,
        "encodings",
        "with the adapter off, the model gives the embeddings of the resized base; with it on again, its own",
        unless=when.no_adapter,
        setting="check_consistency.float32_tolerance",
        remedy="Train again from the current output of resize_base.",
    ),
    CheckEntry(
        encodings.fresh_process,
        "encodings",
        "a process with only stock sentence-transformers gives the same embeddings",
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
        "the merged folder is complete: loading it does not open the base, the resized base or the adapter",
        unless=when.own_classes,
        setting="check_consistency.float32_tolerance",
        remedy="Look for a path of the base, the resized base or the adapter in the merged folder's files.",
    ),
    CheckEntry(
        encodings.one_at_a_time,
        "encodings",
        "a text has the same embedding alone or in a batch",
        setting="check_consistency.float32_tolerance",
        remedy="Look for a layer whose result depends on the other texts of a batch.",
    ),
    CheckEntry(
        encodings.padding,
        "encodings",
        "a text has the same embedding padded or not",
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
        "the trained weights were loaded (a saved adapter can load without an error and still act as the base)",
        unless=when.nothing_trained,
        setting="check_consistency.min_change",
        remedy="Run merge_adapter again; if it fails again, raise the learning rate or the number of epochs.",
    ),
    CheckEntry(
        silent_identity.adapter_moved,
        "silent identity",
        "no weight of the adapter still has its initial value",
        unless=when.no_trained_adapter,
        setting="train_adapter.learning_rate",
        remedy="Raise the learning rate, or narrow target_modules to layers that the embedding depends on.",
    ),
    CheckEntry(
        meaning.meaning_kept,
        "meaning",
        "no new token lost its meaning: it is near its old subword tokens, its description or the texts that use it",
        setting="check_consistency.max_meaning_rank",
        remedy="Add texts that use the named tokens, or lower rows_learning_rate.",
    ),
    CheckEntry(
        meaning.description_cosine,
        "meaning",
        "no new token points away from its description",
        unless=when.none_described,
        setting="check_consistency.meaning_alpha",
        remedy="Add texts that use the named tokens, correct their descriptions, or lower rows_learning_rate.",
    ),
    CheckEntry(
        meaning.descriptions_told_apart,
        "meaning",
        "new tokens, as a whole, match their own descriptions better than by chance (mean rank: 0 first, 0.5 chance)",
        unless=when.none_described,
        setting="check_consistency.meaning_alpha",
        remedy="Check that tokens.json and the rows have the same order, and that training did not diverge.",
    ),
    CheckEntry(
        meaning.swapped_tokens,
        "meaning",
        "no new token has the meaning of another: it is nearest to the texts that use it",
        setting="check_consistency.meaning_alpha",
        remedy="Check that tokens.json and the rows have the same order; add texts that distinguish the tokens.",
    ),
    CheckEntry(
        meaning.relations_told_apart,
        "meaning",
        "relations of held-out triples, as a whole, are found better than by chance (mean rank: 0 first, 0.5 chance)",
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
        remedy="Check that tokens.json and the rows have the same order; add triples that distinguish the relations.",
    ),
    CheckEntry(
        encodings.onnx_export,
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
    """Run one check. A check that cannot run counts as failed, unless it is waived."""
    waived = next((reason for name, reason in evidence.params.waived.items() if name == entry.name), None)
    try:
        if reason := entry.unless(evidence):
            return _result(entry, "does not apply", reason=reason)
        if waived and entry.skip_if_waived:
            return _result(entry, "waived", reason=waived)
        found = entry.find(evidence)
    except Exception as error:  # noqa: BLE001  # a check that raises has not shown what it must show
        why = f"could not run: {error if isinstance(error, VocabgraftError) else _named(error)}"
        return _result(entry, "waived", reason=waived, details=(why,)) if waived else _result(entry, "failed", why)
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
        figure, reason = None, reason or "the value is NaN or infinite"
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
