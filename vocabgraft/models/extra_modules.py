"""Custom layers: modules of sentence-transformers, or own ones, put before or after the pooling of a resized base.

They keep the names `custom_0`, `custom_1`, ... in every folder that is saved later, so training, merging and checks
find them without being told of them.
"""

import inspect
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vocabgraft.config.stages import LayerParams, ModuleParams, Place
from vocabgraft.errors import VocabgraftError, problems_of
from vocabgraft.models.base import import_own_module, load_model, own_module_classes
from vocabgraft.storage.artifacts import read_json, write_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

NAME = re.compile(r"^custom_\d+$")
STOCK = ("CNN", "Dense", "Dropout", "LayerNorm", "Normalize", "Router", "WeightedLayerPooling")
# Stock classes that would be accepted and then not work.
UNUSABLE = {
    "LSTM": "it reads the length of each text as `sentence_lengths`, which a Transformer does not give",
    "WordWeights": "sentence-transformers saves its weights and does not load them again",
}
# These read and write one kind of embedding, whatever their arguments.
FIXED_PLACE: dict[str, Place] = {
    "CNN": "before_pooling",
    "WeightedLayerPooling": "before_pooling",
    "LayerNorm": "after_pooling",
    "Dropout": "after_pooling",
}
FEATURE: dict[Place, str] = {"before_pooling": "token_embeddings", "after_pooling": "sentence_embedding"}
# Tensors, or things that YAML cannot say.
HIDDEN_ARGUMENTS = {
    "Dense": ("init_weight", "init_bias"),
    "WeightedLayerPooling": ("layer_weights",),
    "Router": ("sub_modules", "route_mappings", "allow_empty_key"),
}
PROBES = ("a probe", "a longer probe, so that the shorter one is padded")


def add_modules(folder: Path, modules: Sequence[ModuleParams], seed: int, trust_remote_code: bool = False) -> None:
    """Put modules into a saved model (its folder is changed in place); nothing is loaded where there are none.

    Raises:
        VocabgraftError: naming the module, what was seen and what is allowed.
    """
    if not modules:
        return
    # Loading draws weights, too, before it reads them.
    with torch.random.fork_rng(devices=[]):
        model = load_model(folder, device="cpu", trust_remote_code=trust_remote_code)
        insert_modules(model, modules, seed)
    _write(model, folder)


def insert_modules(model: "SentenceTransformer", modules: Sequence[ModuleParams], seed: int) -> None:
    """Build modules and put them into the model (changed in place), in the order of the list.

    Those of `after_pooling` come right after the pooling, so before a Normalize of the base. Random weights come from
    `seed` and the place in the list alone; the global generators are left as they were.

    Raises:
        VocabgraftError: naming the module, what was seen and what is allowed.
    """
    children = dict(model.named_children())
    pooling = _pooling_name(children)
    before: dict[str, torch.nn.Module] = {}
    after: dict[str, torch.nn.Module] = {}
    width = int(model[0].get_embedding_dimension())
    for number, params in _of_place(modules, "before_pooling"):
        if params.type == "WeightedLayerPooling" and before:
            raise VocabgraftError(
                f"{_label(number)} is a WeightedLayerPooling, which would undo those before it; "
                "put it first in the list"
            )
        before[f"custom_{number}"] = _build(model, params, number, width, seed)
        width = _width_after(before[f"custom_{number}"], width)
    _set_pooling_width(children[pooling], width)
    width = int(children[pooling].get_embedding_dimension())
    for number, params in _of_place(modules, "after_pooling"):
        after[f"custom_{number}"] = _build(model, params, number, width, seed)
        width = _width_after(after[f"custom_{number}"], width)
    names = list(children)
    cut = names.index(pooling)
    model._modules = {
        **{name: children[name] for name in names[:cut]},
        **before,
        pooling: children[pooling],
        **after,
        **{name: children[name] for name in names[cut + 1 :]},
    }
    model.eval()
    labels = {f"custom_{number}": f"{_label(number)} ({params.type})" for number, params in enumerate(modules)}
    _probe(model, labels)
    for name, label in labels.items():
        _require_round_trip(model.get_submodule(name), label)


def check_modules(modules: Sequence[ModuleParams]) -> list[str]:
    """What is wrong with modules that can be told without a model, a line each: classes, places and arguments."""
    return problems_of(partial(_check_module, params, _label(number)) for number, params in enumerate(modules))


def _check_module(params: ModuleParams, label: str) -> None:
    from sentence_transformers.sentence_transformer.modules import Router

    if params.type != "Router":
        _checked_class(params, params.place, label)
        return
    _require_arguments(Router, params, label)
    for route, layers in params.routes.items():
        for number, layer in enumerate(layers):
            _checked_class(layer, params.place, f"{label}.routes.{route}.{number}")


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
    """Whether a name of a model's `state_dict` is of a custom module."""
    return NAME.match(name.partition(".")[0]) is not None


