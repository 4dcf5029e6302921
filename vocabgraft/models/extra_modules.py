"""Custom layers before or after the pooling: from sentence-transformers, or the user's own.

They keep the names `custom_0`, `custom_1`, ... in every folder saved later, so training, merging and checks find them
by name.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vocabgraft.config.stages import ModuleParams, Place
from vocabgraft.errors import VocabgraftError, problems_of
from vocabgraft.models.base import load_model, own_module_classes
from vocabgraft.models.module_layers import (
    FEATURE,
    build_module,
    checked_class,
    label_of,
    require_arguments,
    shown_values,
    width_after,
)
from vocabgraft.storage.artifacts import read_json, write_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

NAME = re.compile(r"^custom_\d+$")
PROBES = ("a probe", "a longer probe, so that the shorter one is padded")


def add_modules(folder: Path, modules: Sequence[ModuleParams], seed: int, trust_remote_code: bool = False) -> None:
    """Insert modules into a saved model (its folder is changed in place); loads nothing if there are none.

    Raises:
        VocabgraftError: naming the module, the value seen and what is allowed.
    """
    if not modules:
        return
    # Loading also draws random weights before it reads the stored ones.
    with torch.random.fork_rng(devices=[]):
        model = load_model(folder, device="cpu", trust_remote_code=trust_remote_code)
        insert_modules(model, modules, seed)
    _write(model, folder)


def insert_modules(model: "SentenceTransformer", modules: Sequence[ModuleParams], seed: int) -> None:
    """Build modules and insert them into the model (changed in place), in the order of the list.

    Modules for `after_pooling` come right after the pooling, so before a Normalize of the base. Random weights depend
    only on `seed` and the index in the list; the global generators are not changed.

    Raises:
        VocabgraftError: naming the module, the value seen and what is allowed.
    """
    children = dict(model.named_children())
    pooling = _pooling_name(children)
    before: dict[str, torch.nn.Module] = {}
    after: dict[str, torch.nn.Module] = {}
    width = int(model[0].get_embedding_dimension())
    for number, params in _of_place(modules, "before_pooling"):
        if params.type == "WeightedLayerPooling" and before:
            raise VocabgraftError(
                f"{label_of(number)} is a WeightedLayerPooling, which would undo the modules before it; "
                "put it first in the list"
            )
        before[f"custom_{number}"] = build_module(model, params, number, width, seed)
        width = width_after(before[f"custom_{number}"], width)
    _set_pooling_width(children[pooling], width)
    width = int(children[pooling].get_embedding_dimension())
    for number, params in _of_place(modules, "after_pooling"):
        after[f"custom_{number}"] = build_module(model, params, number, width, seed)
        width = width_after(after[f"custom_{number}"], width)
    names = list(children)
    cut = names.index(pooling)
    model._modules = {
        **{name: children[name] for name in names[:cut]},
        **before,
        pooling: children[pooling],
        **after,
        **{name: children[name] for name in names[cut + 1 :]},
    }
    # Loading gives every module the type of the transformer's weights; modules of another type would not work together.
    for module in (*before.values(), *after.values()):
        module.to(model.dtype)
    model.eval()
    labels = {f"custom_{number}": f"{label_of(number)} ({params.type})" for number, params in enumerate(modules)}
    _probe(model, labels)
    for name, label in labels.items():
        _require_round_trip(model.get_submodule(name), label)


def check_modules(modules: Sequence[ModuleParams]) -> list[str]:
    """Errors in modules that are found without a model, one per line: classes, positions and arguments."""
    return problems_of(partial(_check_module, params, label_of(number)) for number, params in enumerate(modules))


def _check_module(params: ModuleParams, label: str) -> None:
    from sentence_transformers.sentence_transformer.modules import Router

    if params.type != "Router":
        checked_class(params, params.place, label)
        return
    require_arguments(Router, params, label)
    for route, layers in params.routes.items():
        for number, layer in enumerate(layers):
            checked_class(layer, params.place, f"{label}.routes.{route}.{number}")


def custom_modules(model: "SentenceTransformer") -> dict[str, torch.nn.Module]:
    """The model's custom modules by name."""
    return {name: module for name, module in model.named_children() if NAME.match(name)}


def custom_parameters(model: "SentenceTransformer") -> dict[str, torch.nn.Parameter]:
    """The parameters of the custom modules, by their names in the model."""
    return {
        f"{name}.{inner}": parameter
        for name, module in custom_modules(model).items()
        for inner, parameter in module.named_parameters()
    }


def custom_weight(name: str) -> bool:
    """Whether a name in a model's `state_dict` belongs to a custom module."""
    return NAME.match(name.partition(".")[0]) is not None


def has_heads(model: "SentenceTransformer") -> bool:
    """Whether a Router sends queries and documents through different layers."""
    from sentence_transformers.sentence_transformer.modules import Router

    return any(isinstance(module, Router) for module in model.children())


def load_custom_modules(model: "SentenceTransformer", folder: Path) -> None:
    """Load the trained custom modules saved in `folder` into the model (changed in place).

    Raises:
        VocabgraftError: when the two do not have the same custom modules.
    """
    present = custom_modules(model)
    if not present:
        return
    entries = {entry["name"]: entry for entry in read_json(folder / "modules.json") if NAME.match(entry["name"])}
    if set(entries) != set(present):
        raise VocabgraftError(
            f"{folder} has the custom modules {', '.join(sorted(entries)) or 'none'}, but the resized base has "
            f"{', '.join(sorted(present))}; they come from different runs, so run train_adapter again"
        )
    for name, module in present.items():
        loaded = _load_like(module, folder, entries[name]["path"])
        model._modules[name] = loaded.to(device=model.device, dtype=model.dtype).eval()


