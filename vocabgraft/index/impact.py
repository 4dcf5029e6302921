"""Counts the stored vectors that stay valid with an extended tokenizer."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vocabgraft.tokens.new_token import NewToken, read_with_descriptions
from vocabgraft.tokens.tokenizer import ExtendedToken, new_ids_in

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class IndexImpact:
    """Counts over a corpus: texts, texts with a new token, tokens before and after, and texts per new token."""

    texts: int
    texts_with_new_token: int
    tokens_before: int
    tokens_after: int
    uses: dict[str, int]

    @property
    def share_valid(self) -> float:
        """The share of texts, 0 to 1, whose stored vector an extension without an adapter does not change."""
        return 1 - self.texts_with_new_token / self.texts if self.texts else 1.0


def measure_impact(
    base: "Tokenizer", extended: "Tokenizer", tokens: Sequence[ExtendedToken], blocks: Iterable[Sequence[str]]
) -> IndexImpact:
    """Read a corpus with both tokenizers, one block at a time.

    The base reads a special token as its description, as in `segmentation_report`. A text without a new token is read
    once, since both tokenizers give the same tokens. The model's own special tokens ([CLS]) are not counted.

    Args:
        base: the tokenizer before the extension, without padding and truncation.
        extended: the same with the new tokens.
        tokens: the new tokens.
        blocks: lists of texts, each small enough for the memory.
    """
    names = {token.id: token.text for token in tokens}
    new_tokens = [token.new_token for token in tokens if not token.retrained]
    uses = dict.fromkeys(names.values(), 0)
    texts = changed = before = after = 0
    for block in blocks:
        touched = []
        encoded = _encode(extended, block)
        for text, ids, present in zip(block, encoded, new_ids_in(encoded, names), strict=True):
            after += len(ids)
            if present:
                touched.append(text)
                for token_id in present:
                    uses[names[token_id]] += 1
            else:
                before += len(ids)
        before += _tokens_read_by_base(base, new_tokens, touched)
        texts, changed = texts + len(block), changed + len(touched)
    return IndexImpact(texts, changed, before, after, uses)


def without_new_tokens(extended: "Tokenizer", tokens: Sequence[ExtendedToken]) -> "Tokenizer":
    """The base's tokenizer: the extended one without the added tokens."""
    from tokenizers import Tokenizer

    # The base already has a token that trains again.
    new_ids = {token.id for token in tokens if not token.retrained}
    loaded = json.loads(extended.to_str())
    loaded["added_tokens"] = [entry for entry in loaded["added_tokens"] if entry["id"] not in new_ids]
    return Tokenizer.from_str(json.dumps(loaded))


def _tokens_read_by_base(base: "Tokenizer", tokens: Sequence[NewToken], texts: Sequence[str]) -> int:
    return sum(len(ids) for ids in _encode(base, [read_with_descriptions(text, tokens) for text in texts]))


def _encode(tokenizer: "Tokenizer", texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
