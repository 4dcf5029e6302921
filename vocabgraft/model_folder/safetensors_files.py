"""Reads headers of safetensors files, and streams a file with some tensors extended.

A safetensors file is a header of names, shapes and offsets, followed by raw bytes. So a tensor with more rows is the
old bytes, the new bytes and another header. No tensor is loaded.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.model_files import WEIGHTS, WEIGHTS_INDEX
from vocabgraft.model_folder.safetensors_header import Header, StoredTensor, read_header

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Fits into a core's cache: as fast as the kernel's own copying, while 16 MiB take three times as long.
BLOCK = 2**20


@dataclass(frozen=True)
class Checkpoint:
    """The headers of a model's weights; `index` is None if one file holds all of them."""

    folder: Path
    headers: Mapping[Path, Header]
    tensors: Mapping[str, StoredTensor]
    index: Mapping[str, Any] | None


@dataclass(frozen=True)
class LongerTensor:
    """An extended tensor: old entries, overwritten with `values` from entry `first` on, then zeros.

    The entries lie along `axis`, before which every length is 1; `values` is uint8 of shape (entries, bytes of one).
    """

    shape: tuple[int, ...]
    axis: int
    first: int
    values: "np.ndarray[Any, np.dtype[np.uint8]]"


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object of a foreign model.

    Raises:
        VocabgraftError: when it is damaged or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        # Not JSON, not UTF-8, or nested too deep.
        raise VocabgraftError(f"{path} is damaged ({error}); restore the model") from error
    if not isinstance(value, dict):
        raise VocabgraftError(f"{path} holds a {type(value).__name__}, not an object of names; restore the model")
    return value


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of a transformers folder's weights, in one file or several.

    Raises:
        VocabgraftError: when there are none, or they are incomplete or damaged.
    """
    # In transformers' order of preference.
    if (path := folder / WEIGHTS).is_file():
        header = read_header(path)
        return Checkpoint(folder, {path: header}, header.tensors, None)
    if not (path := folder / WEIGHTS_INDEX).is_file():
        raise VocabgraftError(
            f"{folder} has neither {WEIGHTS} nor {WEIGHTS_INDEX}; only safetensors are resized as files: "
            "save the model once with current transformers"
        )
    index = read_json_object(path)
    files = _files_of(index, path)
    headers = {file: read_header(file) for file in sorted(set(files.values()))}
    for name, file in files.items():
        if name not in headers[file].tensors:
            raise VocabgraftError(f"{path} names {name} in {file.name}, which does not hold it; restore the model")
    return Checkpoint(folder, headers, {name: headers[file].tensors[name] for name, file in files.items()}, index)


def _files_of(index: Mapping[str, Any], path: Path) -> dict[str, Path]:
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise VocabgraftError(f"{path} has no weight_map from tensors to files; restore the model")
    for file in sorted(set(map(str, names.values()))):
        if Path(file).name != file or not (path.parent / file).is_file():
            raise VocabgraftError(f"{path} names the file {file!r}, which is not beside it; restore the model")
    return {name: path.parent / file for name, file in names.items()}


def read_entries(tensor: StoredTensor, entries: Sequence[int]) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """Selected rows of a stored matrix, as bytes of shape (entries, bytes per row)."""
    rows = tensor.shape[0]
    stored = np.memmap(tensor.file, np.uint8, "r", tensor.start, (rows, (tensor.end - tensor.start) // rows))
    return np.array(stored[np.asarray(entries, dtype=np.int64)])


def as_bytes(rows: torch.Tensor) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """A matrix's bytes, shape (rows, bytes per row); a contiguous matrix on the CPU is not copied."""
    data: np.ndarray[Any, np.dtype[np.uint8]] = rows.detach().cpu().contiguous().view(torch.uint8).numpy()
    return data


def write_lengthened(file: Path, header: Header, target: Path, longer: Mapping[str, LongerTensor]) -> None:
    """Write a safetensors file again with some tensors extended; all other bytes stay the same.

    Args:
        file: the file to read.
        header: its header.
        target: the file to write.
        longer: the extended tensors by name.
    """
    # As in safetensors, wide types come first, so that every tensor stays aligned; equal types keep their order.
    order = sorted(header.tensors.items(), key=lambda item: (-item[1].item_size, item[1].start))
    planned: dict[str, StoredTensor] = {}
    end = 0
    for name, stored in order:
        shape = longer[name].shape if name in longer else stored.shape
        start, end = end, end + math.prod(shape) * stored.item_size
        planned[name] = replace(stored, shape=shape, start=start, end=end)
    # Unbuffered, since the blocks are already large.
    with file.open("rb", buffering=0) as source, target.open("wb", buffering=0) as destination:
        _write_bytes(destination, memoryview(_header_bytes(header.metadata, planned)))
        for name, stored in order:
            if name in longer:
                _write_longer(source, destination, stored, longer[name])
            else:
                _copy_bytes(source, destination, stored.start, stored.end)


def _header_bytes(metadata: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for name, tensor in tensors.items():
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (tensor.start, tensor.end)}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_longer(source: FileIO, target: FileIO, stored: StoredTensor, longer: LongerTensor) -> None:
    entry_size = math.prod(stored.shape[longer.axis + 1 :]) * stored.item_size
    after = longer.first + len(longer.values)
    _copy_bytes(source, target, stored.start, stored.start + longer.first * entry_size)
    _write_bytes(target, longer.values.reshape(-1).data)
    _copy_bytes(source, target, stored.start + after * entry_size, stored.end)
    zeros = longer.shape[longer.axis] - max(after, stored.shape[longer.axis])
    _write_bytes(target, memoryview(bytes(zeros * entry_size)))


def _copy_bytes(source: FileIO, target: FileIO, start: int, end: int) -> None:
    """Copy the bytes from `start` to `end` of a file; none if `start` is not before `end`."""
    source.seek(start)
    block = memoryview(bytearray(min(BLOCK, max(0, end - start))))
    while start < end:
        # One call may return fewer bytes than requested, and none at the end of the file.
        count = source.readinto(block[: end - start])
        if not count:
            raise VocabgraftError(f"{source.name!r} became shorter while it was read; restore it and run again")
        _write_bytes(target, block[:count])
        start += count


def _write_bytes(target: FileIO, data: memoryview) -> None:
    while data:
        data = data[target.write(data[:BLOCK]) :]
