"""Finds and reads the input embeddings of a saved model without loading its other weights."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.model_files import transformer_folder
from vocabgraft.model_folder.safetensors_files import (
    FLOATS,
    Checkpoint,
    as_bytes,
    read_checkpoint,
    read_entries,
)
from vocabgraft.model_folder.safetensors_header import StoredTensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class EmbeddingTensor:
    """The stored input embeddings, and the other tensors with an entry per token.

    Attributes:
        name: the tensor's name in its file.
        file: the safetensors file that holds it.
        shape: (rows, width); there may be more rows than the tokenizer has tokens.
        dtype: the stored type.
        tied: names of stored tensors with the same values, such as a tied output matrix; they get the same new rows.
        sized_alike: names of other stored tensors with an entry per row, such as the bias of an output matrix; they are
            extended with zeros.
    """

    name: str
    file: Path
    shape: tuple[int, int]
    dtype: torch.dtype
    tied: tuple[str, ...]
    sized_alike: tuple[str, ...]


def find_embedding(folder: Path, trust_remote_code: bool = False) -> EmbeddingTensor:
    """Find the stored input embeddings of a sentence-transformers or transformers folder, reading only headers.

    Args:
        folder: a model folder.
        trust_remote_code: run the folder's own code, which defines where they are.

    Raises:
        VocabgraftError: when there are no complete safetensors weights, or the input embeddings are not among them.
    """
    transformer = transformer_folder(folder)
    return embedding_of(read_checkpoint(transformer), load_config(transformer, trust_remote_code), trust_remote_code)


def read_rows(folder: Path, ids: Sequence[int], trust_remote_code: bool = False) -> torch.Tensor:
    """Read some rows of the input embeddings without loading the others.

    Args:
        folder: a model folder.
        ids: rows to read, in any order, possibly repeated.
        trust_remote_code: as in `find_embedding`.

    Returns:
        Shape (ids, width), of the stored type.

    Raises:
        VocabgraftError: as in `find_embedding`, and for an id without a row.
    """
    transformer = transformer_folder(folder)
    checkpoint = read_checkpoint(transformer)
    embedding = embedding_of(checkpoint, load_config(transformer, trust_remote_code), trust_remote_code)
    rows, width = embedding.shape
    if wrong := [i for i in ids if not 0 <= i < rows]:
        raise VocabgraftError(
            f"row {wrong[0]} of {embedding.name} in {embedding.file} was requested; allowed: 0 to {rows - 1}; "
            "is this the tokenizer of the model?"
        )
    read = torch.empty(len(ids), width, dtype=embedding.dtype)
    as_bytes(read)[:] = read_entries(checkpoint.tensors[embedding.name], ids)
    return read


def initialiser_deviation(folder: Path, trust_remote_code: bool = False) -> float:
    """The standard deviation of the initial weights in a model's configuration; 0.02 if it has none."""
    config = load_config(transformer_folder(folder), trust_remote_code)
    return float(getattr(config.get_text_config(), "initializer_range", 0.02))


def load_config(folder: Path, trust_remote_code: bool) -> "PretrainedConfig":
    """The configuration of the transformer in a folder."""
    from transformers import AutoConfig

    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    # A model's own code may fail in any way.
    expected: tuple[type[Exception], ...] = (Exception,) if trust_remote_code else (OSError, ValueError, KeyError)
    try:
        return AutoConfig.from_pretrained(str(folder), **options)
    except expected as error:
        raise VocabgraftError(
            f"{folder}/config.json is not a configuration that transformers knows: {error}; "
            "a model with its own code needs base.trust_remote_code, and all of that code in its folder"
        ) from error


