"""Finds, identifies and loads the base model; its own code runs only if it is trusted."""

import importlib
import importlib.util
import inspect
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vocabgraft.config.stages import BaseParams, PromptParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.model_files import (
    check_files,
    module_folders,
    read_file_hashes,
    transformer_folder,
    weight_files,
    weights_sha256,
)
from vocabgraft.model_folder.remote_code import LIBRARY, check_code, code_hashes, module_types
from vocabgraft.models.gate import gate_class
from vocabgraft.storage.artifacts import file_sha256, read_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch.nn import Module

PACKAGE_PREFIX = "package:"
REGISTRY_PREFIX = "models:/"


@dataclass(frozen=True)
class BaseIdentity:
    """The identity of a base model, independent of its location on this machine.

    Attributes:
        model: never a floating alias: a registry alias is resolved to its version.
        sha256: of the transformer's weights.
        tokenizer_sha256: of `tokenizer.json`.
        code: the SHA-256 of each code file in its folder; None if no code may run (`base.trust_remote_code`).
        files: the SHA-256 of every other file that a load may read: weights, configurations, prompts, tokenizer.
    """

    model: str
    revision: str | None
    sha256: str
    tokenizer_sha256: str
    code: Mapping[str, str] | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The identity as a mapping for `base.json`."""
        return asdict(self)


def locate_base(
    model: str, revision: str | None = None, trust_remote_code: bool = False, setting: str = "base.model"
) -> Path:
    """The local folder of a model given as `package:MODULE/FOLDER`, a folder, or a Hub id.

    Args:
        model: its location.
        revision: on the Hub; None for the newest.
        trust_remote_code: whether to download its code files from the Hub too.
        setting: the setting or option that names the model, for error messages.

    Raises:
        VocabgraftError: when it is missing or the Hub cannot be reached.
    """
    if model.startswith(PACKAGE_PREFIX):
        return _locate_in_package(model, setting)
    if model.startswith((".", "/", "~")) or Path(model).is_dir():
        return _checked_folder(Path(model).expanduser(), model, setting)
    found = _download(model, revision, trust_remote_code, setting)
    assert found is not None, "what was downloaded is there"
    return found


def identify_base(folder: Path, params: BaseParams, resolved: str) -> BaseIdentity:
    """Hash the files and the code that a load may use; refuse weights that differ from `params.sha256`."""
    files = read_file_hashes(folder)
    seen = weights_sha256(folder, files)
    if params.sha256 is not None and seen != params.sha256:
        raise VocabgraftError(
            f"base.sha256 is {params.sha256}, but the weights of {params.model} have {seen}; "
            "if you want this model, put its value into params.yaml, otherwise restore the model"
        )
    code = code_hashes(folder) if params.trust_remote_code else None
    return BaseIdentity(resolved, params.revision, seen, file_sha256(tokenizer_file(folder)), code, files)


def tokenizer_file(folder: Path) -> Path:
    """The base's `tokenizer.json`, which every fast tokenizer has."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise VocabgraftError(
            f"{folder} has no tokenizer.json; save the model once with current transformers (a fast tokenizer)"
        )
    return path


def load_model(
    folder: Path,
    device: str | None = None,
    own_modules: bool = False,
    trust_remote_code: bool = False,
    float32: bool = False,
) -> "SentenceTransformer":
    """Load a model folder from disk, in evaluation mode; nothing is downloaded.

    Args:
        folder: a saved sentence-transformers model.
        device: to load it onto; by default the fastest that torch finds.
        own_modules: allow the folder to name classes of this project's user (`resize_base.modules`), imported from the
            working folder. Only for folders that the project made itself, never for a base.
        trust_remote_code: run code in the folder. For the base and models made from it, if `base.trust_remote_code` is
            true.
        float32: load the weights in float32; by default in their stored type.

    Raises:
        VocabgraftError: when it does not load, or has code that may not run; then none of it was run.
    """
    from sentence_transformers import SentenceTransformer

    if own_modules and not trust_remote_code:
        _require_no_edit(folder)
    check_files(folder)
    classes = gate_class(folder) | (own_module_classes(folder) if own_modules else {})
    check_code(folder, trust_remote_code, classes)
    # The library would load a pickle if there are no safetensors.
    weights: dict[str, Any] = {"use_safetensors": True, **({"dtype": "float32"} if float32 else {})}
    options = {"local_files_only": True, "trust_remote_code": trust_remote_code, "model_kwargs": weights}
    options["device"] = device
    # A model's own code may fail in any way, most often because a package that it needs is not installed.
    expected: tuple[type[Exception], ...] = (Exception,) if trust_remote_code else (OSError, ValueError)
    try:
        if classes:
            # The public way to load own classes, trust_remote_code, would also run code in the folder.
            model = SentenceTransformer._load_with_module_classes(str(folder), classes, **options).eval()
        else:
            model = SentenceTransformer(str(folder), **options).eval()
    except expected as error:
        raise VocabgraftError(f"{folder} does not load as a sentence-transformers model: {error}") from error
    _leave_out_absent_weights(model, folder)
    return model


