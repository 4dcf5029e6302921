"""The adapter of a pack over a base that others use too: its layers are put into a copy of the model's structure."""

import copy
import warnings
from typing import TYPE_CHECKING, Any

import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.packs import PackAdapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# LoRA from these starts leaves the weights below it alone. Others (pissa, olora) and other methods may change them or
# keep a part of them, so they get a copy of the weights.
SHARED_STARTS: tuple[bool | str | None, ...] = (True, False, None, "gaussian", "orthogonal")
MAGNITUDE = "lora_magnitude_vector"


def shares_weights(adapter: PackAdapter) -> bool:
    """Whether a model with the adapter can share its weights with the base."""
    start = adapter.config.get("init_lora_weights", True)
    return adapter.config.get("peft_type") == "LORA" and any(
        start is known or start == known for known in SHARED_STARTS
    )


def adapted(base: "PreTrainedModel", adapter: PackAdapter, name: str) -> "PreTrainedModel":
    """A copy of a transformer's structure with the adapter in it, in evaluation mode; `base` stays as it is.

    All weights are shared where the method allows it; the input embeddings are shared in any case.

    Raises:
        VocabgraftError: when peft does not take the adapter.
    """
    shared = [*base.parameters(), *base.buffers()] if shares_weights(adapter) else [base.get_input_embeddings().weight]
    copied = copy.deepcopy(base, {id(tensor): tensor for tensor in shared})
    _wrapped(copied, adapter, name)
    return copied.eval()


def merged_into(model: "PreTrainedModel", adapter: PackAdapter, name: str) -> "PreTrainedModel":
    """The model with the adapter folded into its weights (changed in place), without PEFT.

    Raises:
        VocabgraftError: when peft does not take the adapter.
    """
    merged: PreTrainedModel = _wrapped(model, adapter, name).merge_and_unload()
    return merged


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
