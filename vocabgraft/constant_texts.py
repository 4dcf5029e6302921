"""Training rows only computes what they can change: every other text has an embedding that is a constant."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Features = dict[str, Any]
# Rows of one forward pass are near in length; on a CPU, padding to the longest of 128 costs more than a second pass.
ROWS_OF_A_PASS = 32


@contextmanager
def constant_texts(
    model: "SentenceTransformer", trained_ids: Sequence[int], table: dict[bytes, torch.Tensor] | None = None
) -> Iterator[None]:
    """Within the block, the model's forward takes the embedding of a text without a trained id from a table.

    The table fills as texts come: each distinct one is embedded once, in evaluation mode and without a gradient. That
    is right only while nothing but the rows of `trained_ids` moves. The other texts of a batch are embedded as always,
    those of like length together. Only `sentence_embedding` is given back, so a loss that reads token embeddings or
    several layers does not work with it. A `table` that is given is filled, and what it holds already is taken.
    """
    original = model.forward
    table = {} if table is None else table
    trained_parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trained = torch.as_tensor(sorted(trained_ids), device=model.device)

    def forward(features: Features, **options: Any) -> Features:
        ids, mask = features["input_ids"], features["attention_mask"].bool()
        changing = (torch.isin(ids, trained) & mask).any(dim=1)
        parts = [_embed(original, features, places, options) for places in _by_length(mask, changing)]
        parts.append(_constants(model, original, features, (~changing).nonzero().flatten(), table, options))
        places = torch.cat([part[0] for part in parts])
        embeddings = torch.cat([part[1] for part in parts])[places.argsort()]
        return {**features, "sentence_embedding": _linked(embeddings, *trained_parameters)}

    # An attribute of the instance stands before the class's method, also for a wrapper such as that for several
    # processes; the losses of sentence-transformers that change the forward pass do it in the same way.
    model.forward = forward
    try:
        yield
    finally:
        del model.forward


class _Linked(torch.autograd.Function):
    """The embeddings, as if they came from the trained rows, which get no gradient by this way.

    A batch without a trained id would have a loss without a graph, and of several processes one would wait for the
    gradients of another for ever.
    """

    @staticmethod
    def forward(ctx: Any, embeddings: torch.Tensor, *trained: torch.Tensor) -> torch.Tensor:
        ctx.trained = len(trained)
        return embeddings.view_as(embeddings)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return (gradient, *[None] * ctx.trained)


_linked: Callable[..., torch.Tensor] = _Linked.apply


Part = tuple[torch.Tensor, torch.Tensor]


def _embed(forward: Any, features: Features, places: torch.Tensor, options: dict[str, Any]) -> Part:
    embedded: torch.Tensor = forward(_rows(features, places), **options)["sentence_embedding"]
    return places, embedded


def _constants(
    model: "SentenceTransformer",
    forward: Any,
    features: Features,
    places: torch.Tensor,
    table: dict[bytes, torch.Tensor],
    options: dict[str, Any],
) -> Part:
    keys = [_key(features, place) for place in places.tolist()]
    first = {key: place for key, place in zip(keys, places.tolist(), strict=True) if key not in table}
    if first:
        was_training = model.training
        model.eval()
        with torch.no_grad():
            missing = torch.zeros(len(features["input_ids"]), dtype=torch.bool, device=places.device)
            missing[list(first.values())] = True
            for chunk in _by_length(features["attention_mask"].bool(), missing):
                embedded = forward(_rows(features, chunk), **options)["sentence_embedding"]
                table.update(zip((_key(features, place) for place in chunk.tolist()), embedded, strict=True))
        model.train(was_training)
    width = model.get_embedding_dimension() or 0
    if not keys:
        return places, torch.zeros(0, width, device=places.device)
    return places, torch.stack([table[key] for key in keys])


def _by_length(mask: torch.Tensor, chosen: torch.Tensor) -> Iterator[torch.Tensor]:
    """The places of the chosen rows, shortest first, in parts."""
    places = chosen.nonzero().flatten()
    lengths = mask[places].sum(dim=1)
    ordered = places[lengths.argsort(stable=True)]
    for start in range(0, len(ordered), ROWS_OF_A_PASS):
        yield ordered[start : start + ROWS_OF_A_PASS]


def _rows(features: Features, places: torch.Tensor) -> Features:
    """Some rows of a batch, without the padding that they have in common."""
    rows = len(features["input_ids"])
    filled = features["attention_mask"][places].any(dim=0).nonzero().flatten()
    kept = slice(int(filled[0]), int(filled[-1]) + 1)

    def part(value: Any) -> Any:
        if not _is_by_row(value, rows):
            return value
        return value[places][:, kept] if value.ndim == 2 else value[places]

    return {name: part(value) for name, value in features.items()}


def _key(features: Features, place: int) -> bytes:
    """What tells a text from another: its ids, and what is said of the whole batch (its prompt, its route)."""
    ids = features["input_ids"][place][features["attention_mask"][place].bool()]
    said = {name: value for name, value in features.items() if not _is_by_row(value, len(features["input_ids"]))}
    return bytes(ids.cpu().numpy().tobytes()) + repr(sorted(said.items())).encode()


def _is_by_row(value: Any, rows: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == rows