def _leave_out_absent_weights(model: "SentenceTransformer", folder: Path) -> None:
    from vocabgraft.models.absent_weights import leave_out_absent_weights

    leave_out_absent_weights(model, folder / next(iter(module_folders(folder)), ""))


def check_weights(folder: Path, trust_remote_code: bool = False) -> None:
    """Refuse a base whose file lacks weights that embeddings depend on.

    The base is loaded, which takes seconds, only if its weights were saved by a class other than a plain encoder, such
    as a masked language model, so that the encoder's weights may be incomplete. Every other load makes the same check.

    Raises:
        VocabgraftError: naming the weights.
    """
    saved_by = read_json(transformer_folder(folder) / "config.json").get("architectures") or []
    if not all(str(name).endswith("Model") for name in saved_by):
        load_model(folder, device="cpu", trust_remote_code=trust_remote_code)


def own_module_types(folder: Path) -> list[str]:
    """Dotted names of the project's own classes that a saved model needs.

    They are the classes for which neither sentence-transformers nor the folder has code, and those whose file in the
    folder is a copy of the project's own (`carry_own_code`).
    """
    names = {kind for _, kind, _ in module_types(folder) if not kind.startswith(LIBRARY)}
    return sorted(name for name in names if not _code_file(folder, name).is_file() or _is_copy(folder, name))


def carried_types(folder: Path) -> list[str]:
    """The own classes whose file lies in the folder, so that the model loads anywhere with `trust_remote_code=True`."""
    return [name for name in own_module_types(folder) if _code_file(folder, name).is_file()]


def carry_own_code(folder: Path) -> None:
    """Copy the files of own classes into a saved model's folder, where loaders with `trust_remote_code=True` look.

    Loaders look for one file at the top of the folder, so a class in a package is not copied. Neither is a class inside
    a Router, which finds classes only by their import path.
    """
    routed = {kind for file, kind, _ in module_types(folder) if file != "modules.json"}
    for name in set(own_module_types(folder)) - routed:
        if (source := _own_file(name)) is not None:
            shutil.copyfile(source, _code_file(folder, name))


def _code_file(folder: Path, name: str) -> Path:
    return folder / f"{name.rpartition('.')[0]}.py"


def _own_file(name: str) -> Path | None:
    """The file of an own class that is importable here; None if it is not importable or lies in a package."""
    module = name.rpartition(".")[0]
    if not module.isidentifier():
        return None
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(found.origin) if found is not None and found.has_location and found.origin else None


def _is_copy(folder: Path, name: str) -> bool:
    source = _own_file(name)
    return source is not None and file_sha256(source) == file_sha256(_code_file(folder, name))


def edited_code(folder: Path) -> list[str]:
    """Names of own classes' files in the folder that differ from the project's, because these were edited since."""
    names = {kind for _, kind, _ in module_types(folder) if not kind.startswith(LIBRARY)}
    there = {name for name in names if _own_file(name) is not None and _code_file(folder, name).is_file()}
    return sorted({_code_file(folder, name).name for name in there if not _is_copy(folder, name)})


def _require_no_edit(folder: Path) -> None:
    if edited := edited_code(folder):
        raise VocabgraftError(
            f"{folder} was made with another version of {', '.join(edited)} than the project has now; run again from "
            "resize_base (`dvc repro --force --downstream resize_base`), or restore the file"
        )


def own_module_classes(folder: Path) -> dict[str, type["Module"]]:
    """The classes of `own_module_types` by name, imported."""
    return {name: import_own_module(name) for name in own_module_types(folder)}