def embedding_of(checkpoint: Checkpoint, config: "PretrainedConfig", trust_remote_code: bool) -> EmbeddingTensor:
    """The input embeddings of a checkpoint."""
    model, weight = _model_without_memory(config, checkpoint.folder, trust_remote_code)
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    aliases = {name for name, tensor in named if tensor is weight}
    in_code = names_in_code(checkpoint.tensors, model)
    found = [name for name, code in in_code.items() if code in aliases]
    if not found:
        raise _no_embeddings(checkpoint, aliases)
    stored = checkpoint.tensors[found[0]]
    _check_embedding(found[0], stored, tuple(weight.shape))
    rows, width = stored.shape
    # In the base model no other tensor has an entry per token, whatever its shape. Tensors that it does not have belong
    # to a head, where the shape decides.
    known = {name for name, _ in named}
    alike = [
        name
        for name, tensor in checkpoint.tensors.items()
        if in_code[name] not in known and token_axis(tensor.shape, rows) is not None
    ]
    tied = [*found[1:], *(name for name in alike if holds_same_values(checkpoint.tensors[name], stored))]
    alike = [name for name in alike if name not in tied]
    dtype = FLOATS[stored.dtype]
    return EmbeddingTensor(found[0], stored.file, (rows, width), dtype, tuple(sorted(tied)), tuple(sorted(alike)))


def _model_without_memory(
    config: "PretrainedConfig", folder: Path, trust_remote_code: bool
) -> "tuple[PreTrainedModel, torch.Tensor]":
    """The base model and its input embeddings on the meta device: allocates nothing and draws no random number."""
    from transformers import AutoModel

    expected: tuple[type[Exception], ...] = (
        (Exception,) if trust_remote_code else (ValueError, ImportError, NotImplementedError, AttributeError)
    )
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
        return model, model.get_input_embeddings().weight
    except expected as error:
        raise VocabgraftError(
            f"transformers cannot say where the {config.model_type!r} model in {folder} has its input embeddings "
            f"({error}); choose a base with a text encoder that sentence-transformers loads"
        ) from error


def names_in_code(stored: Iterable[str], model: "PreTrainedModel") -> dict[str, str]:
    """The parameter name that transformers looks up for each name in a checkpoint, sorted."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    names, code, prefix = sorted(stored), model.state_dict(), model.base_model_prefix
    plain = {name: rename_source_key(name, [], [], prefix, code)[0] for name in names}
    if code.keys() <= set(plain.values()):
        # No name is missing, so none is renamed; building the renaming rules takes most of a second.
        return plain
    mapping = get_model_conversion_mapping(model)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    return {name: rename_source_key(name, renamings, converters, prefix, code)[0] for name in names}


def _no_embeddings(checkpoint: Checkpoint, aliases: Iterable[str]) -> VocabgraftError:
    names = sorted(checkpoint.tensors)
    return VocabgraftError(
        f"{checkpoint.folder} holds no input embeddings: {' or '.join(sorted(aliases))} is not among its "
        f"{len(names)} tensors ({', '.join(names[:3])}, ...); restore the model"
    )


def token_axis(shape: Sequence[int], rows: int) -> int | None:
    """The axis with an entry per token. Only axes of length 1 precede it, so the tensor grows at its end."""
    axis = next((axis for axis, length in enumerate(shape) if length != 1), None)
    return axis if axis is not None and shape[axis] == rows else None


def _check_embedding(name: str, stored: StoredTensor, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise VocabgraftError(
            f"{name} in {stored.file} has shape {list(stored.shape)}, but config.json gives {list(shape)}; "
            "restore the model"
        )
    if stored.dtype not in FLOATS:
        raise VocabgraftError(
            f"{name} in {stored.file} is {stored.dtype}; allowed: {', '.join(FLOATS)}; "
            "choose a base that is not quantized"
        )


def holds_same_values(tensor: StoredTensor, embedding: StoredTensor) -> bool:
    """Whether two stored tensors are one matrix; compares a sample of rows instead of reading gigabytes."""
    if (tensor.shape, tensor.dtype) != (embedding.shape, embedding.dtype):
        return False
    sample = np.unique(np.linspace(0, embedding.shape[0] - 1, 64).astype(int)).tolist()
    return np.array_equal(read_entries(tensor, sample), read_entries(embedding, sample))
