"""The report of an extended model: its new tokens, their fidelity, and how they were trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from vocabgraft.config.training import Method
from vocabgraft.errors import VocabgraftError
from vocabgraft.tokens.segmentation import SegmentationReport
from vocabgraft.tokens.tokenizer import ExtendedToken, tokens_added_before

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from vocabgraft.tokens.new_token import NewToken

ATTRIBUTE = "vocabulary_report"
SHOWN = 10


@dataclass(frozen=True)
class TrainingRecord:
    """The last training of a model, as far as the checks need it.

    Attributes:
        method: what was trained; `full` also covers several trainings that changed more than new rows.
        untrained: new tokens that no training text holds.
        adapter: the adapter's files by name; empty if only rows, or every weight, were trained.
        set_back: new tokens whose row became an attention sink in training and was reset.
    """

    method: Method
    untrained: tuple[str, ...]
    adapter: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    set_back: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class VocabularyReport:
    """The result of `extend`, at `model.vocabulary_report`.

    Attributes:
        tokens: the new tokens with their ids.
        skipped: words that were left out, with the reason.
        initialization: method that initialized the new rows.
        fidelity: cosine of the extended model's embedding of a text to the base's, over texts held out of distillation:
            `mean`, `p10` (10th percentile) and `texts`; None if nothing was distilled or no text was held out.
        low_fidelity: words whose mean cosine is below the limit (`distillation.least_fidelity`), lowest first.
        not_measured: words that no held-out text holds.
        set_back: words whose row became an attention sink during distillation and was reset, with how often.
        segmentation: tokens per text before and after, and the number of texts that use each word.
        distillation: all metrics of the distillation.
        training: the last training; None before the first.
    """

    tokens: tuple[ExtendedToken, ...]
    skipped: dict[str, str]
    initialization: str
    fidelity: dict[str, float] | None
    low_fidelity: dict[str, float]
    not_measured: tuple[str, ...]
    set_back: dict[str, int]
    segmentation: SegmentationReport
    distillation: dict[str, Any]
    training: TrainingRecord | None = None
    initial_rows: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    probe_texts: tuple[str, ...] = ()

    @property
    def new_ids(self) -> list[int]:
        """The ids of the new tokens, ascending."""
        return [token.id for token in self.tokens]

    def __repr__(self) -> str:
        """The metrics, one per line."""
        seen = self.segmentation
        lines = [f"{len(self.tokens)} new tokens: {_listed([token.text for token in self.tokens])}"]
        if self.skipped:
            lines.append(f"skipped: {_listed([f'{text} ({reason})' for text, reason in self.skipped.items()])}")
        if self.fidelity:
            lines.append(
                "fidelity to the base on {texts:.0f} held-out texts: mean {mean:.3f}, 10th percentile {p10:.3f}".format(
                    **self.fidelity
                )
            )
        if self.low_fidelity:
            worst = [f"{text} ({value:.2f})" for text, value in self.low_fidelity.items()]
            lines.append(f"low fidelity: {_listed(worst)}; add texts that use them")
        if self.not_measured:
            lines.append(f"fidelity not measured: {_listed(self.not_measured)}")
        if self.set_back:
            lines.append(f"rows reset as attention sinks: {_listed(list(self.set_back))}")
        if seen.texts:
            lines.append(
                f"tokens per text: {seen.tokens_per_text_before} before, {seen.tokens_per_text_after} after; "
                f"{seen.texts_changed} of {seen.texts} texts use a new token"
            )
        if self.training:
            lines.append(f"trained: {self.training.method}")
        return "\n".join(lines)


def make_report(
    tokens: Sequence[ExtendedToken],
    skipped: Mapping[str, str],
    initialization: str,
    distillation: Mapping[str, Any],
    segmentation: SegmentationReport,
    initial_rows: torch.Tensor,
    probe_texts: Sequence[str],
) -> VocabularyReport:
    """The report of an extension.

    Args:
        tokens: the new tokens, in order of their ids.
        skipped: words that were left out, with the reason.
        initialization: method that initialized the rows.
        distillation: the report of `distil`; empty without distillation.
        segmentation: of the given texts.
        initial_rows: (tokens, width), before any training.
        probe_texts: texts for `check`.
    """
    by_token = distillation.get("by_token", {})
    low = {text: by_token[text]["mean"] for text in distillation.get("under_limit", ())}
    return VocabularyReport(
        tokens=tuple(tokens),
        skipped=dict(skipped),
        initialization=initialization,
        fidelity=distillation.get("after", {}).get("all"),
        low_fidelity=dict(sorted(low.items(), key=lambda entry: entry[1])),
        not_measured=tuple(distillation.get("not_measured", ())),
        set_back=dict(distillation.get("set_back", {})),
        segmentation=segmentation,
        distillation=dict(distillation),
        initial_rows=initial_rows,
        probe_texts=tuple(probe_texts),
    )


def report_of(model: "SentenceTransformer") -> VocabularyReport | None:
    """The report of a model that `extend` made in this process; None for a loaded model."""
    found = getattr(model, ATTRIBUTE, None)
    return found if isinstance(found, VocabularyReport) else None


def ids_of(model: "SentenceTransformer", tokens: "Sequence[str | NewToken] | None") -> dict[str, int]:
    """The ids of a model's new tokens by their text, ascending.

    Args:
        model: an extended model.
        tokens: the tokens to look up; None means all that `extend` added.

    Raises:
        VocabgraftError: if `tokens` is None and the model has no report, or for a text that is not an added token.
    """
    if tokens is None:
        if (report := report_of(model)) is None:
            raise VocabgraftError(
                "the model was not made by extend() in this process, so its new words are unknown; name them: "
                "tokens=['nephrolithiasis', ...]"
            )
        return {token.text: token.id for token in report.tokens}
    from vocabgraft.tokens.tokenizer import raw_tokenizer

    added = {text: token_id for text, (token_id, _) in tokens_added_before(raw_tokenizer(model)).items()}
    texts = [token if isinstance(token, str) else token.text for token in tokens]
    if unknown := [text for text in texts if text not in added]:
        raise VocabgraftError(
            f"tokens names {unknown[0]!r}, which is not an added token of the model; allowed: {_listed(list(added))}"
        )
    return dict(sorted(((text, added[text]) for text in texts), key=lambda entry: entry[1]))


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return (", ".join(texts[:SHOWN]) or "none") + more
