"""Weights missing from a model's file, such as the pooler of a masked language model; each load draws them again."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.embedding_tensor import names_in_code
from vocabgraft.model_folder.model_files import WEIGHTS, WEIGHTS_INDEX
from vocabgraft.model_folder.safetensors_files import read_checkpoint

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Any text passes every layer that an embedding may depend on.
A_TEXT = "a text"
SHOWN_NAMES = 3


def leave_out_absent_weights(model: "SentenceTransformer", folder: Path) -> None:
    """Make every save of the model leave out the weights that its file does not hold (changes the model).

    They differ between loads, so a folder that held them would differ between runs.

    Args:
        model: loaded from the folder.
        folder: of the transformer, with a weight file; a folder with only an adapter is ignored.

    Raises:
        VocabgraftError: if embeddings depend on such a weight, so that each load gives other embeddings.
    """
    transformer = getattr(model[0], "auto_model", None)
    if transformer is None or not any((folder / name).is_file() for name in (WEIGHTS, WEIGHTS_INDEX)):
        return
    absent = _absent(transformer, folder)
    if not absent:
        return
    names = {name for name, _ in absent}
    parameters = [tensor for _, tensor in absent if isinstance(tensor, torch.nn.Parameter)]
    used = {
        id(tensor) for tensor, is_used in zip(parameters, used_by_embeddings(model, parameters), strict=True) if is_used
    }
    if needed := sorted(name for name, tensor in absent if id(tensor) in used):
        more = f" and {len(needed) - SHOWN_NAMES} more" if len(needed) > SHOWN_NAMES else ""
        raise VocabgraftError(
            f"{folder} does not hold {', '.join(needed[:SHOWN_NAMES])}{more}, on which embeddings depend, so each load "
            "draws other values; restore the model's file, or choose a base that is complete"
        )
    transformer._keys_to_ignore_on_save = names | set(transformer._keys_to_ignore_on_save or ())


def absent_weights(model: "SentenceTransformer") -> set[str]:
    """The names, in the model's `state_dict`, of the weights that `leave_out_absent_weights` found."""
    transformer = getattr(model[0], "auto_model", None)
    names = getattr(transformer, "_keys_to_ignore_on_save", None) or ()
    prefix = next(name for name, module in model.named_modules() if module is transformer) if names else ""
    return {f"{prefix}.{name}" for name in names}


def _absent(transformer: Any, folder: Path) -> list[tuple[str, torch.Tensor]]:
    stored = set(names_in_code(read_checkpoint(folder).tensors, transformer).values())
    state = transformer.state_dict(keep_vars=True)
    # A weight tied to a stored one counts as stored.
    held = {id(tensor) for name, tensor in state.items() if name in stored}
    return [(name, tensor) for name, tensor in state.items() if name not in stored and id(tensor) not in held]


def used_by_embeddings(model: "SentenceTransformer", parameters: Sequence[torch.nn.Parameter]) -> list[bool]:
    """Whether the embedding of a text depends on each parameter, determined by its gradient.

    Args:
        model: not changed.
        parameters: of the model.
    """
    from vocabgraft.models.extra_modules import has_heads

    if not parameters:
        return []
    was_training, required = model.training, [parameter.requires_grad for parameter in parameters]
    model.eval()
    used: set[int] = set()
    for parameter in parameters:
        parameter.requires_grad_(True)
    for options in ({"task": "query"}, {"task": "document"}) if has_heads(model) else ({},):
        features = {name: _on(model.device, value) for name, value in model.preprocess([A_TEXT]).items()}
        embedding = model(features, **options)["sentence_embedding"]
        # If nothing is trainable, the embedding may have no gradient at all.
        if embedding.requires_grad:
            gradients = torch.autograd.grad(embedding.sum(), list(parameters), allow_unused=True)
            used |= {place for place, gradient in enumerate(gradients) if gradient is not None}
    for parameter, requires in zip(parameters, required, strict=True):
        parameter.requires_grad_(requires)
    model.train(was_training)
    return [place in used for place in range(len(parameters))]


def _on(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
