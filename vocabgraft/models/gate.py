"""Makes models with a gate (`gated_transformer`), recognizes them, and loads them without running their code.

A folder with a gate holds the code that a process without vocabgraft loads it with. Here the class of this package is
used instead, if the file in the folder is the same.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.remote_code import module_types

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer
    from torch.nn import Module

CODE = Path(__file__).with_name("gated_transformer.py")
GATE_TYPE = f"{CODE.stem}.GatedTransformer"


def put_gate(model: "SentenceTransformer", new_ids: Sequence[int], weights: "Mapping[str, torch.Tensor]") -> None:
    """Send texts with a new token through adapted weights (the model is changed in place).

    Args:
        model: with a row for each new token and no adapter; it still embeds every other text.
        new_ids: of the new tokens.
        weights: the adapted weights, by the names of the transformer's parameters.
    """
    from vocabgraft.models.gated_transformer import GatedTransformer

    name = next(iter(model._modules))
    model._modules[name] = GatedTransformer.of(model[0], ranges_of(new_ids), weights)


def gated(plain: Any, adapted: Any, new_ids: Sequence[int]) -> "Module":
    """Combine two Transformers with one tokenizer: `adapted` for texts with a new token, `plain` for the others."""
    from vocabgraft.models.gated_transformer import GatedTransformer

    joined: Module = GatedTransformer.joined(plain, adapted, ranges_of(new_ids))
    return joined


def is_gated(model: Any) -> bool:
    """Whether a loaded model has a gate, from any copy of the code."""
    return hasattr(model[0], "gates") and hasattr(model[0], "adapted")


def transformer_of_new_tokens(model: Any) -> Any:
    """The transformer for texts with a new token."""
    return model[0].adapted.auto_model if is_gated(model) else model[0].auto_model


def without_gate(model: "SentenceTransformer") -> "SentenceTransformer":
    """The model for texts without a new token, with shared weights; a model without a gate is returned unchanged."""
    if not is_gated(model):
        return model
    plain = copy.copy(model)
    name = next(iter(model._modules))
    plain.__dict__["_modules"] = {**model._modules, name: model[0].closed()}
    return plain


def gated_ids(model: Any) -> set[int]:
    """The ids that open the gate of a model."""
    ranges = model[0].gates if is_gated(model) else []
    return {token_id for first, last in ranges for token_id in range(first, last + 1)}


def gate_types(folder: Path) -> list[str]:
    """The module type of a saved model's gate; empty without a gate."""
    return sorted({kind for _, kind, _ in module_types(folder) if kind == GATE_TYPE})


def gate_class(folder: Path) -> "dict[str, type[Module]]":
    """This package's class for the gate of a saved model, by its type; empty without a gate, or if its code differs."""
    if not gate_types(folder):
        return {}
    code = folder / CODE.name
    if not code.is_file() or code.read_bytes() != CODE.read_bytes():
        return {}
    from vocabgraft.models.gated_transformer import GatedTransformer

    return {GATE_TYPE: GatedTransformer}


def refuse_gated_base(folder: Path) -> None:
    """Refuse a saved model with a gate as a base.

    Raises:
        VocabgraftError: naming what to use instead.
    """
    if gate_types(folder):
        raise VocabgraftError(
            f"{folder} has a gate (method gated), which new tokens of another run would not open; use its own base "
            "with the words of both runs, or combine the packs of both"
        )


def ranges_of(ids: Iterable[int]) -> list[list[int]]:
    """The first and last id of each range of consecutive ids."""
    ranges: list[list[int]] = []
    for token_id in sorted(set(ids)):
        if ranges and token_id == ranges[-1][1] + 1:
            ranges[-1][1] = token_id
        else:
            ranges.append([token_id, token_id])
    return ranges