def has_heads(model: "SentenceTransformer") -> bool:
    """Whether a Router sends queries and documents through different layers."""
    from sentence_transformers.sentence_transformer.modules import Router

    return any(isinstance(module, Router) for module in model.children())


def load_custom_modules(model: "SentenceTransformer", folder: Path) -> None:
    """Take the custom modules as they were saved in `folder`, trained, into the model (changed in place).

    Raises:
        VocabgraftError: when the two do not have the same custom modules.
    """
    present = custom_modules(model)
    if not present:
        return
    entries = {entry["name"]: entry for entry in read_json(folder / "modules.json") if NAME.match(entry["name"])}
    if set(entries) != set(present):
        raise VocabgraftError(
            f"{folder} has the custom modules {', '.join(sorted(entries)) or 'none'}, the resized base "
            f"{', '.join(sorted(present))}; they are not of one run, so run train_adapter again"
        )
    for name, module in present.items():
        model._modules[name] = _load_like(module, folder, entries[name]["path"]).to(model.device).eval()


def _of_place(modules: Sequence[ModuleParams], place: Place) -> Iterator[tuple[int, ModuleParams]]:
    return ((number, params) for number, params in enumerate(modules) if params.place == place)


def _label(number: int) -> str:
    return f"resize_base.modules.{number}"


def _pooling_name(children: Mapping[str, torch.nn.Module]) -> str:
    from sentence_transformers.sentence_transformer.modules import Pooling

    for name, module in children.items():
        if isinstance(module, Pooling):
            return name
    kinds = ", ".join(type(module).__name__ for module in children.values())
    raise VocabgraftError(f"resize_base.modules needs a base with a Pooling to stand around; it has {kinds}")


def _build(model: "SentenceTransformer", params: ModuleParams, number: int, width: int, seed: int) -> torch.nn.Module:
    label = _label(number)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + number)
        if params.type != "Router":
            return _build_layer(model, params, params.place, width, label)
        return _build_router(model, params, width, label)


def _build_router(model: "SentenceTransformer", params: ModuleParams, width: int, label: str) -> torch.nn.Module:
    from sentence_transformers.sentence_transformer.modules import Router

    _require_arguments(Router, params, label)
    routes: dict[str, list[torch.nn.Module]] = {}
    widths: dict[str, int] = {}
    for route, layers in params.routes.items():
        widths[route] = width
        routes[route] = []
        for place, layer in enumerate(layers):
            built = _build_layer(model, layer, params.place, widths[route], f"{label}.routes.{route}.{place}")
            widths[route] = _width_after(built, widths[route])
            routes[route].append(built)
    if len(set(widths.values())) > 1:
        raise VocabgraftError(f"{label}: the routes end in different sizes, {widths}; give all of them one size")
    if (default := params.arguments.get("default_route")) is not None and default not in routes:
        raise VocabgraftError(f"{label}.arguments.default_route is {default!r}; allowed: {', '.join(routes)}")
    return Router(routes, **params.arguments)  # type: ignore[no-any-return]


def _build_layer(
    model: "SentenceTransformer", params: LayerParams, place: Place, width: int, label: str
) -> torch.nn.Module:
    module_class = _checked_class(params, place, label)
    arguments = {**_defaults(model, params, place, width), **params.arguments}
    if params.type in STOCK and arguments.get("module_input_name", FEATURE[place]) != FEATURE[place]:
        raise VocabgraftError(
            f"{label}.arguments.module_input_name is {arguments['module_input_name']!r}; at {place} it is "
            f"{FEATURE[place]!r}"
        )
    if "activation_function" in arguments:
        arguments["activation_function"] = _activation(arguments["activation_function"], label)
    try:
        module: torch.nn.Module = module_class(**arguments)
    except Exception as error:
        raise VocabgraftError(f"{label}: {params.type}({_shown(arguments)}) cannot be made: {error}") from error
    _start_as_identity(module, label)
    return module


def _checked_class(params: LayerParams, place: Place, label: str) -> type[torch.nn.Module]:
    """The class of a layer, which may stand at this place and takes these arguments."""
    module_class = _class_of(params.type, label)
    if FIXED_PLACE.get(params.type, place) != place:
        raise VocabgraftError(
            f"{label}: {params.type} at {place} would change nothing there; allowed: {FIXED_PLACE[params.type]}"
        )
    _require_arguments(module_class, params, label)
    if "activation_function" in params.arguments:
        _activation(params.arguments["activation_function"], label)
    return module_class


