"""Where the rows of new tokens start."""

from collections.abc import Sequence

import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.tokenizer import ExtendedToken


def subword_mean(weight: torch.Tensor, tokens: Sequence[ExtendedToken], unknown_id: int | None) -> torch.Tensor:
    """The mean of the rows of a token's old pieces; of its description's for a special token.

    A word or symbol that the base reads as unknown pieces only starts from its description too.

    Args:
        weight: the base's input embeddings, (vocabulary, width).
        tokens: the new tokens.
        unknown_id: the base's id for what it cannot read.

    Returns:
        Rows of shape (tokens, width), of the type of `weight`.

    Raises:
        VocabgraftError: for a token with neither readable pieces nor a description.
    """
    rows = [weight[list(_readable_pieces(token, unknown_id))].float().mean(dim=0) for token in tokens]
    return torch.stack(rows).to(weight.dtype)


def _readable_pieces(token: ExtendedToken, unknown_id: int | None) -> tuple[int, ...]:
    candidates = (token.description_pieces,) if token.kind == "special" else (token.pieces, token.description_pieces)
    for pieces in candidates:
        if readable := tuple(piece for piece in pieces if piece != unknown_id):
            return readable
    raise VocabgraftError(
        f"token {token.text!r} has no piece that the base can read and no description; add a description"
    )
