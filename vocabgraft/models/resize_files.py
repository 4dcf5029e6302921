"""Resizing a saved model as files: only what has an entry for each token is rewritten, and no weight is loaded."""

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.models.remote_code import copy_code
from vocabgraft.models.safetensors_files import (
    FLOATS,
    WEIGHTS,
    WEIGHTS_INDEX,
    Checkpoint,
    LongerTensor,
    StoredTensor,
    as_bytes,
    read_checkpoint,
    read_entries,
    read_json_object,
    write_lengthened,
)
from vocabgraft.storage.artifacts import MANIFEST, write_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PICKLED_WEIGHTS = "pytorch_model.bin"
# The tokenizer is the caller's; an old file beside the new ones would contradict them.
TOKENIZER_FILES = frozenset(
    ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
)


@dataclass(frozen=True)
class EmbeddingTensor:
    """The input embeddings as they are stored, and the other tensors with an entry for each token.

    Attributes:
        name: the tensor's name in its file.
        file: the safetensors file that holds it.
        shape: (rows, width); there may be more rows than the tokenizer has tokens.
        dtype: the type that it is stored in.
        tied: names of stored tensors with the same values, such as a tied output matrix; they get the same new rows.
        sized_alike: names of other stored tensors with an entry for each row, such as the bias of an output matrix;
            they are lengthened with zeros.
    """

    name: str
    file: Path
    shape: tuple[int, int]
    dtype: torch.dtype
    tied: tuple[str, ...]
    sized_alike: tuple[str, ...]


def find_embedding(folder: Path, trust_remote_code: bool = False) -> EmbeddingTensor:
    """Find the stored input embeddings of a sentence-transformers or transformers folder, from the headers alone.

    Args:
        folder: a model folder.
        trust_remote_code: run its own code, which says where they are.

    Raises:
        VocabgraftError: when there are no complete safetensors weights, or the input embeddings are not among them.
    """
    transformer = transformer_folder(folder)
    return _embedding_of(read_checkpoint(transformer), _load_config(transformer, trust_remote_code), trust_remote_code)


def read_rows(folder: Path, ids: Sequence[int], trust_remote_code: bool = False) -> torch.Tensor:
    """Read some rows of the input embeddings, without the others.

    Args:
        folder: a model folder.
        ids: rows to read, in any order, repeated ones too.
        trust_remote_code: as of `find_embedding`.

    Returns:
        Shape (ids, width), of the stored type.

    Raises:
        VocabgraftError: as `find_embedding`, and for an id without a row.
    """
    transformer = transformer_folder(folder)
    checkpoint = read_checkpoint(transformer)
    embedding = _embedding_of(checkpoint, _load_config(transformer, trust_remote_code), trust_remote_code)
    rows, width = embedding.shape
    if wrong := [i for i in ids if not 0 <= i < rows]:
        raise VocabgraftError(
            f"row {wrong[0]} was asked of {embedding.name} in {embedding.file}; allowed: 0 to {rows - 1}; "
            "is this the tokenizer of the model?"
        )
    read = torch.empty(len(ids), width, dtype=embedding.dtype)
    as_bytes(read)[:] = read_entries(checkpoint.tensors[embedding.name], ids)
    return read


def initialiser_deviation(folder: Path, trust_remote_code: bool = False) -> float:
    """The standard deviation that a model's configuration starts weights with; 0.02 where it names none."""
    config = _load_config(transformer_folder(folder), trust_remote_code)
    return float(getattr(config.get_text_config(), "initializer_range", 0.02))


