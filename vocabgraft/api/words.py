"""Converts words to new tokens, and refuses words that a base cannot take."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from vocabgraft.errors import VocabgraftError
from vocabgraft.tokens.new_token import Kind, NewToken
from vocabgraft.tokens.tokenizer import tokens_added_before, why_not_addable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Words = Iterable[str | NewToken] | Mapping[str, str]
SPECIAL = re.compile(r"<\|.*\|>", re.DOTALL)
SHOWN = 10


def as_new_tokens(words: Words) -> list[NewToken]:
    """New tokens from words, from `NewToken`s, or from a mapping from each word to its description.

    `<|X|>` is a special token, and a text without a letter or digit is a symbol. Duplicates are dropped.

    Raises:
        VocabgraftError: for a special token without a description, which its initialization needs, or with another
            kind; for a word with two meanings; if there are no words.
    """
    if isinstance(words, str):
        raise VocabgraftError(f"words is the text {words!r}; give a list of words: [{words!r}]")
    pairs = words.items() if isinstance(words, Mapping) else ((word, "") for word in words)
    found: dict[str, NewToken] = {}
    for word, description in pairs:
        token = _as_new_token(word, description)
        if found.setdefault(token.text, token) != token:
            raise VocabgraftError(f"{token.text!r} is given twice, as {found[token.text]} and as {token}; keep one")
    if not found:
        raise VocabgraftError("words is empty; give at least one word")
    return list(found.values())


def _as_new_token(word: str | NewToken, description: str) -> NewToken:
    if isinstance(word, str):
        token = NewToken(word, kind_of(word), description)
    elif isinstance(word, NewToken):
        token = word
    else:
        raise VocabgraftError(f"words holds {word!r}, a {type(word).__name__}; allowed: str and NewToken")
    is_written_special = bool(SPECIAL.fullmatch(token.text))
    if is_written_special and (token.kind != "special" or not token.description.strip()):
        seen = f"of kind {token.kind}" if token.kind != "special" else "without a description"
        raise VocabgraftError(
            f"{token.text!r} is written as a special token and given {seen}; its initialization needs a meaning, so "
            f'give NewToken({token.text!r}, "special", "what it means in words")'
        )
    return token


def kind_of(text: str) -> Kind:
    """The kind of a token given as plain text: `<|X|>` is special, a text without letter or digit a symbol."""
    if SPECIAL.fullmatch(text):
        return "special"
    return "word" if any(sign.isalnum() for sign in text) else "symbol"


def addable(
    base: "Tokenizer", tokens: Sequence[NewToken], max_token_characters: int
) -> tuple[list[NewToken], dict[str, str]]:
    """The tokens that can be added, and the reason for each of the others."""
    before, added = tokens_added_before(base), list(base.get_added_tokens_decoder().values())
    reasons: dict[str, str] = {}
    for token in tokens:
        if token.text in before:
            reasons[token.text] = "was added to the base already; train it again with train(..., tokens=[...])"
        elif reason := why_not_addable(base, added, token, max_token_characters):
            reasons[token.text] = reason
    return [token for token in tokens if token.text not in reasons], reasons


def require_addable(tokens: Sequence[NewToken], reasons: Mapping[str, str], on_invalid: str) -> None:
    """Refuse words that cannot be added, unless they may be skipped and other words remain.

    Raises:
        VocabgraftError: naming each word, up to ten, with its reason.
    """
    if on_invalid not in ("fail", "skip"):
        raise VocabgraftError(f"on_invalid is {on_invalid!r}; allowed: 'fail', 'skip'")
    if not reasons or (on_invalid == "skip" and tokens):
        return
    lines = [f"  {text!r} {reason}" for text, reason in list(reasons.items())[:SHOWN]]
    more = [f"  and {len(reasons) - SHOWN} more"] if len(reasons) > SHOWN else []
    remedy = "on_invalid='skip' leaves them out" if tokens else "give other words"
    total = len(tokens) + len(reasons)
    head = f"{len(reasons)} of {total} words cannot be added ({remedy}):"
    raise VocabgraftError("\n".join([head, *lines, *more]))
