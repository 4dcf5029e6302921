"""Encodes texts in equal batches, so that two models can be compared."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vocabgraft.tokens.tokenizer import holds_new_token

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Embeddings = np.ndarray[Any, np.dtype[np.float32]]
Role = Literal["query", "document"]


def encode(model: "SentenceTransformer", texts: Sequence[str], batch_size: int, role: Role | None = None) -> Embeddings:
    """Embeddings of shape (texts, width) in float32, with the model's prompt for the role.

    Equal lists give equal batches and padding, which bitwise comparison needs.
    """
    if not texts:
        return np.zeros((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False, "convert_to_numpy": True}
    if role == "query":
        return np.asarray(model.encode_query(list(texts), **options), dtype=np.float32)
    if role == "document":
        return np.asarray(model.encode_document(list(texts), **options), dtype=np.float32)
    return np.asarray(model.encode(list(texts), **options), dtype=np.float32)


def encode_apart(
    model: "SentenceTransformer",
    texts: Sequence[str],
    with_new_token: "np.ndarray[Any, np.dtype[np.bool_]]",
    batch_size: int,
    role: Role | None = None,
) -> Embeddings:
    """Embeddings of all texts; those without a new token are encoded separately.

    A text's padding depends on its batch, so in mixed batches even unaffected texts differ by about 1e-7.
    """
    result = np.zeros((len(texts), model.get_embedding_dimension() or 0), dtype=np.float32)
    for places in (np.flatnonzero(with_new_token).tolist(), np.flatnonzero(~with_new_token).tolist()):
        result[places] = encode(model, [texts[place] for place in places], batch_size, role)
    return result


@contextmanager
def reading_with(model: "SentenceTransformer", tokenizer: Any) -> Iterator[None]:
    """Within the block the model reads texts with another tokenizer, such as the base's."""
    transformer: Any = model[0]
    own, transformer.processor = transformer.processor, tokenizer
    try:
        yield
    finally:
        transformer.processor = own


def split_by_new_token(tokenizer: Any, texts: Sequence[str], new_ids: Sequence[int]) -> tuple[list[str], list[str]]:
    """The texts that hold a new token, and those that do not."""
    held = holds_new_token(tokenizer, texts, new_ids)
    chosen = [text for text, holds in zip(texts, held, strict=True) if holds]
    return chosen, [text for text, holds in zip(texts, held, strict=True) if not holds]
