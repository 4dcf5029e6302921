"""Caches embeddings of texts without new tokens: they cannot change while only new rows train."""

import hashlib
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Features = dict[str, Any]
# A forward pass has rows of similar length; on a CPU, padding all to the longest of 128 costs more than a second pass.
ROWS_OF_A_PASS = 32
# Size limit of a table's file: 700,000 texts at width 384.
MOST_BYTES = 2**30


class ConstantTable:
    """Embeddings by the keys of their texts, in insertion order, in a temporary file.

    The process holds about 150 bytes per text. A full table accepts no more texts: the first ones are the frequent
    ones, and dropping the oldest would drop each text of a long epoch before it occurs again.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        """Create an empty table."""
        self.most_bytes, self.width = most_bytes, 0
        self._places: dict[bytes, int] = {}
        # Read, not mapped: on a full disk, writing to a mapped page ends the process by a signal, without a message.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the table
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        """The number of texts in the table."""
        return len(self._places)

    def __contains__(self, key: bytes) -> bool:
        """Whether the table has a text."""
        return key in self._places

    def add(self, keys: Sequence[bytes], embeddings: torch.Tensor) -> None:
        """Add the embeddings, (keys, width), of texts that are not in the table, as far as there is room."""
        self.width = embeddings.shape[1]
        row_bytes = self.width * np.dtype(np.float32).itemsize
        room = max(0, self.most_bytes // row_bytes - len(self))
        new = list({key: place for place, key in enumerate(keys) if key not in self}.items())[:room]
        rows = embeddings[[place for _, place in new]].detach().float().cpu().numpy()
        self._file.seek(len(self) * row_bytes)
        self._file.write(rows.tobytes())
        self._places.update({key: place for place, (key, _) in enumerate(new, start=len(self))})

    def take(self, keys: Sequence[bytes]) -> torch.Tensor:
        """The embeddings of texts in the table: float32, (keys, width), on the CPU."""
        rows = np.empty((len(keys), self.width), dtype=np.float32)
        for key, row in zip(keys, rows, strict=True):
            self._file.seek(self._places[key] * row.nbytes)
            self._file.readinto(row.data)
        return torch.from_numpy(rows)

    def keys_from(self, start: int) -> list[bytes]:
        """The keys in order, without the first `start`."""
        return list(islice(self._places, start, None))


@contextmanager
def constant_texts(
    model: "SentenceTransformer",
    trained_ids: Sequence[int],
    table: ConstantTable | None = None,
    while_computed: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[None]:
    """Within the block, the model's forward reads embeddings of texts without a trained id from a table.

    Each distinct text is embedded once, in evaluation mode and without a gradient. This is right only while nothing but
    the rows of `trained_ids` trains. The other texts of a batch are embedded as usual, grouped by length. Only
    `sentence_embedding` is returned, so a loss that reads token embeddings or several layers does not work with it. A
    given `table` is read and filled. Embeddings are returned in float32, which holds every precision.

    Args:
        model: trained within the block.
        trained_ids: a text with one of them is embedded by the model.
        table: from an earlier block of the same training.
        while_computed: a context for computing the constants, such as one without the adapter of a gated model.
    """
    original = model.forward
    table = ConstantTable() if table is None else table
    trained_parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trained = torch.as_tensor(sorted(trained_ids), device=model.device)

    def forward(features: Features, **options: Any) -> Features:
        ids, mask = features["input_ids"], features["attention_mask"].bool()
        changing = (torch.isin(ids, trained) & mask).any(dim=1)
        parts = [_embed(original, features, places, options) for places in _by_length(mask, changing)]
        with while_computed():
            parts.append(_constants(model, original, features, (~changing).nonzero().flatten(), table, options))
        places = torch.cat([part[0] for part in parts])
        embeddings = torch.cat([part[1] for part in parts])[places.argsort()]
        return {**features, "sentence_embedding": _linked(embeddings, *trained_parameters)}

    # An attribute of the instance takes precedence over the class's method, also for a wrapper for several processes;
    # losses of sentence-transformers that change the forward pass do the same.
    model.forward = forward
    try:
        yield
    finally:
        del model.forward


class _Linked(torch.autograd.Function):
    """The embeddings with a graph to the trained rows, which get no gradient through it.

    Otherwise the loss of a batch without a trained id would have no graph, and with several processes the others would
    wait forever for its gradients.
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
    table: ConstantTable,
    options: dict[str, Any],
) -> Part:
    keys = [_key(features, place) for place in places.tolist()]
    first: dict[bytes, int] = {}
    for key, place in zip(keys, places.tolist(), strict=True):
        if key not in table:
            first.setdefault(key, place)
    known = list(dict.fromkeys(key for key in keys if key not in first))
    rows = [table.take(known).to(places.device)] if known else []
    if first:
        rows.append(_computed(model, forward, features, list(first.values()), options))
        table.add(list(first), rows[-1])
    if not keys:
        return places, torch.zeros(0, model.get_embedding_dimension() or 0, device=places.device)
    row_of = {key: row for row, key in enumerate([*known, *first])}
    return places, torch.cat(rows)[[row_of[key] for key in keys]]


def _computed(
    model: "SentenceTransformer", forward: Any, features: Features, places: Sequence[int], options: dict[str, Any]
) -> torch.Tensor:
    """Float32 embeddings of these texts, in ascending order of index, in evaluation mode, without gradients."""
    mask = features["attention_mask"].bool()
    wanted = torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    wanted[list(places)] = True
    was_training = model.training
    model.eval()
    with torch.no_grad():
        parts = [_embed(forward, features, chunk, options) for chunk in _by_length(mask, wanted)]
    model.train(was_training)
    in_order = torch.cat([part[0] for part in parts]).argsort()
    return torch.cat([part[1] for part in parts])[in_order].float()


def _by_length(mask: torch.Tensor, chosen: torch.Tensor) -> Iterator[torch.Tensor]:
    """The indices of the chosen rows, shortest first, in parts."""
    places = chosen.nonzero().flatten()
    lengths = mask[places].sum(dim=1)
    ordered = places[lengths.argsort(stable=True)]
    for start in range(0, len(ordered), ROWS_OF_A_PASS):
        yield ordered[start : start + ROWS_OF_A_PASS]


def _rows(features: Features, places: torch.Tensor) -> Features:
    """Some rows of a batch, without their common padding."""
    rows = len(features["input_ids"])
    filled = features["attention_mask"][places].any(dim=0).nonzero().flatten()
    kept = slice(int(filled[0]), int(filled[-1]) + 1)

    def part(value: Any) -> Any:
        if not _is_by_row(value, rows):
            return value
        return value[places][:, kept] if value.ndim == 2 else value[places]

    return {name: part(value) for name, value in features.items()}


def _key(features: Features, place: int) -> bytes:
    """A hash of everything that identifies a text: its ids, and the features of the batch (its prompt, its route)."""
    ids = features["input_ids"][place][features["attention_mask"][place].bool()]
    said = {name: value for name, value in features.items() if not _is_by_row(value, len(features["input_ids"]))}
    content = ids.cpu().numpy().tobytes() + repr(sorted(said.items())).encode()
    return hashlib.blake2b(content, digest_size=16).digest()


def _is_by_row(value: Any, rows: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == rows
