"""Makes, splits and merges PEFT adapters over an extended vocabulary."""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from vocabgraft.config.peft_methods import FIXED
from vocabgraft.config.training import PEFT_METHODS, ROW_METHODS, LoraParams, Method, PeftParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.absent_weights import A_TEXT, used_by_embeddings
from vocabgraft.models.base import load_model
from vocabgraft.models.extra_modules import custom_parameters, load_custom_modules
from vocabgraft.models.gate import put_gate
from vocabgraft.models.precision import in_float32
from vocabgraft.models.saving import ADAPTER_CONFIG_NAME
from vocabgraft.token_embeddings.trainable import ROWS

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Part = Literal["rows", "adapter", "all"]


# Largest difference of an encoding between the trained and the loaded adapter, both on a CPU; every method gave 0.
RELOAD_TOLERANCE = 1e-5


def add_adapter(
    model: "SentenceTransformer",
    method: Method,
    new_ids: Sequence[int],
    lora: LoraParams,
    peft: PeftParams | None = None,
) -> None:
    """Put a fresh PEFT adapter on the model's transformer (changed in place); everything else is frozen.

    The method `full` has no adapter and does not change the model.

    Raises:
        VocabgraftError: when a module that the adapter should wrap is missing, peft refuses the fields, or the adapter
            would change rows of the base's own tokens or train weights that it does not save.
    """
    if method == "full":
        return
    embeddings = model[0].auto_model.get_input_embeddings()
    name = embedding_name(model)
    config = _config(model, method, {name: list(new_ids)}, lora, peft)
    if method not in PEFT_METHODS:
        model.add_adapter(config)
        return
    assert peft is not None, "parameters with such a method have it"
    try:
        model.add_adapter(config)
    except Exception as error:
        raise _refused_by_peft(peft, error) from error
    _require_old_rows(model, embeddings, name, peft)
    _require_saved(model, peft)


def _config(
    model: "SentenceTransformer",
    method: Method,
    rows: dict[str, list[int]],
    lora: LoraParams,
    peft: PeftParams | None,
) -> Any:
    import peft as library

    with_rows = {"trainable_token_indices": rows} if method in ROW_METHODS else {}
    if method == "tokens":
        ((name, ids),) = rows.items()
        return library.TrainableTokensConfig(
            token_indices=ids, target_modules=[name], task_type=library.TaskType.FEATURE_EXTRACTION
        )
    if peft is not None and method in PEFT_METHODS:
        targets = peft.arguments.get("target_modules")
        _require_modules(model, targets if isinstance(targets, list) else [], "peft.arguments")
        arguments = peft.arguments | FIXED.get(peft.config, {}) | with_rows
        try:
            return getattr(library, peft.config)(**arguments, task_type=library.TaskType.FEATURE_EXTRACTION)
        except Exception as error:
            raise _refused_by_peft(peft, error) from error
    _require_modules(model, lora.target_modules, "lora", (torch.nn.Linear,))
    return library.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted(lora.target_modules),
        task_type=library.TaskType.FEATURE_EXTRACTION,
        **with_rows,
    )


def _refused_by_peft(peft: PeftParams, error: Exception) -> VocabgraftError:
    given = ", ".join(f"{name}: {value!r}" for name, value in peft.arguments.items()) or "none"
    return VocabgraftError(
        f"peft refuses {peft.config} with the arguments {given}: {str(error) or type(error).__name__}; "
        "see train_adapter.peft"
    )


def _require_old_rows(model: "SentenceTransformer", before: torch.nn.Module, name: str, peft: PeftParams) -> None:
    from peft.utils.other import TrainableTokensWrapper

    after = model[0].auto_model.get_input_embeddings()
    if after is not before and not isinstance(after, TrainableTokensWrapper):
        raise VocabgraftError(
            f"train_adapter.peft: {peft.config} would wrap {name}, the input embeddings, and change the rows of the "
            "base's own tokens; take it out of the arguments (rows of new tokens train with method tokens, "
            "lora_and_tokens or peft_and_tokens, everything with full)"
        )


def _require_saved(model: "SentenceTransformer", peft: PeftParams) -> None:
    # PEFT does not freeze layers after the transformer.
    inside = {id(parameter) for parameter in model[0].auto_model.parameters()}
    named = model.named_parameters()
    trained = {name for name, parameter in named if parameter.requires_grad and id(parameter) in inside}
    saved = set(adapter_parameters(model))
    if trained != saved:
        raise VocabgraftError(
            f"train_adapter.peft: {peft.config} with these arguments trains "
            f"{', '.join(sorted(trained - saved)[:3]) or 'nothing'} without saving it and saves "
            f"{', '.join(sorted(saved - trained)[:3]) or 'nothing'} without training it; use other arguments"
        )


def embedding_name(model: "SentenceTransformer") -> str:
    """The last part of the name of the transformer's input embedding module, such as `word_embeddings`."""
    embeddings = model[0].auto_model.get_input_embeddings()
    name = next(name for name, module in model[0].auto_model.named_modules() if module is embeddings)
    return str(name).rpartition(".")[2]


