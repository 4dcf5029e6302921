"""Trainable rows of an embedding whose other rows are frozen; the cost does not depend on the vocabulary size."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vocabgraft.errors import VocabgraftError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ROWS = re.compile(r"\.trainable_tokens_delta\.")

# Regular expression over parameter names that gives the rows their own learning rate.
ROWS_PATTERN = r"trainable_tokens_delta"
SHOWN_TOKENS = 5


class TokenRows(nn.Module):
    """An embedding with a few rows replaced by trainable ones.

    The cost of forward and backward depends only on the batch: no copy of the matrix, no dense gradient, no
    data-dependent shape. Trainable rows replace the frozen ones (no delta), so their value does not depend on the
    frozen matrix.
    """

    def __init__(self, embedding: nn.Embedding, token_ids: Sequence[int], rows: torch.Tensor) -> None:
        """Take an embedding of shape (vocabulary, width) and rows of shape (len(token_ids), width).

        Raises:
            VocabgraftError: for an embedding that does more than a lookup.
        """
        super().__init__()
        if not only_looks_up(embedding):
            raise VocabgraftError(
                f"the input embeddings are a {embedding}; only a plain nn.Embedding without max_norm, "
                "scale_grad_by_freq and sparse can have token rows"
            )
        self.embedding = embedding
        # Rows of a 16-bit model train in float32: in float16 Adam would turn them into NaN.
        self.rows = nn.Parameter(rows.detach().to(torch.promote_types(rows.dtype, torch.float32)).clone())
        self.register_buffer("slots", _slots(embedding, token_ids), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of shape (*ids.shape, width)."""
        return _look_up(ids, self.get_buffer("slots"), self.rows, self.embedding)


@contextmanager
def fast_peft_rows(model: nn.Module) -> Iterator[int]:
    """Within the block, look up PEFT's trainable token rows without a copy of the matrix; yields the number of layers.

    PEFT copies the whole matrix on every forward pass and makes a dense gradient of it. Parameters, values, gradients
    and saved files stay the same. PEFT's own forward stays for a layer that is not a plain embedding, such as an output
    matrix tied to it or a layer that scales its result, and whenever the lookup cannot provide a required gradient.
    """
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    patched = [
        module
        for module in model.modules()
        if isinstance(module, TrainableTokensLayer)
        and only_looks_up(module.base_layer)
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
    own, embedding = layer.forward_adapters, layer.base_layer
    # In PEFT's forward, the padding token's row has no gradient even if it is trained.
    slots = {name: _slots(embedding, ids) for name, ids in layer.token_indices.items() if not _pads(embedding, ids)}

    def forward(ids: torch.Tensor, active_adapters: Sequence[str], *args: Any, **options: Any) -> torch.Tensor:
        plain = layer.disable_adapters or layer.merged or len(active_adapters) != 1 or embedding.weight.requires_grad
        if plain or active_adapters[0] not in slots:
            result: torch.Tensor = own(ids, active_adapters, *args, **options)
            return result
        (name,) = active_adapters
        if slots[name].device != ids.device:
            slots[name] = slots[name].to(ids.device)
        return _look_up(ids, slots[name], layer.trainable_tokens_delta[name], embedding)

    return forward


def require_finite(rows: torch.Tensor, texts: Sequence[str], cause: str, remedy: str) -> None:
    """Refuse rows with NaN or infinity early, since NaN passes any limit that it is compared with.

    Args:
        rows: shape (tokens, width).
        texts: of the tokens, in the order of the rows.
        cause: of the rows, for the message.
        remedy: what to do.

    Raises:
        VocabgraftError: naming the tokens.
    """
    broken = (~rows.detach().isfinite().all(dim=1)).nonzero()[:, 0].tolist()
    if broken:
        shown = ", ".join(repr(texts[place]) for place in broken[:SHOWN_TOKENS])
        more = f" and {len(broken) - SHOWN_TOKENS} more" if len(broken) > SHOWN_TOKENS else ""
        raise VocabgraftError(
            f"the embeddings of {len(broken)} of {len(texts)} tokens became NaN or infinite {cause} "
            f"({shown}{more}); {remedy}"
        )


def only_looks_up(embedding: nn.Module) -> bool:
    """Whether a module is an embedding that returns its rows unchanged."""
    # A subclass may do more, such as scale the rows.
    return type(embedding) is nn.Embedding and not (
        embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse
    )


def _pads(embedding: nn.Embedding, token_ids: Sequence[int]) -> bool:
    return embedding.padding_idx is not None and embedding.padding_idx in token_ids


def _slots(embedding: nn.Embedding, token_ids: Sequence[int]) -> torch.Tensor:
    """The index of each id among `token_ids`, or -1: shape (vocabulary,)."""
    slots = torch.full((embedding.num_embeddings,), -1, dtype=torch.long, device=embedding.weight.device)
    slots[list(token_ids)] = torch.arange(len(token_ids), device=slots.device)
    return slots


def _look_up(ids: torch.Tensor, slots: torch.Tensor, rows: torch.Tensor, embedding: nn.Embedding) -> torch.Tensor:
    looked_up: torch.Tensor = _LookUp.apply(ids, slots[ids], rows, embedding.weight)  # type: ignore[no-untyped-call]
    return looked_up


class _LookUp(torch.autograd.Function):
    """The row at each index, or the weight's row of the id if the index is -1; the weight has no gradient.

    Backward is one pass that skips frozen positions. Autograd would go through `where` and then add every position to
    some row, which makes both directions take 1.5 times as long (64 x 16 ids, 30,522 x 384, one core).
    """

    @staticmethod
    def forward(
        ctx: Any, ids: torch.Tensor, places: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.rows, ctx.dtype = len(rows), rows.dtype
        trained = nn.functional.embedding(places.clamp(min=0), rows).to(weight.dtype)
        return torch.where((places >= 0).unsqueeze(-1), trained, nn.functional.embedding(ids, weight))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, torch.Tensor, None]:
        (places,) = ctx.saved_tensors
        # With -1 as padding index, frozen positions are skipped.
        rows = torch.ops.aten.embedding_dense_backward(gradient.to(ctx.dtype), places, ctx.rows, -1, False)
        return None, None, rows, None


@contextmanager
def token_rows(model: "SentenceTransformer", token_ids: Sequence[int]) -> Iterator[TokenRows]:
    """Freeze the model, replace the rows of `token_ids` by trainable ones, and write them back at the end.

    The rows are not written back if the block raises.
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
