"""Finds texts that use a single new token, which show its meaning."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vocabgraft.token_embeddings.distill import Context, find_contexts
from vocabgraft.tokens.tokenizer import ExtendedToken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Per token: with 8 texts, 99.5 % of swaps of two among 74 words are found.
MOST_USES = 8
# Per token of a large vocabulary.
FEWEST_USES = 3
# For all tokens together, after each has its minimum: encoding 700 texts per second, 12 s.
TEXTS = 8192
TEXTS_AT_ONCE = 10_000


def find_uses(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerFast", tokens: Sequence[ExtendedToken]
) -> dict[int, list[Context]]:
    """By token id, the first distinct texts that hold that new token, no other new one, and more than the token itself.

    Args:
        texts: training texts; read no further than needed.
        tokenizer: the extended one.
        tokens: the new ones.

    Returns:
        Up to 8 texts per token (3 for many tokens); none for a token without such a text.
    """
    most = max(FEWEST_USES, min(MOST_USES, TEXTS // max(1, len(tokens))))
    uses: dict[int, list[Context]] = {token.id: [] for token in tokens}
    alone = {token.text for token in tokens}
    seen: set[str] = set()
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        if all(len(found) >= most for found in uses.values()):
            break
        block = [text for text in texts[start : start + TEXTS_AT_ONCE] if text not in seen]
        seen.update(block)
        for context in find_contexts(block, tokenizer, tokens, tokenizer.unk_token_id):
            if len(context.tokens) == 1 and context.text.strip() not in alone:
                (token_id,) = context.tokens
                if len(uses[token_id]) < most:
                    uses[token_id].append(context)
    return uses
