"""Code in a model's folder: its files, the references to it, and whether loading would run it."""

import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import digest_of, file_sha256, read_json, write_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# The classes that sentence-transformers loads through transformers; an auto_map may name more, which are never loaded.
LOADED = (
    "AutoConfig",
    "AutoModel",
    "AutoTokenizer",
    "AutoProcessor",
    "AutoImageProcessor",
    "AutoFeatureExtractor",
    "AutoVideoProcessor",
)
# The files whose auto_map transformers reads.
MAPPED = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
LIBRARY = "sentence_transformers."
SHOWN_FILES = 10


@dataclass(frozen=True)
class CodeReference:
    """An entry in a model's folder that names a class outside the libraries.

    Attributes:
        file: the JSON file, relative to the model's folder.
        key: of the entry in the file, such as `auto_map.AutoModel`.
        name: `MODULE.CLASS`, or `REPOSITORY--MODULE.CLASS` if the code lies in another repository.
    """

    file: str
    key: str
    name: str

    @property
    def auto_class(self) -> str | None:
        """The transformers class that would load it; None for a sentence-transformers module."""
        return self.key.removeprefix("auto_map.") if self.key.startswith("auto_map.") else None

    @property
    def repository(self) -> str:
        """The repository of the code; empty if the code lies in the folder itself."""
        return self.name.rpartition("--")[0]

    @property
    def code_file(self) -> str:
        """The file that defines the class."""
        return f"{self.name.rpartition('--')[2].rpartition('.')[0]}.py"

    def __str__(self) -> str:
        return f"{self.key} of {self.file} names {self.name}"


def named_code(folder: Path) -> list[CodeReference]:
    """Every entry in a model's folder that names code which a load may run."""
    return [*_auto_maps(folder), *_module_types(folder), *_activations(folder)]


def module_types(folder: Path) -> list[tuple[str, str, Path]]:
    """The modules of a saved model, including those in a Router: the file that names each, its class, its folder."""
    listed = folder / "modules.json"
    found = []
    for path in [*([listed] if listed.is_file() else []), *_files(folder, "router_config.json")]:
        file, content = path.relative_to(folder).as_posix(), read_json(path)
        try:
            modules = (
                [(entry["path"], entry["type"]) for entry in content] if path == listed else content["types"].items()
            )
            found += [(file, str(kind), path.parent / place) for place, kind in modules]
        except (KeyError, TypeError, AttributeError) as error:
            raise VocabgraftError(f"{path} is not a list of modules with a path and a type each; restore it") from error
    return found


def code_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of each code file in a model's folder, by its path there."""
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in _files(folder, "*.py")}


def copy_code(source: Path, destination: Path) -> None:
    """Copy a model's code files to the same paths in another folder.

    The copies that saving makes are not enough: sentence-transformers puts a module's file beside the module's weights,
    but looks for it at the top.
    """
    for name in code_hashes(source):
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, destination / name)


def keep_code(model: "SentenceTransformer", source: Path) -> None:
    """Make every later save of the model, such as MLflow's, include the code of its folder (changes the model)."""
    save = model.save

    def save_with_code(path: str, *arguments: Any, **options: Any) -> None:
        save(path, *arguments, **options)
        copy_code(source, Path(path))

    model.save = save_with_code


def drop_auto_maps(folder: Path) -> None:
    """Remove every auto_map from a model's folder (changed in place).

    A model that loads without its code must not name it: MLflow's loader would run or download it.
    """
    for path in _mapped_files(folder):
        content = read_json(path)
        if isinstance(content, dict) and "auto_map" in content:
            write_json(path, {key: value for key, value in content.items() if key != "auto_map"})


def describe_code(code: Mapping[str, str] | None) -> str:
    """The base's own code that ran, for tags and pages; None if no code was allowed to run."""
    if code is None:
        return "off"
    if not code:
        return "on; the base has no code of its own"
    more = f" and {len(code) - SHOWN_FILES} more" if len(code) > SHOWN_FILES else ""
    return f"on: {', '.join(sorted(code)[:SHOWN_FILES])}{more} (SHA-256 {digest_of(dict(code))})"