def import_own_module(name: str) -> type["Module"]:
    """The module class `MODULE.CLASS`, importable from the working folder.

    Raises:
        VocabgraftError: when it does not import or is not a module class.
    """
    from torch import nn

    place, _, class_name = name.rpartition(".")
    remedy = "it must be importable from the project's root, where the stages run"
    try:
        found = getattr(importlib.import_module(place), class_name, None)
    except Exception as error:
        raise VocabgraftError(
            f"the own module {name!r} does not import ({type(error).__name__}: {error}); {remedy}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        seen = "nothing" if found is None else repr(found)
        raise VocabgraftError(f"{name!r} is {seen}, not a class of torch.nn.Module; {remedy}")
    if lacking := _lacking(found):
        raise VocabgraftError(
            f"{name!r} is not a complete layer of sentence-transformers; it lacks {'; '.join(lacking)}. "
            "docs/pipeline.md has an example (Own layers)"
        )
    return found


def _lacking(found: type["Module"]) -> list[str]:
    """What a torch class lacks to be a layer of sentence-transformers; empty if nothing."""
    from torch import nn

    absent = [
        f"a method {name}"
        for name in ("forward", "save", "load")
        if getattr(found, name, None) in (None, nn.Module.forward)
    ]
    if not absent:
        return []
    module = "sentence_transformers.sentence_transformer.modules.Module"
    if not any(f"{base.__module__}".startswith("sentence_transformers.") for base in found.__mro__):
        absent.append(f"the base class {module}, which brings save_config, load_config and load_torch_weights")
    taken = inspect.signature(found).parameters.values()
    named = [entry.name for entry in taken if entry.kind not in (entry.VAR_POSITIONAL, entry.VAR_KEYWORD)]
    arguments = [name for name in named if name not in getattr(found, "config_keys", ())]
    if arguments:
        absent.append(f"{', '.join(arguments)} in config_keys, so that its arguments are saved")
    if "forward" in found.__dict__ and next(iter(_parameters(found.forward)), "features") != "features":
        absent.append(
            "a forward that takes and returns the mapping `features`, with features['token_embeddings'] in it"
        )
    return absent


def _parameters(function: Any) -> list[str]:
    """The parameter names of a method, without the first."""
    return list(inspect.signature(function).parameters)[1:]


def prompts_of(stored: Mapping[str, str], prompts: PromptParams) -> dict[str, str]:
    """The base's prompts, overridden by those of `params.yaml`."""
    given = {
        name: text for name, text in (("query", prompts.query), ("document", prompts.document)) if text is not None
    }
    return {**stored, **given}


def look_up_base(model: str, revision: str | None = None, trust_remote_code: bool = False) -> Path | None:
    """Like `locate_base`, but without asking the Hub; None for a Hub id that is not on this machine yet.

    Raises:
        VocabgraftError: for a name that is neither on this machine nor a Hub id.
    """
    if model.startswith((PACKAGE_PREFIX, ".", "/", "~")) or Path(model).is_dir():
        return locate_base(model, revision, trust_remote_code)
    return _download(model, revision, trust_remote_code, "base.model", only_cached=True)


def _locate_in_package(model: str, setting: str) -> Path:
    module, _, inside = model.removeprefix(PACKAGE_PREFIX).partition("/")
    found = importlib.util.find_spec(module) if module.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise VocabgraftError(
            f"{setting} is {model!r}, but no package {module!r} is installed; install it, "
            "or name a Hub id, a folder or models:/NAME@ALIAS"
        )
    return _checked_folder(Path(next(iter(found.submodule_search_locations))) / inside, model, setting)


def _checked_folder(folder: Path, model: str, setting: str) -> Path:
    if not folder.is_dir():
        raise VocabgraftError(f"{setting} is {model!r}, but that folder is not there; correct the name")
    try:
        weight_files(folder)
    except VocabgraftError as error:
        raise VocabgraftError(f"{setting} is {model!r}: {error}") from error
    return folder


def _download(
    model: str, revision: str | None, trust_remote_code: bool, setting: str, only_cached: bool = False
) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        # Weights in other formats are never read, so they are not downloaded either.
        wanted = ["*.json", "*.safetensors", "*.txt", "*.model", *(["*.py"] if trust_remote_code else [])]
        found = snapshot_download(model, revision=revision, allow_patterns=wanted, local_files_only=only_cached)
        folder = Path(found)
    except HFValidationError as error:
        raise VocabgraftError(f"{setting} is {model!r}, which is neither a folder nor a Hub id: {error}") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if only_cached:
            return None
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise VocabgraftError(
            f"{setting} is {model!r} at revision {revision or 'main'}: it is not a local folder and the Hub did not "
            f"return it{offline}; check the name, the network or HF_TOKEN, or download it once and name the folder"
        ) from error
    return _checked_folder(folder, model, setting)
