"""Models with a gate (`gated_transformer`): made, recognized in memory and on disk, and loaded without running code.

A folder with a gate holds the code that a process without vocabgraft loads it by. Here the class of this package is
taken, where the file in the folder is the same.
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
    """Let texts with a new token pass adapted weights (the model is changed in place).

    Args:
        model: with a row for each new token and no adapter; every other text is embedded by it as it is.
        new_ids: of the new tokens.
        weights: the adapted ones, by the names of the transformer's parameters.
    """
    from vocabgraft.models.gated_transformer import GatedTransformer

    name = next(iter(model._modules))
    model._modules[name] = GatedTransformer.of(model[0], ranges_of(new_ids), weights)


def gated(plain: Any, adapted: Any, new_ids: Sequence[int]) -> "Module":
    """Two Transformers over one tokenizer as one: `adapted` reads texts with one of the tokens, `plain` the others."""
    from vocabgraft.models.gated_transformer import GatedTransformer

    joined: Module = GatedTransformer.joined(plain, adapted, ranges_of(new_ids))
    return joined


def is_gated(model: Any) -> bool:
    """Whether a loaded model has a gate, by whichever copy of the code."""
    return hasattr(model[0], "gates") and hasattr(model[0], "adapted")


def transformer_of_new_tokens(model: Any) -> Any:
    """The transformer that texts with a new token pass."""
    return model[0].adapted.auto_model if is_gated(model) else model[0].auto_model


def without_gate(model: "SentenceTransformer") -> "SentenceTransformer":
    """A model as texts without a new token see it, over the same weights; one without a gate as it is."""
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
    """The module type of a gate, where a saved model has one."""
    return sorted({kind for _, kind, _ in module_types(folder) if kind == GATE_TYPE})


def gate_class(folder: Path) -> "dict[str, type[Module]]":
    """This package's class for the gate of a saved model by its type; empty without one, or where its code differs."""
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
        VocabgraftError: naming what to take instead.
    """
    if gate_types(folder):
        raise VocabgraftError(
            f"{folder} has a gate (method gated), and new tokens of another run would not open it; take the base that "
            "it was made of, with the words of both runs, or combine the packs of both"
        )


def ranges_of(ids: Iterable[int]) -> list[list[int]]:
    """First and last of each run of consecutive ids."""
    ranges: list[list[int]] = []
    for token_id in sorted(set(ids)):
        if ranges and token_id == ranges[-1][1] + 1:
            ranges[-1][1] = token_id
        else:
            ranges.append([token_id, token_id])
    return ranges
