"""The header of a safetensors file: names, types, shapes and positions of its tensors, read without torch."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vocabgraft.errors import VocabgraftError

# Bytes per number; for other types the size in the header is used.
ITEM_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# The limit of the safetensors library itself: a damaged length must not cause gigabytes to be read as JSON.
LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file; `start` and `end` count bytes from the start of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def item_size(self) -> int:
        """Bytes of one number."""
        return (self.end - self.start) // max(1, math.prod(self.shape))


@dataclass(frozen=True)
class Header:
    """The contents of a safetensors header."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, StoredTensor]


def read_header(file: Path) -> Header:
    """Read the header of a safetensors file and check that the file has the stated length and no gap.

    Raises:
        VocabgraftError: when the header or the length is wrong.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise _damaged(file, f"its header should have {length} bytes, the file has {size}")
        raw = stream.read(length)
    try:
        entries = json.loads(raw)
        metadata = dict(entries.pop("__metadata__", {}))
        tensors = {name: _stored(file, 8 + length, entry) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise _damaged(file, f"its header is not one of safetensors ({error})") from error
    _check_extents(file, tensors, 8 + length, size)
    return Header(metadata, tensors)


def _check_extents(file: Path, tensors: Mapping[str, StoredTensor], data: int, size: int) -> None:
    end = data
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if tensor.start != end or tensor.end < end:
            raise _damaged(file, f"{name} should start at byte {end}, its header says {tensor.start} to {tensor.end}")
        end = tensor.end
    if end != size:
        raise _damaged(file, f"its tensors end at byte {end}, the file has {size}")


def _stored(file: Path, data: int, entry: Mapping[str, Any]) -> StoredTensor:
    start, end = entry["data_offsets"]
    shape = tuple(map(int, entry["shape"]))
    tensor = StoredTensor(file, str(entry["dtype"]), shape, data + int(start), data + int(end))
    size = ITEM_SIZES.get(tensor.dtype)
    if size is not None and tensor.end - tensor.start != math.prod(shape) * size:
        raise ValueError(f"{tensor.end - tensor.start} bytes for shape {list(shape)} of {tensor.dtype}")
    return tensor


def _damaged(file: Path, how: str) -> VocabgraftError:
    return VocabgraftError(f"{file} is damaged or incomplete: {how}; restore it from where the model came from")