def adapter_parameters(model: "SentenceTransformer") -> dict[str, torch.nn.Parameter]:
    """The parameters that PEFT saves with the adapter, by name, frozen or not; empty without an adapter."""
    from peft import get_peft_model_state_dict

    transformer = model[0].auto_model
    if not getattr(transformer, "peft_config", None):
        return {}
    state = transformer.state_dict(keep_vars=True)
    saved = get_peft_model_state_dict(transformer, state_dict=state, save_embedding_layers=False)
    # PEFT saves them under other names, so compare the tensors themselves.
    kept = {id(tensor) for tensor in saved.values()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in kept}


def trainable_parameters(model: "SentenceTransformer") -> dict[str, torch.nn.Parameter]:
    """The parameters that training may change, by name: an adapter and custom modules, or without an adapter all."""
    if not getattr(model[0].auto_model, "peft_config", None):
        return dict(model.named_parameters())
    return adapter_parameters(model) | custom_parameters(model)


def train_only(model: "SentenceTransformer", part: Part) -> int:
    """Make only a part of the trainable parameters train; return its number of values.

    Custom modules belong to the part `adapter`. PEFT freezes only the transformer, so everything else is frozen here,
    since a base may have own layers after it. Parameters that no embedding depends on are frozen too, such as the
    pooler of a
    BERT: with several processes, training would wait for its gradients.

    Raises:
        VocabgraftError: when there is nothing to train in this part.
    """
    chosen = [
        parameter
        for name, parameter in trainable_parameters(model).items()
        if part == "all" or (part == "rows") == bool(ROWS.search(name))
    ]
    model.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    if chosen:
        _freeze_unused(model, chosen)
    trained = sum(parameter.numel() for parameter in chosen if parameter.requires_grad)
    if not trained:
        raise VocabgraftError(f"the adapter has nothing to train for the part '{part}'")
    return trained


def _freeze_unused(model: "SentenceTransformer", parameters: Sequence[torch.nn.Parameter]) -> None:
    for parameter, is_used in zip(parameters, used_by_embeddings(model, parameters), strict=True):
        parameter.requires_grad_(is_used)


def require_reload(
    trained: "SentenceTransformer", saved: Path, texts: Sequence[str], trust_remote_code: bool = False
) -> None:
    """Refuse a saved adapter that, once loaded, differs from the trained one (`trained` is moved to the CPU).

    Texts with new tokens test their rows.

    A loader only logs missing weights, and a method that computes its initialization from the base may compute another
    one on loading. Comparing an adapter with its merged model would show neither, since both are loaded.

    Raises:
        VocabgraftError: with the largest difference of an encoding.
    """
    # In float32, which allows a tolerance of 1e-5: over a 16-bit base an adapter is rounded on loading.
    loaded = load_model(saved, device="cpu", own_modules=True, trust_remote_code=trust_remote_code, float32=True)
    with in_float32(trained.to("cpu")):
        before, after = (model.encode([A_TEXT, *texts], show_progress_bar=False) for model in (trained, loaded))
    difference = float(np.abs(before - after).max())
    # NaN compares false, and so is refused.
    if not difference <= RELOAD_TOLERANCE:
        raise VocabgraftError(
            f"the adapter was trained, saved and loaded, and its embeddings then differ by {difference:.2g} (allowed: "
            f"{RELOAD_TOLERANCE:g}), so its folder does not restore this method with these arguments; change "
            "train_adapter.peft"
        )


def merged_model(
    resized: Path, adapter: Path, trust_remote_code: bool = False, gate_ids: Sequence[int] = ()
) -> "SentenceTransformer":
    """The model of an adapter's folder without PEFT, on the CPU: the resized base with the adapter merged.

    A folder without an adapter comes from the method `full`, and holds the model itself.

    Args:
        resized: the resized base.
        adapter: the folder of `train_adapter`.
        trust_remote_code: run code in the folders.
        gate_ids: for the method `gated`: the new tokens; a text without any of them uses the resized base.
    """
    if not (adapter / ADAPTER_CONFIG_NAME).is_file():
        return load_model(adapter, device="cpu", own_modules=True, trust_remote_code=trust_remote_code)
    model = load_model(resized, device="cpu", own_modules=True, trust_remote_code=trust_remote_code)
    if gate_ids:
        merge_gated(model, adapter, gate_ids)
    else:
        merge_adapter(model, adapter)
    return model


def merge_adapter(resized: "SentenceTransformer", adapter: Path) -> None:
    """Merge a saved adapter into the resized base (changed in place), which then needs no PEFT to load.

    Custom modules are loaded from the adapter's folder, which has the trained ones.
    """
    from peft import PeftModel

    with warnings.catch_warnings():
        # PEFT warns about layers that it has just replaced itself.
        warnings.simplefilter("ignore")
        # In 16 bits the merge would round each product and sum, not only the result.
        with in_float32(resized):
            wrapped = PeftModel.from_pretrained(resized[0].auto_model, str(adapter))
            resized[0].auto_model = wrapped.merge_and_unload()
    load_custom_modules(resized, adapter)


