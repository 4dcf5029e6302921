"""Builds custom layers from params.yaml: checks classes and arguments, initializes weights."""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from vocabgraft.config.stages import LayerParams, ModuleParams, Place
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.base import import_own_module

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

STOCK = ("CNN", "Dense", "Dropout", "LayerNorm", "Normalize", "Router", "WeightedLayerPooling")


# Library classes that would be accepted but do not work.
UNUSABLE = {
    "LSTM": "it reads the length of each text as `sentence_lengths`, which a Transformer does not return",
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


# Tensors, or values that YAML cannot express.
HIDDEN_ARGUMENTS = {
    "Dense": ("init_weight", "init_bias"),
    "WeightedLayerPooling": ("layer_weights",),
    "Router": ("sub_modules", "route_mappings", "allow_empty_key"),
}


def build_module(
    model: "SentenceTransformer", params: ModuleParams, number: int, width: int, seed: int
) -> torch.nn.Module:
    label = label_of(number)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + number)
        if params.type != "Router":
            return _build_layer(model, params, params.place, width, label)
        return _build_router(model, params, width, label)


def _build_router(model: "SentenceTransformer", params: ModuleParams, width: int, label: str) -> torch.nn.Module:
    from sentence_transformers.sentence_transformer.modules import Router

    require_arguments(Router, params, label)
    routes: dict[str, list[torch.nn.Module]] = {}
    widths: dict[str, int] = {}
    for route, layers in params.routes.items():
        widths[route] = width
        routes[route] = []
        for place, layer in enumerate(layers):
            built = _build_layer(model, layer, params.place, widths[route], f"{label}.routes.{route}.{place}")
            widths[route] = width_after(built, widths[route])
            routes[route].append(built)
    if len(set(widths.values())) > 1:
        raise VocabgraftError(f"{label}: the routes end in different widths, {widths}; give all of them one width")
    if (default := params.arguments.get("default_route")) is not None and default not in routes:
        raise VocabgraftError(f"{label}.arguments.default_route is {default!r}; allowed: {', '.join(routes)}")
    return Router(routes, **params.arguments)  # type: ignore[no-any-return]


def _build_layer(
    model: "SentenceTransformer", params: LayerParams, place: Place, width: int, label: str
) -> torch.nn.Module:
    module_class = checked_class(params, place, label)
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
        raise VocabgraftError(f"{label}: {params.type}({shown_values(arguments)}) cannot be built: {error}") from error
    _start_as_identity(module, label)
    return module


def checked_class(params: LayerParams, place: Place, label: str) -> type[torch.nn.Module]:
    """The class of a layer, if it is allowed at this position and takes these arguments."""
    module_class = _class_of(params.type, label)
    if FIXED_PLACE.get(params.type, place) != place:
        raise VocabgraftError(
            f"{label}: {params.type} at {place} would have no effect; allowed: {FIXED_PLACE[params.type]}"
        )
    require_arguments(module_class, params, label)
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


def require_arguments(module_class: type[torch.nn.Module], params: LayerParams, label: str) -> None:
    """Refuse arguments that the class does not take."""
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
        # The library's default, Tanh, would distort what a residual layer adds.
        return {**defaults, "activation_function": None} if params.arguments.get("use_residual") else defaults
    if params.type == "WeightedLayerPooling":
        # Without the transformer's hidden states this module has nothing to weigh and no effect.
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
    # Without trust_remote_code, loading accepts only activations of torch. Dense itself writes the full path of the
    # class, such as torch.nn.modules.activation.GELU.
    name = str(given)
    found = getattr(torch.nn, name.rpartition(".")[2] if name.startswith("torch.nn.") else name, None)
    if not (inspect.isclass(found) and issubclass(found, torch.nn.Module)):
        raise VocabgraftError(
            f"{label}.arguments.activation_function is {given!r}; allowed: null or a class of torch.nn, such as GELU"
        )
    return found()


def _start_as_identity(module: torch.nn.Module, label: str) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense, WeightedLayerPooling

    if isinstance(module, WeightedLayerPooling):
        with torch.no_grad():
            # Only the last layer, which the pooling read before.
            module.layer_weights.zero_()
            module.layer_weights[-1] = 1
    # A residual that changes the width is a projection, which cannot be initialized as an identity.
    if isinstance(module, Dense) and module.use_residual and module.in_features == module.out_features:
        point = torch.zeros(1, requires_grad=True)
        value = module.activation_function(point)
        (slope,) = torch.autograd.grad(value.sum(), point)
        if float(value.detach()) != 0 or float(slope) == 0:
            raise VocabgraftError(
                f"{label}.arguments.activation_function is {type(module.activation_function).__name__}, with which a "
                "residual layer cannot start as an identity and train; use null, Tanh or GELU"
            )
        for parameter in module.linear.parameters():
            torch.nn.init.zeros_(parameter)


def width_after(module: torch.nn.Module, width: int) -> int:
    """The width of a layer's output embeddings."""
    known = getattr(module, "get_embedding_dimension", None)
    return int(known() or width) if callable(known) else width


def label_of(number: int) -> str:
    """The name of a layer of params.yaml in messages."""
    return f"resize_base.modules.{number}"


def shown_values(values: Mapping[str, Any]) -> str:
    """Values by name, formatted for messages."""
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "nothing"