def check_code(folder: Path, trust_remote_code: bool, known: Collection[str] = ()) -> None:
    """Refuse a model before anything of it runs: with code that may not run, or with missing code.

    Args:
        folder: of the model.
        trust_remote_code: whether its code may run.
        known: module classes that are available without its code.

    Raises:
        VocabgraftError: naming the classes and the files.
    """
    references = [reference for reference in named_code(folder) if reference.name not in known]
    if trust_remote_code:
        _require_all_here(folder, references)
    elif needed := [reference for reference in references if not _does_without(folder, reference)]:
        named = "; ".join(f"{reference}{_files_named(folder, reference)}" for reference in needed)
        raise VocabgraftError(
            f"{folder} does not load without its own code, and none of it was run: {named}. Read those files; "
            "if you trust them, set base.trust_remote_code to true in params.yaml, which applies to the stages of a "
            "run (the base and models made from it) and to no other command. Otherwise choose another model"
        )


def _require_all_here(folder: Path, references: list[CodeReference]) -> None:
    for reference in references:
        if reference.repository:
            raise VocabgraftError(
                f"{reference}, code of another repository, which base.revision does not pin and base.json cannot "
                f"identify. Download the model to a folder of your own, put {reference.code_file} of "
                f"{reference.repository} (and what it imports) beside its config.json, remove "
                f"'{reference.repository}--' from {reference.key}, and name that folder as base.model"
            )
        if reference.auto_class and not (folder / reference.code_file).is_file():
            raise VocabgraftError(
                f"{reference}, but {folder} has no {reference.code_file}; restore the file, or set "
                "base.trust_remote_code to false if transformers knows the architecture without it"
            )


def _does_without(folder: Path, reference: CodeReference) -> bool:
    """Whether the libraries have a class of their own for it, which they then use."""
    if reference.auto_class is None:
        return False
    import transformers

    place = str((folder / reference.file).parent)
    options = {"local_files_only": True, "trust_remote_code": False}
    try:
        if reference.auto_class == "AutoModel":
            return type(transformers.AutoConfig.from_pretrained(place, **options)) in transformers.MODEL_MAPPING
        getattr(transformers, reference.auto_class).from_pretrained(place, **options)
    except (OSError, ValueError, KeyError, ImportError):
        return False
    return True


def _files_named(folder: Path, reference: CodeReference) -> str:
    if reference.repository:
        return f" (code of {reference.repository})"
    file = folder / reference.code_file
    if not file.is_file():
        return ""
    from transformers.dynamic_module_utils import get_relative_import_files

    try:
        imported = sorted({Path(name).name for name in get_relative_import_files(file)})
    except OSError:
        imported = []
    return f" ({file.name}{', which imports ' if imported else ''}{', '.join(imported)})"


def _auto_maps(folder: Path) -> Iterator[CodeReference]:
    for path in _mapped_files(folder):
        content = read_json(path)
        mapped = content.get("auto_map") if isinstance(content, dict) else None
        # In an old tokenizer it is a list: the slow class and the fast one.
        classes = mapped if isinstance(mapped, dict) else {"AutoTokenizer": mapped or []}
        for auto_class, named in classes.items():
            if auto_class in LOADED:
                names = [named] if isinstance(named, str) else [name for name in named or () if name]
                file = path.relative_to(folder).as_posix()
                yield from (CodeReference(file, f"auto_map.{auto_class}", str(name)) for name in names)


def _module_types(folder: Path) -> Iterator[CodeReference]:
    for file, kind, _ in module_types(folder):
        if not kind.startswith(LIBRARY):
            yield CodeReference(file, "type", kind)


def _activations(folder: Path) -> Iterator[CodeReference]:
    """Activations of dense layers; without trust, the library uses another one than the model was trained with."""
    for _, kind, place in module_types(folder):
        config = place / "config.json"
        if kind.startswith(LIBRARY) and kind.endswith(".Dense") and config.is_file():
            name = str(read_json(config).get("activation_function") or "torch.")
            if not name.startswith("torch."):
                yield CodeReference(f"{place.name}/{config.name}", "activation_function", name)


def _mapped_files(folder: Path) -> list[Path]:
    return [path for name in MAPPED for path in _files(folder, name)]


def _files(folder: Path, pattern: str) -> list[Path]:
    found = ((path, path.relative_to(folder).parts) for path in sorted(folder.rglob(pattern)))
    return [path for path, parts in found if path.is_file() and not any(part.startswith(".") for part in parts)]
