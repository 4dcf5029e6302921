"""Resizes a saved model as files: rewrites only tensors with an entry per token, and loads no weights."""

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.embedding_tensor import EmbeddingTensor, embedding_of, load_config, token_axis
from vocabgraft.model_folder.model_files import PICKLES, WEIGHTS_INDEX, check_files, module_folders, transformer_folder
from vocabgraft.model_folder.remote_code import copy_code
from vocabgraft.model_folder.safetensors_files import (
    Checkpoint,
    LongerTensor,
    as_bytes,
    read_checkpoint,
    read_json_object,
    write_lengthened,
)
from vocabgraft.storage.artifacts import MANIFEST, write_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# The caller writes the tokenizer; old files beside the new ones would contradict them.
TOKENIZER_FILES = frozenset(
    ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
)


def resize_folder(
    source: Path,
    destination: Path,
    new_rows: torch.Tensor,
    tokenizer_size: int,
    pad_to_multiple_of: int | None = None,
    link: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Write the model in `source` with rows for new tokens to `destination`; the caller writes the tokenizer.

    The tensors equal those after `resize_token_embeddings` and setting the rows. The new rows belong to the tokenizer's
    last ids: if the source has more rows than its tokenizer has tokens, these rows are used first.

    Args:
        source: a model folder with safetensors weights, in one file or several.
        destination: an existing, empty folder, empty again after an error. It gets the weights, the configurations, the
            module folders and trusted code, but no tokenizer, model card, manifest, or weights in other formats.
        new_rows: shape (new tokens, width), of the type of the stored embeddings.
        tokenizer_size: number of tokens of the extended tokenizer, including the new ones.
        pad_to_multiple_of: rounds the number of rows up to a multiple of this; unused rows are zeros.
        link: hard-link weight files that do not change. Such a file is the source's file, and shares its mode, which
            `artifacts.new_folder` and DVC set; use it only for a source that nobody else uses.
        trust_remote_code: run the model's own code and copy it.

    Raises:
        VocabgraftError: when the source is incomplete or damaged, or the rows do not fit.
    """
    check_files(source)
    folder = transformer_folder(source)
    modules = [module for module in module_folders(source) if source / module != folder]
    config = load_config(folder, trust_remote_code)
    checkpoint = read_checkpoint(folder)
    embedding = embedding_of(checkpoint, config, trust_remote_code)
    first, total = _plan_rows(embedding, new_rows, tokenizer_size, pad_to_multiple_of)
    longer = _longer_tensors(checkpoint, embedding, new_rows, first, total)
    target = destination / folder.relative_to(source)
    with _filled_or_empty(destination):
        _copy_configurations(source, destination)
        if folder != source:
            _copy_configurations(folder, target)
        for module in modules:
            _copy_module(source / module, destination / module)
        _write_weights(checkpoint, target, longer, link)
        raw = read_json_object(folder / "config.json")
        write_json(target / "config.json", _resized_config(raw, config, total))
        if trust_remote_code:
            copy_code(source, destination)


@contextmanager
def _filled_or_empty(folder: Path) -> Iterator[None]:
    if not folder.is_dir() or any(folder.iterdir()):
        raise VocabgraftError(f"{folder} is not an empty folder; give an existing, empty one to resize into")
    try:
        yield
    except BaseException:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise


def _plan_rows(
    embedding: EmbeddingTensor, new_rows: torch.Tensor, tokenizer_size: int, multiple: int | None
) -> tuple[int, int]:
    """The row of the first new token, and the number of rows of the resized model."""
    rows, width = embedding.shape
    place = f"{embedding.name} in {embedding.file}"
    if new_rows.ndim != 2 or new_rows.shape[1] != width:
        raise VocabgraftError(f"the new rows have shape {list(new_rows.shape)}; {place} takes (new tokens, {width})")
    if new_rows.dtype != embedding.dtype:
        raise VocabgraftError(
            f"the new rows are {new_rows.dtype}, {place} is {embedding.dtype}; convert them with .to({embedding.dtype})"
        )
    if multiple is not None and multiple < 1:
        raise VocabgraftError(f"pad_to_multiple_of is {multiple}; allowed: a whole number from 1 on, or None")
    first = tokenizer_size - len(new_rows)
    if not 0 <= first <= rows:
        raise VocabgraftError(
            f"the tokenizer has {tokenizer_size} tokens and {len(new_rows)} new rows were given, but {place} has "
            f"{rows} rows; give a row for each token from id {rows} on, and no more rows than tokens"
        )
    multiple = multiple or 1
    return first, math.ceil(max(rows, tokenizer_size) / multiple) * multiple


def _longer_tensors(
    checkpoint: Checkpoint, embedding: EmbeddingTensor, new_rows: torch.Tensor, first: int, total: int
) -> dict[str, LongerTensor]:
    rows, width = embedding.shape
    values = as_bytes(new_rows)
    longer = {name: LongerTensor((total, width), 0, first, values) for name in (embedding.name, *embedding.tied)}
    for name in embedding.sized_alike:
        shape = checkpoint.tensors[name].shape
        axis = token_axis(shape, rows) or 0
        longer[name] = LongerTensor((*shape[:axis], total, *shape[axis + 1 :]), axis, rows, values[:0])
    return longer


def _copy_configurations(source: Path, destination: Path) -> None:
    destination.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.json")):
        if path.name not in {*TOKENIZER_FILES, WEIGHTS_INDEX, MANIFEST}:
            shutil.copyfile(path, destination / path.name)


def _copy_module(source: Path, destination: Path) -> None:
    # A module without settings, such as Normalize, has an empty folder, which git and Python packages drop.
    if not source.is_dir():
        return
    # An artifact holds no pickle; the safetensors beside it have the same weights.
    ignore = shutil.ignore_patterns(".*", "*.py", *PICKLES)
    shutil.copytree(source, destination, copy_function=shutil.copyfile, ignore=ignore)


def _write_weights(checkpoint: Checkpoint, target: Path, longer: Mapping[str, LongerTensor], link: bool) -> None:
    changed = {checkpoint.tensors[name].file for name in longer}
    for file, header in checkpoint.headers.items():
        if file in changed:
            write_lengthened(file, header, target / file.name, longer)
        elif not (link and _linked(file, target / file.name)):
            shutil.copyfile(file, target / file.name)
    if checkpoint.index is not None:
        write_json(target / WEIGHTS_INDEX, _resized_index(checkpoint, checkpoint.index, longer))


def _linked(source: Path, destination: Path) -> bool:
    try:
        # The Hub's cache holds symbolic links; link to the file behind them.
        os.link(source.resolve(), destination)
    except OSError:
        return False
    return True


def _resized_index(
    checkpoint: Checkpoint, index: Mapping[str, Any], longer: Mapping[str, LongerTensor]
) -> dict[str, Any]:
    tensors = checkpoint.tensors
    grown = {name: math.prod(new.shape) - math.prod(tensors[name].shape) for name, new in longer.items()}
    metadata = dict(index.get("metadata") or {})
    metadata["total_size"] = sum(tensor.end - tensor.start for tensor in tensors.values()) + sum(
        count * tensors[name].item_size for name, count in grown.items()
    )
    if "total_parameters" in metadata:
        metadata["total_parameters"] += sum(grown.values())
    return {**index, "metadata": metadata}


def _resized_config(raw: dict[str, Any], config: "PretrainedConfig", rows: int) -> dict[str, Any]:
    text = config.get_text_config()
    part = next((key for key in raw if getattr(config, key, None) is text), None)
    if part is None:
        return {**raw, "vocab_size": rows}
    outer = {"vocab_size": rows} if "vocab_size" in raw else {}
    return {**raw, **outer, part: {**raw[part], "vocab_size": rows}}
