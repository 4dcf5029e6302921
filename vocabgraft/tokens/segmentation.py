"""The effect of an extended tokenizer on texts: tokens per text before and after, and the uses of each new token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vocabgraft.tokens.new_token import read_with_descriptions

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast
from vocabgraft.tokens.tokenizer import ExtendedToken, new_ids_in


@dataclass(frozen=True)
class SegmentationReport:
    """The effect of an extension on a set of texts; `uses` counts the texts with each token."""

    texts: int
    texts_changed: int
    tokens_per_text_before: float
    tokens_per_text_after: float
    uses: dict[str, int]


def segmentation_report(
    base: "Tokenizer", extended: "PreTrainedTokenizerFast", tokens: Sequence[ExtendedToken], texts: Sequence[str]
) -> SegmentationReport:
    """Tokens per text before and after, and the number of texts with each new token.

    The base reads a new special token as its description, since it cannot read it otherwise. A text is changed if it
    contains a token that the base does not have.
    """
    ids = {token.id: token.text for token in tokens}
    retrained = {token.text for token in tokens if token.retrained}
    specials = [token.new_token for token in tokens if not token.retrained]
    before = base.encode_batch([read_with_descriptions(text, specials) for text in texts], add_special_tokens=False)
    after = extended(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    uses = dict.fromkeys(ids.values(), 0)
    changed = 0
    for found in new_ids_in(after, ids):
        present = {ids[token_id] for token_id in found}
        changed += not present <= retrained
        for text in present:
            uses[text] += 1
    return SegmentationReport(
        texts=len(texts),
        texts_changed=changed,
        tokens_per_text_before=_mean([len(encoding.ids) for encoding in before]),
        tokens_per_text_after=_mean([len(encoded) for encoded in after]),
        uses=uses,
    )


def _mean(lengths: Sequence[int]) -> float:
    return round(sum(lengths) / len(lengths), 4) if lengths else 0.0
