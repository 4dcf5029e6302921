"""Trainable rows of an embedding whose other rows are frozen, at a cost that does not grow with the vocabulary."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

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
        slots = torch.full((embedding.num_embeddings,), -1, dtype=torch.long, device=embedding.weight.device)
        slots[list(token_ids)] = torch.arange(len(token_ids), device=slots.device)
        self.register_buffer("slots", slots, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of shape (*ids.shape, width)."""
        slots = self.get_buffer("slots")[ids]
        trained = nn.functional.embedding(slots.clamp(min=0), self.rows)
        return torch.where((slots >= 0).unsqueeze(-1), trained.to(self.embedding.weight.dtype), self.embedding(ids))


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