def _class_of(name: str, label: str) -> type[torch.nn.Module]:
    import sentence_transformers.sentence_transformer.modules as stock

    if "." in name and not name.startswith("sentence_transformers."):
        return import_own_module(name)
    if name in STOCK and name != "Router":
        return getattr(stock, name)  # type: ignore[no-any-return]
    reason = f" ({UNUSABLE[name]})" if name in UNUSABLE else ""
    raise VocabgraftError(
        f"{label}.type is {name!r}{reason}; allowed: {', '.join(STOCK)} (a Router not inside a Router), "
        "or an own class as MODULE.CLASS"
    )


def _require_arguments(module_class: type[torch.nn.Module], params: LayerParams, label: str) -> None:
    known = inspect.signature(module_class).parameters
    if any(entry.kind is inspect.Parameter.VAR_KEYWORD for entry in known.values()):
        return
    allowed = [name for name in known if name not in HIDDEN_ARGUMENTS.get(params.type, ())]
    if unknown := sorted(set(params.arguments) - set(allowed)):
        raise VocabgraftError(
            f"{label}.arguments has {', '.join(unknown)}, which {params.type} does not take; "
            f"allowed: {', '.join(allowed) or 'none'}"
        )


def _defaults(model: "SentenceTransformer", params: LayerParams, place: Place, width: int) -> dict[str, Any]:
    if params.type == "Dense":
        defaults: dict[str, Any] = {"in_features": width, "out_features": width, "module_input_name": FEATURE[place]}
        # The library's Tanh would bend what a residual layer adds.
        return {**defaults, "activation_function": None} if params.arguments.get("use_residual") else defaults
    if params.type == "WeightedLayerPooling":
        # Without its hidden states the transformer gives this module nothing to weigh, and it would do nothing.
        model[0].auto_model.config.output_hidden_states = True
        layers = model[0].auto_model.config.num_hidden_layers
        return {"embedding_dimension": width, "num_hidden_layers": layers, "layer_start": 0}
    sizes: dict[str, dict[str, Any]] = {
        "Normalize": {"module_input_name": FEATURE[place]},
        "LayerNorm": {"dimension": width},
        "CNN": {"in_embedding_dimension": width},
    }
    return sizes.get(params.type, {})


def _activation(given: Any, label: str) -> Any:
    if given is None:
        return torch.nn.Identity()
    # Loading takes activations of torch alone without trust_remote_code.
    found = getattr(torch.nn, str(given).removeprefix("torch.nn."), None)
    if not (inspect.isclass(found) and issubclass(found, torch.nn.Module)):
        raise VocabgraftError(
            f"{label}.arguments.activation_function is {given!r}; allowed: null or a class of torch.nn, such as GELU"
        )
    return found()


def _start_as_identity(module: torch.nn.Module, label: str) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense, WeightedLayerPooling

    if isinstance(module, WeightedLayerPooling):
        with torch.no_grad():
            # The last layer alone, which is what the pooling saw before.
            module.layer_weights.zero_()
            module.layer_weights[-1] = 1
    # A residual that changes the size is a projection, and no start makes it an identity.
    if isinstance(module, Dense) and module.use_residual and module.in_features == module.out_features:
        point = torch.zeros(1, requires_grad=True)
        value = module.activation_function(point)
        (slope,) = torch.autograd.grad(value.sum(), point)
        if float(value.detach()) != 0 or float(slope) == 0:
            raise VocabgraftError(
                f"{label}.arguments.activation_function is {type(module.activation_function).__name__}, with which a "
                "residual layer cannot start as an identity and be trained; use null, Tanh or GELU"
            )
        for parameter in module.linear.parameters():
            torch.nn.init.zeros_(parameter)


def _width_after(module: torch.nn.Module, width: int) -> int:
    known = getattr(module, "get_embedding_dimension", None)
    return int(known() or width) if callable(known) else width


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
                f"the model says that its embeddings have {expected} numbers and they have {width}; the last custom "
                "module that changes the size needs a method get_embedding_dimension"
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
            f"{label} does not fit where it stands: it sees {_shown(seen)}, and {type(error).__name__}: {error}"
        ) from error
    if is_custom and any(now.get(name, ())[:-1] != shape[:-1] for name, shape in seen.items()):
        raise VocabgraftError(
            f"{label} makes {_shown(now)} of {_shown(seen)}; only the last size may change (texts and tokens stay)"
        )
    for name in now:
        if not bool(after[name].isfinite().all()):
            raise VocabgraftError(f"{label} makes numbers of {name} that are not finite; change how it starts")
    return after


def _shapes(features: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(features[name].shape) for name in FEATURE.values() if name in features}


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "nothing"


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

    # A Router finds its own layers' classes by their dotted names, which it refuses for others than the library's.
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
