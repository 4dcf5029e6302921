"""Finds the tokens that two tokenizers of any two families share.

A subword token is identified by its text and by whether it begins a word: `heart` and `##art` of WordPiece,
`\u0120heart` and `art` of byte-level BPE, `\u2581heart` and `art` of Unigram are the same pair.
"""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE, BYTE_SPACE = "\u2581", "\u0120"
# A decoder writes this for bytes that are not a complete character.
BROKEN = "\ufffd"
Piece = tuple[str, bool]


def shared_tokens(first: "Tokenizer", second: "Tokenizer") -> list[tuple[int, int]]:
    """The ids of each shared token in the first and in the second tokenizer, in the order of the first.

    Added and special tokens are left out, since they are not subword tokens.
    """
    known = _pieces(second)
    return sorted((number, known[piece]) for piece, number in _pieces(first).items() if piece in known)


def shared_words(first: "Tokenizer", second: "Tokenizer") -> list[str]:
    """The texts of the shared tokens that begin a word, in the order of the first tokenizer's ids."""
    known = _pieces(second)
    found = sorted((number, piece) for piece, number in _pieces(first).items() if piece in known)
    return [text for _, (text, begins) in found if begins]


def _pieces(tokenizer: "Tokenizer") -> dict[Piece, int]:
    defined = json.loads(tokenizer.to_str())
    added = tokenizer.get_added_tokens_decoder()
    found: dict[Piece, int] = {}
    read = _reader(defined)
    for token, number in sorted(tokenizer.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1]):
        piece = read(token)
        if number not in added and piece is not None:
            found.setdefault(piece, number)
    return found


def _reader(defined: dict[str, Any]) -> Any:
    if defined["model"]["type"] == "WordPiece":
        prefix = defined["model"].get("continuing_subword_prefix") or "##"
        return lambda token: _of_word_piece(token, prefix)
    if "ByteLevel" in json.dumps(defined["pre_tokenizer"]):
        from tokenizers.decoders import ByteLevel

        decoder = ByteLevel()
        return lambda token: _of_bytes(token, decoder)
    return _of_metaspace


def _of_word_piece(token: str, prefix: str) -> Piece:
    return (token.removeprefix(prefix), False) if token.startswith(prefix) and token != prefix else (token, True)


def _of_bytes(token: str, decoder: Any) -> Piece | None:
    text = str(decoder.decode([token]))
    return None if not text.strip() or BROKEN in text else (text.removeprefix(" "), text.startswith(" "))


def _of_metaspace(token: str) -> Piece | None:
    return (token.removeprefix(SPACE), token.startswith(SPACE)) if token.strip(SPACE) else None
