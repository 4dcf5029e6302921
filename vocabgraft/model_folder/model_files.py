"""Finds, hashes and checks the files of a model folder that a load reads, before anything is loaded."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.safetensors_header import read_header
from vocabgraft.storage.artifacts import MANIFEST, digest_of, file_sha256

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# Weights that torch or peft unpickles if the safetensors file of the same weights is missing.
PICKLES = {
    "pytorch_model.bin": (WEIGHTS, WEIGHTS_INDEX),
    "pytorch_model.bin.index.json": (WEIGHTS, WEIGHTS_INDEX),
    "adapter_model.bin": ("adapter_model.safetensors",),
}
# Configurations, prompts, tokenizers, weights. Code is hashed by `remote_code.code_hashes`.
READ = frozenset((".json", ".txt", ".model", ".jinja", ".safetensors"))
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# A larger JSON file is a tokenizer's, whose own reader reports errors.
LARGEST_CONFIGURATION = 2**20
RESAVE = "SentenceTransformer(FOLDER).save(NEW_FOLDER, safe_serialization=True)"


def transformer_folder(folder: Path) -> Path:
    """The folder of the transformer in a model folder: the model folder itself, or that of its first module.

    Raises:
        VocabgraftError: when it has no configuration.
    """
    modules = module_folders(folder)
    found = folder / modules[0] if modules else folder
    if not (found / "config.json").is_file():
        raise VocabgraftError(
            f"{found} has no config.json; name a model folder whose first module is a Transformer, "
            "the only kind that is resized as files"
        )
    return found


def module_folders(folder: Path) -> list[str]:
    """The folders that `modules.json` names, relative to `folder`; empty for a plain transformers model."""
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


def weight_files(folder: Path) -> list[Path]:
    """The weight files of the transformer that a load reads: `model.safetensors`, or the shards of its index.

    Raises:
        VocabgraftError: if there are none, or the index is damaged.
    """
    for place in _transformer_folders(folder):
        if (path := place / WEIGHTS).is_file():
            return [path]
        if (path := place / WEIGHTS_INDEX).is_file():
            return _shards(path)
    pickled = [place / name for place in _transformer_folders(folder) for name in PICKLES if (place / name).is_file()]
    if pickled:
        raise _pickle_refused(pickled[0])
    raise VocabgraftError(
        f"no safetensors file of weights ({WEIGHTS} or {WEIGHTS_INDEX}) in {folder}; only safetensors are loaded"
    )


def weights_sha256(folder: Path, hashes: Mapping[str, str]) -> str:
    """SHA-256 of the transformer's weights; for several files, a digest of their names and hashes.

    Args:
        folder: of the model.
        hashes: from `read_file_hashes`.
    """
    found = {path.name: hashes[path.relative_to(folder).as_posix()] for path in weight_files(folder)}
    return next(iter(found.values())) if len(found) == 1 else digest_of(found)


def read_file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file that a load may read, by its path in the folder: weights, configurations, tokenizer."""
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files_read(folder)}


def files_read(folder: Path) -> list[Path]:
    """The files that a load may read: the folder's own, and those of its modules with all their subfolders."""
    modules = [module for module in _module_folders(folder) if module != folder]
    found = {path for place in (folder, *_transformer_folders(folder)) for path in place.glob("*") if path.is_file()}
    for module in modules:
        found |= {path for path in module.rglob("*") if path.is_file()}
    return sorted(path for path in found if _may_be_read(path.relative_to(folder)))


def _may_be_read(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix in READ and path.name != MANIFEST and not hidden


def check_files(folder: Path) -> None:
    """Refuse a folder whose files are incomplete or would be unpickled; only headers are read.

    Raises:
        VocabgraftError: naming the file, what is wrong and what to do.
    """
    for path in files_read(folder):
        with path.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise VocabgraftError(
                    f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in the repository that it "
                    "came from, and copy the file again"
                )
        if path.suffix == ".safetensors":
            read_header(path)
        elif path.suffix == ".json" and path.stat().st_size <= LARGEST_CONFIGURATION:
            _require_json(path)
    for path in _pickles(folder):
        raise _pickle_refused(path)


def _require_json(path: Path) -> None:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise VocabgraftError(f"{path} is damaged or incomplete ({error}); restore the model") from error


def _pickles(folder: Path) -> Iterator[Path]:
    """Pickled weights that a load would read because no safetensors files are beside them."""
    nested = [path for module in _module_folders(folder) if module != folder for path in _folders_inside(module)]
    for place in dict.fromkeys([*_transformer_folders(folder), *nested]):
        for name, instead in PICKLES.items():
            if (place / name).is_file() and not any((place / other).is_file() for other in instead):
                yield place / name


def _folders_inside(folder: Path) -> list[Path]:
    return [folder, *(path for path in sorted(folder.rglob("*")) if path.is_dir())] if folder.is_dir() else []


def _pickle_refused(path: Path) -> VocabgraftError:
    return VocabgraftError(
        f"{path} is a pickle, which runs code when it is read, and its folder has no safetensors file with the same "
        f"weights; only safetensors are loaded. If you trust the model, save it once in safetensors: {RESAVE}"
    )


def _transformer_folders(folder: Path) -> list[Path]:
    """The folders that may hold the transformer's files: the model folder itself, or that of its first module."""
    return list(dict.fromkeys([*_module_folders(folder)[:1], folder]))


def _module_folders(folder: Path) -> list[Path]:
    return [folder / module for module in module_folders(folder)]


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VocabgraftError(f"{index} has no weight_map of tensors to files ({error}); restore the model") from error
    if absent := [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]:
        raise VocabgraftError(f"{index} names the file {absent[0]!r}, which is not beside it; restore the model")
    return [index.parent / name for name in names]