def merge_gated(resized: "SentenceTransformer", adapter: Path, gate_ids: Sequence[int]) -> None:
    """Merge a saved adapter only for texts with one of these tokens (the resized base is changed in place)."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = copy.deepcopy(resized[0].auto_model)
        with in_float32(adapted):
            adapted_model = PeftModel.from_pretrained(adapted, str(adapter)).merge_and_unload()
        merged = dict(adapted_model.named_parameters())
    embeddings = resized[0].auto_model.get_input_embeddings().weight
    (name,) = (name for name, value in resized[0].auto_model.named_parameters() if value is embeddings)
    with torch.no_grad():
        embeddings[list(gate_ids)] = merged.pop(name)[list(gate_ids)]
    own = dict(resized[0].auto_model.named_parameters())
    put_gate(resized, gate_ids, {key: value for key, value in merged.items() if not torch.equal(value, own[key])})


def remove_adapter(model: "SentenceTransformer", merge: bool) -> None:
    """Remove the PEFT adapter of a model in memory (changed in place), which then needs no PEFT.

    The layers are removed as by `merge_and_unload` and `unload` of peft, which cannot be called through
    sentence-transformers. All parameters are trainable afterwards.

    Args:
        model: with an adapter.
        merge: merge the adapter into the weights; otherwise restore the weights from before the adapter.

    Raises:
        VocabgraftError: for a model without an adapter.
    """
    transformer = model[0].auto_model
    if not getattr(transformer, "peft_config", None):
        raise VocabgraftError("the model has no PEFT adapter, so there is nothing to merge or remove")
    with in_float32(model):
        for name, layer in _adapter_layers(transformer):
            parent, _, last = name.rpartition(".")
            setattr(transformer.get_submodule(parent), last, _plain_layer(layer, merge))
    del transformer.peft_config
    transformer._hf_peft_config_loaded = False
    model.requires_grad_(True)
    model.eval()


@contextmanager
def adapter_off(model: "SentenceTransformer") -> Iterator[None]:
    """Within the block, forward passes skip the PEFT adapter; trainable parameters stay trainable.

    PEFT's own switch also freezes the adapter's parameters, and makes all of them trainable afterwards.
    """
    layers = [layer for _, layer in _adapter_layers(model[0].auto_model)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, was_off in zip(layers, before, strict=True):
            layer._disable_adapters = was_off


def fold_behind_gate(model: "SentenceTransformer", gate_ids: Sequence[int]) -> None:
    """Merge the adapter of a model in memory only for texts with one of these tokens (changed in place).

    Every other text uses the weights from before the adapter.

    Raises:
        VocabgraftError: for a model without an adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    transformer = model[0].auto_model
    layers = [(name, layer) for name, layer in _adapter_layers(transformer) if isinstance(layer, BaseTunerLayer)]
    before = {
        f"{name}.{inner}": parameter.detach().clone()
        for name, layer in layers
        for inner, parameter in layer.get_base_layer().named_parameters()
    }
    remove_adapter(model, merge=True)
    weights = {}
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if name in before and not torch.equal(parameter, before[name]):
                weights[name] = parameter.detach().clone()
                parameter.copy_(before[name])
    put_gate(model, gate_ids, weights)


def _adapter_layers(transformer: torch.nn.Module) -> list[tuple[str, Any]]:
    """The outermost layers that PEFT inserted, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    found = {name: layer for name, layer in transformer.named_modules() if isinstance(layer, kinds)}
    return [(name, layer) for name, layer in found.items() if not any(name.startswith(f"{other}.") for other in found)]


def _plain_layer(layer: Any, merge: bool) -> torch.nn.Module:
    if hasattr(layer, "unload_and_optionally_merge_module"):
        plain = layer.unload_and_optionally_merge_module(merge=merge, safe_merge=False, adapter_names=None)
    else:
        if merge:
            layer.merge()
        plain = layer.get_base_layer()
    return cast(torch.nn.Module, plain)


def _require_modules(
    model: "SentenceTransformer", names: Sequence[str], place: str, kinds: tuple[type[torch.nn.Module], ...] = ()
) -> None:
    """Refuse absent names: PEFT requires only one of them to exist, and silently ignores the others."""
    there = {
        name: module
        for name, module in model[0].auto_model.named_modules()
        if name and (not kinds or isinstance(module, kinds))
    }
    absent = sorted(
        given for given in set(names) if not any(name == given or name.endswith(f".{given}") for name in there)
    )
    if absent:
        weighted = {name.rpartition(".")[2] for name, module in there.items() if module._parameters}
        raise VocabgraftError(
            f"train_adapter.{place}.target_modules names {', '.join(absent)}, which the base does not have; "
            f"allowed: {', '.join(sorted(weighted))}"
        )