def resize_folder(
    source: Path,
    destination: Path,
    new_rows: torch.Tensor,
    tokenizer_size: int,
    pad_to_multiple_of: int | None = None,
    link: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Write the model in `source` with rows for new tokens to `destination`; the tokenizer is left to the caller.

    The tensors are those that `resize_token_embeddings` and setting the rows would give. The new rows belong to the
    tokenizer's last ids: where the source holds more rows than its tokenizer has tokens, these are used first.

    Args:
        source: a model folder with safetensors weights, in one file or several.
        destination: an existing, empty folder, empty again after an error. It gets the weights, the configurations
            and the module folders, and trusted code; no tokenizer, no model card, no manifest, no weights in other
            formats.
        new_rows: shape (new tokens, width), of the type of the stored embeddings.
        tokenizer_size: tokens of the extended tokenizer, the new ones included.
        pad_to_multiple_of: makes the number of rows a multiple of this; rows that no token uses are zeros.
        link: hard-link weight files that do not change. Such a file is one with the source's, and so is its mode,
            which `artifacts.new_folder` and DVC set; so this is only for a source that is nobody else's.
        trust_remote_code: run the model's own code and take it along.

    Raises:
        VocabgraftError: when the source is incomplete or damaged, or the rows do not fit.
    """
    folder = transformer_folder(source)
    modules = [module for module in _module_folders(source) if source / module != folder]
    config = _load_config(folder, trust_remote_code)
    checkpoint = read_checkpoint(folder)
    embedding = _embedding_of(checkpoint, config, trust_remote_code)
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


def transformer_folder(folder: Path) -> Path:
    """The folder of the transformer in a model folder: the model's own, or that of its first module.

    Raises:
        VocabgraftError: when there is no configuration in it.
    """
    modules = _module_folders(folder)
    found = folder / modules[0] if modules else folder
    if not (found / "config.json").is_file():
        raise VocabgraftError(
            f"{found} has no config.json; name a model folder whose first module is a Transformer, "
            "the only kind that is resized as files"
        )
    return found


def _module_folders(folder: Path) -> list[str]:
    """The folders that `modules.json` names, relative to `folder`; none for a plain transformers model."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    try:
        modules = [str(entry["path"]) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, KeyError) as error:
        raise VocabgraftError(f"{path} is not a list of modules with a path each ({error}); restore it") from error
    for module in modules:
        if Path(module).is_absolute() or ".." in Path(module).parts:
            raise VocabgraftError(f"{path} names {module!r}, which is outside of the model's folder; restore it")
    return modules


def _load_config(folder: Path, trust_remote_code: bool) -> "PretrainedConfig":
    from transformers import AutoConfig

    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    # Code of a model's own may fail in any way.
    told: tuple[type[Exception], ...] = (Exception,) if trust_remote_code else (OSError, ValueError, KeyError)
    try:
        return AutoConfig.from_pretrained(str(folder), **options)
    except told as error:
        raise VocabgraftError(
            f"{folder}/config.json is not a configuration that transformers knows: {error}; "
            "a model with its own code needs base.trust_remote_code, and all of that code in its folder"
        ) from error


def _embedding_of(checkpoint: Checkpoint, config: "PretrainedConfig", trust_remote_code: bool) -> EmbeddingTensor:
    model, weight = _model_without_memory(config, checkpoint.folder, trust_remote_code)
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    aliases = {name for name, tensor in named if tensor is weight}
    in_code = _names_in_code(checkpoint.tensors, model)
    found = [name for name, code in in_code.items() if code in aliases]
    if not found:
        raise _no_embeddings(checkpoint, aliases)
    stored = checkpoint.tensors[found[0]]
    _check_embedding(found[0], stored, tuple(weight.shape))
    rows, width = stored.shape
    # The base model has no other tensor with an entry for each token, whatever its shape; what it does not know at
    # all belongs to a head, and there the shape decides.
    known = {name for name, _ in named}
    alike = [
        name
        for name, tensor in checkpoint.tensors.items()
        if in_code[name] not in known and _token_axis(tensor.shape, rows) is not None
    ]
    tied = [*found[1:], *(name for name in alike if _holds_same_values(checkpoint.tensors[name], stored))]
    alike = [name for name in alike if name not in tied]
    dtype = FLOATS[stored.dtype]
    return EmbeddingTensor(found[0], stored.file, (rows, width), dtype, tuple(sorted(tied)), tuple(sorted(alike)))


def _model_without_memory(
    config: "PretrainedConfig", folder: Path, trust_remote_code: bool
) -> "tuple[PreTrainedModel, torch.Tensor]":
    """The base model and its input embeddings, on the meta device: nothing is allocated, no random number drawn."""
    from transformers import AutoModel

    told: tuple[type[Exception], ...] = (
        (Exception,) if trust_remote_code else (ValueError, ImportError, NotImplementedError, AttributeError)
    )
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
        return model, model.get_input_embeddings().weight
    except told as error:
        raise VocabgraftError(
            f"transformers cannot say where the {config.model_type!r} model in {folder} has its input embeddings "
            f"({error}); choose a base with a text encoder that sentence-transformers loads"
        ) from error


def _names_in_code(stored: Iterable[str], model: "PreTrainedModel") -> dict[str, str]:
    """For each name in a checkpoint, sorted, the name that transformers looks for in the model when it loads it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    names, code, prefix = sorted(stored), model.state_dict(), model.base_model_prefix
    plain = {name: rename_source_key(name, [], [], prefix, code)[0] for name in names}
    if code.keys() <= set(plain.values()):
        # Nothing is missing, so nothing has another name; the rules for such names take most of a second to build.
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


def _token_axis(shape: Sequence[int], rows: int) -> int | None:
    """The axis with an entry for each token; only axes of length 1 come before it, so the tensor grows at its end."""
    axis = next((axis for axis, length in enumerate(shape) if length != 1), None)
    return axis if axis is not None and shape[axis] == rows else None


def _check_embedding(name: str, stored: StoredTensor, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise VocabgraftError(
            f"{name} in {stored.file} has shape {list(stored.shape)}, by config.json it is {list(shape)}; "
            "restore the model"
        )
    if stored.dtype not in FLOATS:
        raise VocabgraftError(
            f"{name} in {stored.file} is {stored.dtype}; allowed: {', '.join(FLOATS)}; "
            "choose a base that is not quantised"
        )


def _holds_same_values(tensor: StoredTensor, embedding: StoredTensor) -> bool:
    """Whether two stored tensors are one matrix; a sample of rows tells, without reading gigabytes."""
    if (tensor.shape, tensor.dtype) != (embedding.shape, embedding.dtype):
        return False
    sample = np.unique(np.linspace(0, embedding.shape[0] - 1, 64).astype(int)).tolist()
    return np.array_equal(read_entries(tensor, sample), read_entries(embedding, sample))


def _plan_rows(
    embedding: EmbeddingTensor, new_rows: torch.Tensor, tokenizer_size: int, multiple: int | None
) -> tuple[int, int]:
    """The row of the first new token, and the number of rows that the resized model has."""
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
            f"{rows} rows; give a row for each token from id {rows} on, and no more than there are tokens"
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
        axis = _token_axis(shape, rows) or 0
        longer[name] = LongerTensor((*shape[:axis], total, *shape[axis + 1 :]), axis, rows, values[:0])
    return longer


def _copy_configurations(source: Path, destination: Path) -> None:
    destination.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.json")):
        if path.name not in {*TOKENIZER_FILES, WEIGHTS_INDEX, MANIFEST}:
            shutil.copyfile(path, destination / path.name)


def _copy_module(source: Path, destination: Path) -> None:
    # A module without settings, such as Normalize, has an empty folder, which git and packages drop.
    if not source.is_dir():
        return
    ignore = shutil.ignore_patterns(".*", "*.py", PICKLED_WEIGHTS)
    shutil.copytree(source, destination, copy_function=shutil.copyfile, ignore=ignore)
    if (pickled := source / PICKLED_WEIGHTS).is_file() and not (destination / WEIGHTS).is_file():
        from safetensors.torch import save_file

        # An artifact holds no pickle; sentence-transformers prefers these names' safetensors too.
        weights = torch.load(pickled, map_location="cpu", weights_only=True)
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, destination / WEIGHTS)


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
        # The Hub's cache holds symbolic links; the file behind one is meant.
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
