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
    """How many of the distinct texts hold each token."""
    counts = Counter(place for found in tokens_in(base, tokens, sorted(set(texts))) for place in found)
    return [counts[place] for place in range(len(tokens))]


def tokens_in(base: "Tokenizer", tokens: Sequence[NewToken], texts: Sequence[str]) -> Iterator[list[int]]:
    """For each text, the places of the tokens that it holds, in order.

    Args:
        base: the tokenizer of the base, not extended; it stays as it is.
        tokens: the new ones. What is nothing to the base, or has no kind, is in no text.
        texts: in any order.
    """
    from tokenizers import Tokenizer

    extended = Tokenizer.from_str(base.to_str())
    before = tokens_added_before(base)

    def read(text: str, raw: bool) -> str:
        return text if raw else normalised(base, text)

    # What is nothing to the base would cut every text apart.
    countable = {token for token in tokens if normalised(base, token.text).strip() and token.kind in KINDS}
    # A token that is there is not added again, be it of the base or an earlier row: that would change how it matches,
    # and of two that are the same once normalised either may match.
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
    """The tokens that stand inside another of them, each with the first that it stands in."""
    known = set(tokens)
    found: dict[str, str] = {}
    for token in tokens:
        # The parts of every token, looked up: comparing every token with every other would take minutes for 30,000.
        parts = (token[start:end] for start in range(len(token)) for end in range(start + 1, len(token) + 1))
        for part in parts:
            if part != token and part in known:
                found.setdefault(part, token)
    return found
