"""Decides whether two models differ only in rows of new tokens, so that other texts have one embedding."""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def differ_in_new_rows_alone(base: "SentenceTransformer", other: "SentenceTransformer") -> bool:
    """Whether both models give the same embedding, bit for bit, to token ids that `base` has.

    They do if they have the same modules, settings, prompts and weights, apart from rows that `other` has at the end of
    its input embeddings. All of these are compared; how `other` was made does not matter.
    """
    return (
        _reading(base) == _reading(other)
        and [_settings(module) for module in base] == [_settings(module) for module in other]
        and _same_weights(base, other)
    )


def _reading(model: "SentenceTransformer") -> tuple[Any, ...]:
    """What determines how a text becomes token ids, beside the tokenizer."""
    return (
        model.max_seq_length,
        model.default_prompt_name,
        {name: prompt or "" for name, prompt in model.prompts.items()},
        model.training,
        str(model.device),
        model.dtype,
    )


def _settings(module: Any) -> tuple[Any, ...]:
    config = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
    architecture: dict[str, Any] = {}
    if hasattr(module, "auto_model"):
        architecture = module.auto_model.config.to_dict()
        # The path that it was loaded from, and its number of rows, which `_same_weights` compares.
        for name in ("vocab_size", "_name_or_path", "name_or_path"):
            architecture.pop(name, None)
    return type(module), config, architecture


def _same_weights(base: "SentenceTransformer", other: "SentenceTransformer") -> bool:
    left, right = base.state_dict(), other.state_dict()
    if left.keys() != right.keys():
        return False
    rows = _rows(other).data_ptr()
    return all(_equal(left[name], right[name], right[name].data_ptr() == rows) for name in left)


def _rows(model: "SentenceTransformer") -> torch.Tensor:
    weight: torch.Tensor = model[0].auto_model.get_input_embeddings().weight
    return weight


def _equal(base: torch.Tensor, other: torch.Tensor, is_embedding: bool) -> bool:
    if is_embedding:
        other = other[: len(base)]
    return base.dtype == other.dtype and base.shape == other.shape and torch.equal(base, other)
