"""The adapter of a pack over a shared base: its layers are put into a copy of the model's structure."""

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
# LoRA from these starts leaves the weights below it alone. Others (pissa, olora) and other methods may change them or
# keep a part of them, so they get a copy of the weights.
SHARED_STARTS: tuple[bool | str | None, ...] = (True, False, None, "gaussian", "orthogonal")
MAGNITUDE = "lora_magnitude_vector"


def shares_weights(adapter: PackAdapter) -> bool:
    """Whether a model with the adapter can share its weights with the base."""
    start = adapter.config.get("init_lora_weights", True)
    # With a bias of its own the adapter would write it over the base's.
    own_bias = adapter.config.get("bias", "none") != "none"
    known = any(start is known or start == known for known in SHARED_STARTS)
    return adapter.config.get("peft_type") == "LORA" and known and not own_bias


def adapted(base: "PreTrainedModel", adapter: PackAdapter, name: str) -> "PreTrainedModel":
    """A copy of a transformer's structure with the adapter in it, in evaluation mode; `base` stays as it is.

    All weights are shared where the method allows it, and `folded` makes it fast; else the adapter is folded into the
    copy. The input embeddings are shared in any case.

    Raises:
        VocabgraftError: when peft does not take the adapter.
    """
    if not shares_weights(adapter):
        own = base.get_input_embeddings().weight
        return merged_into(copy.deepcopy(base, {id(own): own}), adapter, name).eval()
    copied = copy.deepcopy(base, {id(tensor): tensor for tensor in _tensors(base)})
    _wrapped(copied, adapter, name)
    return copied.eval()


def folded(transformer: AnyModule) -> AnyModule:
    """The module with each layer of an adapter folded into a copy of the weight below it; the module stays as it is.

    What it computes is then what the merged model does, as fast and bit for bit; only those weights are copied.
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
    """The model with the adapter folded into its weights (changed in place), without PEFT.

    Raises:
        VocabgraftError: when peft does not take the adapter.
    """
    merged: PreTrainedModel = _wrapped(model, adapter, name).merge_and_unload()
    return merged


def changed_weights(model: "PreTrainedModel", adapter: PackAdapter, name: str) -> dict[str, torch.Tensor]:
    """The weights that folding the adapter in would change, as they would be, by name; the model stays as it is.

    Raises:
        VocabgraftError: when peft does not take the adapter.
    """
    own = dict(model.named_parameters())
    merged = dict(merged_into(copy.deepcopy(model), adapter, name).named_parameters())
    return {key: value for key, value in merged.items() if not torch.equal(value, own[key])}


def _wrapped(model: "PreTrainedModel", adapter: PackAdapter, name: str) -> Any:
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            # PEFT warns of layers that it replaced itself a moment ago.
            warnings.simplefilter("ignore")
            config = PeftConfig.from_peft_type(**{**adapter.config, "inference_mode": True})
            wrapped = PeftModel(model, config)
            set_peft_model_state_dict(wrapped, dict(adapter.weights))
    except Exception as error:
        raise VocabgraftError(
            f"peft does not take the adapter of the pack {name!r}: {type(error).__name__}: {error}; it was made with "
            f"peft {adapter.config.get('peft_version', 'of an unknown version')}"
        ) from error
    finally:
        # PEFT freezes what it wraps, also where that is shared.
        for parameter, required in flags:
            parameter.requires_grad_(required)
    # An adapter of which a part is not found loads all the same and acts as the base.
    loaded = {_plain(key) for key in get_peft_model_state_dict(wrapped, save_embedding_layers=False)}
    if loaded != (given := {_plain(key) for key in adapter.weights}):
        wrong = sorted(loaded ^ given)
        raise VocabgraftError(
            f"{len(wrong)} weights of the adapter of {name!r} are not in its configuration or not in its file, such as "
            f"{wrong[0]}; get the pack again from where it came from"
        )
    return wrapped


def _plain(key: str) -> str:
    # Written under two names by versions of peft.
    return key.removesuffix(".weight") if key.removesuffix(".weight").endswith(MAGNITUDE) else key
