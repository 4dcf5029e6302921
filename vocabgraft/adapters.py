"""PEFT adapters over an extended vocabulary: made, split into their parts, merged."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from vocabgraft.custom_modules import custom_parameters, load_custom_modules
from vocabgraft.errors import VocabgraftError
from vocabgraft.params import LoraParams, Method

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Part = Literal["rows", "adapter", "all"]
ROWS = re.compile(r"\.trainable_tokens_delta\.")
# The name by which a learning rate of its own is given to the rows (a regular expression over parameter names).
ROWS_PATTERN = r"trainable_tokens_delta"


def add_adapter(model: "SentenceTransformer", method: Method, new_ids: Sequence[int], lora: LoraParams) -> None:
    """Put a fresh PEFT adapter on the model's transformer (changed in place); everything else is frozen.

    Raises:
        VocabgraftError: when a module that LoRA should wrap is not there.
    """
    from peft import LoraConfig, TrainableTokensConfig

    embeddings = embedding_name(model)
    if method == "tokens":
        config: Any = TrainableTokensConfig(
            token_indices=list(new_ids), target_modules=[embeddings], task_type="FEATURE_EXTRACTION"
        )
    else:
        _require_modules(model, lora.target_modules)
        config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=sorted(lora.target_modules),
            trainable_token_indices={embeddings: list(new_ids)} if method == "lora_and_tokens" else None,
            task_type="FEATURE_EXTRACTION",
        )
    model.add_adapter(config)


def embedding_name(model: "SentenceTransformer") -> str:
    """The last part of the name of the transformer's input embedding module, such as `word_embeddings`."""
    embeddings = model[0].auto_model.get_input_embeddings()
    name = next(name for name, module in model[0].auto_model.named_modules() if module is embeddings)
    return str(name).rpartition(".")[2]


def adapter_parameters(model: "SentenceTransformer") -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by name."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if ROWS.search(name) or re.search(r"\.lora_", name)
    }


def train_only(model: "SentenceTransformer", part: Part) -> int:
    """Let only a part of the adapter be trained; return how many numbers that is.

    Custom modules belong to the part `adapter`. PEFT freezes the transformer alone, so everything else is frozen here:
    a base may have layers of its own after it.

    Raises:
        VocabgraftError: when the adapter has no such part.
    """
    trained = 0
    model.requires_grad_(False)
    for name, parameter in (adapter_parameters(model) | custom_parameters(model)).items():
        is_row = bool(ROWS.search(name))
        parameter.requires_grad_(part == "all" or (part == "rows") == is_row)
        trained += parameter.numel() if parameter.requires_grad else 0
    if not trained:
        raise VocabgraftError(f"the adapter has nothing to train for the part '{part}'")
    return trained


def merge_adapter(resized: "SentenceTransformer", adapter: Path) -> None:
    """Merge a saved adapter into the resized base (changed in place), which then needs no PEFT to load.

    Custom modules are taken from the adapter's folder, where they lie as they were trained.
    """
    from peft import PeftModel

    with warnings.catch_warnings():
        # PEFT warns of a layer that it replaced itself a moment ago.
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(resized[0].auto_model, str(adapter))
        merged = wrapped.merge_and_unload()
    resized[0].auto_model = merged
    load_custom_modules(resized, adapter)


def _require_modules(model: "SentenceTransformer", names: Sequence[str]) -> None:
    linear = {
        name.rpartition(".")[2]
        for name, module in model[0].auto_model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    if absent := sorted(set(names) - linear):
        raise VocabgraftError(
            f"train_adapter.lora.target_modules names {', '.join(absent)}, which the base does not have; "
            f"allowed: {', '.join(sorted(linear))}"
        )
