"""Puts the adapter of a pack into a copy of the structure of a shared base."""

import copy
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.packs.pack import PackAdapter
from vocabgraft.packs.shared_modules import exchange

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AnyModule = TypeVar("AnyModule", bound=torch.nn.Module)
# LoRA with these initializations does not change the weights below it. Others (pissa, olora) and other methods may
# change or keep parts of them, so they get a copy of the weights.
SHARED_STARTS: tuple[bool | str | None, ...] = (True, False, None, "gaussian", "orthogonal")
MAGNITUDE = "lora_magnitude_vector"


def shares_weights(adapter: PackAdapter) -> bool:
    """Whether a model with the adapter can share its weights with the base."""
    start = adapter.config.get("init_lora_weights", True)
    # An adapter with its own bias would overwrite the base's.
    own_bias = adapter.config.get("bias", "none") != "none"
    known = any(start is known or start == known for known in SHARED_STARTS)
    return adapter.config.get("peft_type") == "LORA" and known and not own_bias


def adapted(base: "PreTrainedModel", adapter: PackAdapter, name: str) -> "PreTrainedModel":
    """A copy of a transformer's structure with the adapter in it, in evaluation mode; `base` is not changed.

    If the method allows it, all weights are shared, and `folded` makes the copy fast; otherwise the adapter is merged
    into the copy. The input embeddings are always shared.

    Raises:
        VocabgraftError: when peft refuses the adapter.
    """
    if not shares_weights(adapter):
        own = base.get_input_embeddings().weight
        return merged_into(copy.deepcopy(base, {id(own): own}), adapter, name).eval()
    copied = copy.deepcopy(base, {id(tensor): tensor for tensor in _tensors(base)})
    _wrapped(copied, adapter, name)
    return copied.eval()


def folded(transformer: AnyModule) -> AnyModule:
    """The module with each adapter layer merged into a copy of the weight below it; the module itself is not changed.

    The result computes what the merged model does, as fast and bit for bit; only those weights are copied.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in transformer.modules() if isinstance(layer, BaseTunerLayer)]
    return exchange(transformer, {layer: _folded_layer(layer) for layer in layers})


def _folded_layer(layer: Any) -> torch.nn.Module:
    weight = layer.get_base_layer().weight
    copied = copy.deepcopy(layer, {id(tensor): tensor for tensor in _tensors(layer) if tensor is not weight})
    copied.merge()
    plain: torch.nn.Module = copied.get_base_layer()
    return plain


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def merged_into(model: "PreTrainedModel", adapter: PackAdapter, name: str) -> "PreTrainedModel":
    """The model with the adapter merged into its weights (changed in place), without PEFT.

    Raises:
        VocabgraftError: when peft refuses the adapter.
    """
    merged: PreTrainedModel = _wrapped(model, adapter, name).merge_and_unload()
    return merged


def changed_weights(model: "PreTrainedModel", adapter: PackAdapter, name: str) -> dict[str, torch.Tensor]:
    """The weights that merging the adapter would change, with their new values, by name; the model is not changed.

    Raises:
        VocabgraftError: when peft refuses the adapter.
    """
    own = dict(model.named_parameters())
    merged = dict(merged_into(copy.deepcopy(model), adapter, name).named_parameters())
    return {key: value for key, value in merged.items() if not torch.equal(value, own[key])}


def _wrapped(model: "PreTrainedModel", adapter: PackAdapter, name: str) -> Any:
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            # PEFT warns about layers that it has just replaced itself.
            warnings.simplefilter("ignore")
            config = PeftConfig.from_peft_type(**{**adapter.config, "inference_mode": True})
            wrapped = PeftModel(model, config)
            set_peft_model_state_dict(wrapped, dict(adapter.weights))
    except Exception as error:
        raise VocabgraftError(
            f"peft refuses the adapter of the pack {name!r}: {type(error).__name__}: {error}; it was made with "
            f"peft {adapter.config.get('peft_version', 'of an unknown version')}"
        ) from error
    finally:
        # PEFT freezes what it wraps, even if it is shared.
        for parameter, required in flags:
            parameter.requires_grad_(required)
    # PEFT loads an adapter with missing parts without an error, and it then acts like the base.
    loaded = {_plain(key) for key in get_peft_model_state_dict(wrapped, save_embedding_layers=False)}
    if loaded != (given := {_plain(key) for key in adapter.weights}):
        wrong = sorted(loaded ^ given)
        raise VocabgraftError(
            f"{len(wrong)} weights of the adapter of {name!r} are missing in its configuration or its file, such as "
            f"{wrong[0]}; get the pack again from its source"
        )
    return wrapped


def _plain(key: str) -> str:
    # Versions of peft write it under two names.
    return key.removesuffix(".weight") if key.removesuffix(".weight").endswith(MAGNITUDE) else key
