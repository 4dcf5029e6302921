"""Trainable rows of an embedding whose other rows are frozen, at a cost that does not grow with the vocabulary."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vocabgraft.errors import VocabgraftError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class TokenRows(nn.Module):
    """An embedding of which a few rows are replaced by trainable ones.

    Both lookups cost what the batch costs: no copy of the matrix, no dense gradient of it, no data-dependent shape.
    Rows are replaced and not added to, so that they mean the same over whatever the frozen rows hold.
    """

    def __init__(self, embedding: nn.Embedding, token_ids: Sequence[int], rows: torch.Tensor) -> None:
        """Take an embedding of shape (vocabulary, width) and rows of shape (len(token_ids), width)."""
        super().__init__()
        if type(embedding) is not nn.Embedding:
            raise VocabgraftError(
                f"the input embeddings are a {type(embedding).__name__}; only a plain nn.Embedding can have token rows"
            )
        self.embedding = embedding
        self.rows = nn.Parameter(rows.detach().clone())
        self.register_buffer("slots", _slots(embedding, token_ids), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of shape (*ids.shape, width)."""
        return _look_up(ids, self.get_buffer("slots"), self.rows, self.embedding)


@contextmanager
def fast_peft_rows(model: nn.Module) -> Iterator[int]:
    """Within the block, PEFT's trainable token rows are looked up; give how many layers that is.

    PEFT copies the whole matrix on every forward pass and makes a dense gradient of it. Parameters, values, gradients
    and what is saved stay the same. A layer that is no plain embedding, such as an output matrix tied to it or one
    that scales its result, keeps PEFT's forward.
    """
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    patched = [
        module
        for module in model.modules()
        if isinstance(module, TrainableTokensLayer)
        and type(module.base_layer) is nn.Embedding
        and module.base_layer.max_norm is None
        and len(module.active_adapters) == 1
    ]
    for layer in patched:
        layer.forward_adapters = _peft_forward(layer)
    try:
        yield len(patched)
    finally:
        for layer in patched:
            del layer.forward_adapters


def _peft_forward(layer: Any) -> Callable[..., torch.Tensor]:
    own, slots = layer.forward_adapters, {}

    def forward(ids: torch.Tensor, active_adapters: Sequence[str], *args: Any, **options: Any) -> torch.Tensor:
        if layer.disable_adapters or layer.merged or len(active_adapters) != 1:
            plain: torch.Tensor = own(ids, active_adapters, *args, **options)
            return plain
        (name,) = active_adapters
        if name not in slots:
            slots[name] = _slots(layer.base_layer, layer.token_indices[name])
        return _look_up(ids, slots[name], layer.trainable_tokens_delta[name], layer.base_layer)

    return forward


def _slots(embedding: nn.Embedding, token_ids: Sequence[int]) -> torch.Tensor:
    """For each id its place among `token_ids`, or -1: shape (vocabulary,)."""
    slots = torch.full((embedding.num_embeddings,), -1, dtype=torch.long, device=embedding.weight.device)
    slots[list(token_ids)] = torch.arange(len(token_ids), device=slots.device)
    return slots


def _look_up(ids: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor, embedding: nn.Embedding) -> torch.Tensor:
    places = slots[ids]
    trained = nn.functional.embedding(places.clamp(min=0), rows)
    return torch.where((places >= 0).unsqueeze(-1), trained.to(embedding.weight.dtype), embedding(ids))


@contextmanager
def token_rows(model: "SentenceTransformer", token_ids: Sequence[int]) -> Iterator[TokenRows]:
    """Freeze the model, put trainable rows in place of those of `token_ids`, and write them back at the end.

    The rows are not written back when the block raises.
    """
    transformer = model[0].auto_model
    embedding = transformer.get_input_embeddings()
    rows = TokenRows(embedding, token_ids, embedding.weight[list(token_ids)])
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    transformer.set_input_embeddings(rows)
    try:
        yield rows
    finally:
        transformer.set_input_embeddings(embedding)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(required[name])
    with torch.no_grad():
        embedding.weight[list(token_ids)] = rows.rows.detach().to(embedding.weight.dtype)