def _of_place(modules: Sequence[ModuleParams], place: Place) -> Iterator[tuple[int, ModuleParams]]:
    return ((number, params) for number, params in enumerate(modules) if params.place == place)


def _pooling_name(children: Mapping[str, torch.nn.Module]) -> str:
    from sentence_transformers.sentence_transformer.modules import Pooling

    for name, module in children.items():
        if isinstance(module, Pooling):
            return name
    kinds = ", ".join(type(module).__name__ for module in children.values())
    raise VocabgraftError(f"resize_base.modules needs a base with a Pooling; it has {kinds}")


def _set_pooling_width(pooling: Any, width: int) -> None:
    ratio = pooling.pooling_output_dimension // pooling.embedding_dimension
    pooling.embedding_dimension = width
    pooling.pooling_output_dimension = ratio * width


def _probe(model: "SentenceTransformer", labels: Mapping[str, str]) -> None:
    # The routes of a Router are tried one after the other.
    for task in ("query", "document") if has_heads(model) else (None,):
        features = model.preprocess(list(PROBES))
        for name, module in model.named_children():
            label = labels.get(name, f"the base's {type(module).__name__}")
            features = _step(module, features, task, label, is_custom=name in labels)
        width, expected = features["sentence_embedding"].shape[-1], model.get_embedding_dimension()
        if width != expected:
            raise VocabgraftError(
                f"the model declares embeddings of width {expected}, but they have width {width}; the last custom "
                "module that changes the width needs a method get_embedding_dimension"
            )


def _step(
    module: torch.nn.Module, features: dict[str, Any], task: str | None, label: str, is_custom: bool
) -> dict[str, Any]:
    seen = _shapes(features)
    try:
        with torch.no_grad():
            options = {"task": task} if "task" in getattr(module, "forward_kwargs", ()) else {}
            after: dict[str, Any] = module(dict(features), **options)
        now = _shapes(after)
    except Exception as error:
        raise VocabgraftError(
            f"{label} does not fit its position: it gets {shown_values(seen)}, and {type(error).__name__}: {error}"
        ) from error
    if is_custom and any(now.get(name, ())[:-1] != shape[:-1] for name, shape in seen.items()):
        raise VocabgraftError(
            f"{label} turns {shown_values(seen)} into {shown_values(now)}; only the last dimension may change"
        )
    for name in now:
        if not bool(after[name].isfinite().all()):
            raise VocabgraftError(f"{label} makes {name} that is not finite; change its initialization")
    return after


def _shapes(features: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(features[name].shape) for name in FEATURE.values() if name in features}


def _require_round_trip(module: torch.nn.Module, label: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "module"
        folder.mkdir()
        _save(module, folder, label)
        try:
            again = _load_like(module, Path(scratch), "module").state_dict()
        except Exception as error:
            raise VocabgraftError(f"{label} was saved and does not load: {type(error).__name__}: {error}") from error
    state = module.state_dict()
    if set(state) != set(again) or not all(torch.equal(tensor, again[name]) for name, tensor in state.items()):
        raise VocabgraftError(
            f"{label} does not load what it saved, so its training would be lost; let save call save_config and "
            "save_torch_weights, and load call load_config and load_torch_weights"
        )


def _save(module: Any, folder: Path, label: str) -> None:
    try:
        module.save(str(folder), safe_serialization=True)
    except Exception as error:
        raise VocabgraftError(f"{label} cannot be saved: {type(error).__name__}: {error}") from error
    if pickled := sorted(path.name for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")):
        raise VocabgraftError(
            f"{label} saves {', '.join(pickled)}; only safetensors are kept, so use save_torch_weights"
        )


def _load_like(module: Any, folder: Path, inside: str) -> torch.nn.Module:
    from sentence_transformers.sentence_transformer.modules import Router

    # A Router finds its layers' classes by their dotted names, and refuses names outside the library.
    known = {"module_classes": own_module_classes(folder)} if isinstance(module, Router) else {}
    with torch.random.fork_rng(devices=[]):
        loaded: torch.nn.Module = type(module).load(str(folder), subfolder=inside, local_files_only=True, **known)
    return loaded


def _write(model: "SentenceTransformer", folder: Path) -> None:
    entries = {entry["name"]: entry for entry in read_json(folder / "modules.json")}
    written = []
    for place, (name, module) in enumerate(model.named_children()):
        if name in entries:
            entry = entries[name]
            if type(module).__name__ == "Pooling":
                module.save(str(folder / entry["path"]))
        else:
            kind = type(module)
            entry = {"name": name, "path": f"{name}_{kind.__name__}", "type": f"{kind.__module__}.{kind.__name__}"}
            (folder / entry["path"]).mkdir()
            _save(module, folder / entry["path"], name)
        written.append({**entry, "idx": place})
    write_json(folder / "modules.json", written)
    config = read_json(folder / "config.json")
    if model[0].auto_model.config.output_hidden_states and not config.get("output_hidden_states"):
        write_json(folder / "config.json", {**config, "output_hidden_states": True})
