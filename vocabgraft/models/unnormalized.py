"""Pooled embeddings, before a trailing Normalize.

The difference of two unit vectors is not a unit vector, so embeddings are added and subtracted before they are
normalized.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import Embeddings, encode

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Features = dict[str, Any]
# Separates features embedded before Normalize from others of the same text in the table of constant texts.
MARK = "before_normalize"


def trailing_normalize(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The Normalize layers at the end of a model, or of the model inside a wrapper for several processes.

    Raises:
        VocabgraftError: for a model with a Router, whose routes end differently.
    """
    from sentence_transformers.sentence_transformer.modules import Normalize, Router

    layers = list(unwrapped(model).children())
    if any(isinstance(layer, Router) for layer in layers):
        raise VocabgraftError(
            "the model has a Router, so head, relation and tail would not lie in one space before Normalize; "
            "allowed: models of plain layers. Remove the Router from resize_base.modules, or train the triples as "
            "pairs with MultipleNegativesRankingLoss"
        )
    found: list[torch.nn.Module] = []
    while layers and isinstance(layers[-1], Normalize):
        found.append(layers.pop())
    return found


def unwrapped(model: Any) -> Any:
    """The sentence-transformers model inside a wrapper for several processes or a compiled one, or the model itself."""
    for name in ("module", "_orig_mod"):
        inner = getattr(model, name, None)
        if isinstance(inner, torch.nn.Module):
            return unwrapped(inner)
    return model


@contextmanager
def before_normalize(model: torch.nn.Module) -> Iterator[None]:
    """Within the block, the trailing Normalize layers return their input.

    The model is still called as a whole, so a wrapper for several processes, an adapter and a table of constant texts
    keep working.
    """
    layers = trailing_normalize(model)
    for layer in layers:
        layer.forward = _unchanged
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def embed_pooled(model: torch.nn.Module, columns: Sequence[Features]) -> list[torch.Tensor]:
    """Embeddings before Normalize, one float32 tensor (rows, width) per column, with gradients.

    Columns that fit together are embedded in one forward pass.
    """
    from sentence_transformers.base.losses.merged_forward import embed_columns

    marked = [{**features, MARK: True} for features in columns]
    with before_normalize(model):
        embedded = embed_columns(model, marked, separate_first=False)
    # In bfloat16 the difference of two near embeddings is mostly rounding error.
    return [values.float() for values in embedded]


def encode_pooled(model: "SentenceTransformer", texts: Sequence[str], batch_size: int) -> Embeddings:
    """Embeddings before Normalize, (texts, width) in float32, without gradients."""
    from sentence_transformers import SentenceTransformer

    normalize = trailing_normalize(model)
    if not normalize:
        return encode(model, texts, batch_size)
    if not texts:
        return np.zeros((0, model.get_embedding_dimension() or 0), dtype=np.float32)
    layers = [layer for layer in model.children() if not any(layer is last for last in normalize)]
    # The layers are shared, but not a forward set on the model for its unit vectors.
    headless = SentenceTransformer(modules=layers, device=str(model.device), prompts=model.prompts)
    headless.default_prompt_name = model.default_prompt_name
    return encode(headless, texts, batch_size)


def _unchanged(features: Features, **_: Any) -> Features:
    return features
