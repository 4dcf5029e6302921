"""Finds the texts that use a new token, before the tokenizer is extended."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vocabgraft.tokens.new_token import KINDS, NewToken
from vocabgraft.tokens.tokenizer import added_token, normalised, tokens_added_before

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXTS_AT_ONCE = 10_000


def count_uses(base: "Tokenizer", tokens: Sequence[NewToken], texts: Sequence[str]) -> list[int]:
    """The number of distinct texts that contain each token."""
    counts = Counter(place for found in tokens_in(base, tokens, sorted(set(texts))) for place in found)
    return [counts[place] for place in range(len(tokens))]


def tokens_in(base: "Tokenizer", tokens: Sequence[NewToken], texts: Sequence[str]) -> Iterator[list[int]]:
    """For each text, the indices of the tokens that it contains, in order.

    Args:
        base: the base's tokenizer, not extended; it is not changed.
        tokens: the new tokens. A token that normalization makes empty, or one without a kind, is in no text.
        texts: texts in any order.
    """
    from tokenizers import Tokenizer

    extended = Tokenizer.from_str(base.to_str())
    before = tokens_added_before(base)

    def read(text: str, raw: bool) -> str:
        return text if raw else normalised(base, text)

    # A token that is empty after normalization would split every text.
    countable = {token for token in tokens if normalised(base, token.text).strip() and token.kind in KINDS}
    # An existing token, of the base or of an earlier row, is not added again: that would change how it matches, and
    # either of two tokens with the same normalized text may match.
    taken = {read(text, not added.normalized) for text, (_, added) in before.items()}
    wanted = {read(token.text, token.kind == "special"): token for token in reversed(tokens) if token in countable}
    extended.add_tokens([added_token(token) for text, token in reversed(wanted.items()) if text not in taken])
    places: dict[int | None, list[int]] = {}
    for place, token in enumerate(tokens):
        if token in countable:
            places.setdefault(extended.token_to_id(token.text), []).append(place)
    places.pop(None, None)
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        block = list(texts[start : start + TEXTS_AT_ONCE])
        for encoding in extended.encode_batch(block, add_special_tokens=False):
            yield sorted(place for token_id in set(encoding.ids) & places.keys() for place in places[token_id])


def inside_others(tokens: Sequence[str]) -> dict[str, str]:
    """The tokens that are part of another one, each with the first token that contains it."""
    known = set(tokens)
    found: dict[str, str] = {}
    for token in tokens:
        # Looks up all parts of every token: comparing 30,000 tokens with each other would take minutes.
        parts = (token[start:end] for start in range(len(token)) for end in range(start + 1, len(token) + 1))
        for part in parts:
            if part != token and part in known:
                found.setdefault(part, token)
    return found
