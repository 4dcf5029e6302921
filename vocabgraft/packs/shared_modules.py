"""Appends rows to an embedding without a copy, and makes models that share all but a few modules.

Nothing here copies a matrix: a model with other rows or another tokenizer is a few small objects over the weights of
the original.
"""

import copy
from collections.abc import Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from vocabgraft.errors import VocabgraftError
from vocabgraft.packs.pack import PackToken
from vocabgraft.token_embeddings.trainable import only_looks_up

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast

AnyModule = TypeVar("AnyModule", bound=nn.Module)
# The parts of a Rust tokenizer beside its model and its added tokens; all of them are shared, not copied.
PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


class AppendedRows(nn.Embedding):
    """An embedding with its own rows for ids from `first` on; the matrix is that of another embedding.

    The matrix may have padding rows, so the own rows begin at `first` and not at its end.
    """

    def __init__(self, embedding: nn.Embedding, rows: torch.Tensor, first: int) -> None:
        """Take an embedding of shape (vocabulary, width) and rows of shape (new tokens, width).

        Raises:
            VocabgraftError: for an embedding that does more than a lookup.
        """
        if not only_looks_up(embedding):
            raise VocabgraftError(
                f"the input embeddings are a {embedding}; only a plain nn.Embedding without max_norm, "
                "scale_grad_by_freq and sparse can have rows appended"
            )
        size, width = embedding.num_embeddings, embedding.embedding_dim
        super().__init__(size, width, embedding.padding_idx, _weight=embedding.weight.detach())
        # The same parameter, so that moving the other model moves this one.
        self.weight = embedding.weight
        self.first = first
        self.register_buffer("rows", rows.detach().to(embedding.weight), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of shape (*ids.shape, width)."""
        places = ids - self.first
        old = nn.functional.embedding(ids.clamp(max=self.first - 1), self.weight)
        rows = self.get_buffer("rows")
        if not len(rows):
            return old
        new = nn.functional.embedding(places.clamp(min=0), rows)
        return torch.where((places >= 0).unsqueeze(-1), new, old)

    def _save_to_state_dict(self, *args: Any, **options: Any) -> None:
        raise VocabgraftError(
            "a model with an active vocabulary cannot be saved, since its rows would be lost; save the model from "
            "bank.merge, or the vocabulary with bank.save"
        )


def exchange(root: AnyModule, new: Mapping[nn.Module, nn.Module]) -> AnyModule:
    """A module with some of its modules replaced: their parents are copied, everything else is shared.

    Raises:
        VocabgraftError: when a parent was wrapped, so that a copy would still run the original.
    """
    made: dict[int, nn.Module] = {id(module): other for module, other in new.items()}

    def exchanged(module: nn.Module) -> nn.Module:
        if id(module) not in made:
            children = {name: exchanged(child) for name, child in module._modules.items() if child is not None}
            unchanged = all(children[name] is module._modules[name] for name in children)
            made[id(module)] = module if unchanged else with_children(module, children)
        return made[id(module)]

    result = exchanged(root)
    assert isinstance(result, type(root)), "a copied parent keeps its class"
    return result


def with_children(module: AnyModule, children: Mapping[str, nn.Module]) -> AnyModule:
    """A copy of a module with other children; its parameters and settings are shared.

    Raises:
        VocabgraftError: when the module was wrapped, so that the copy would run the original.
    """
    if "forward" in module.__dict__:
        raise VocabgraftError(
            f"the forward of the model's {type(module).__name__} was replaced (accelerate does so for mixed precision, "
            "for example), so it cannot be shared; give the bank a freshly loaded model"
        )
    copied = type(module).__new__(type(module))
    # torch.compile binds these to the original.
    copied.__dict__ = {name: value for name, value in module.__dict__.items() if name != "_compiled_call_impl"}
    copied.__dict__["_modules"] = {**module._modules, **children}
    return copied


def sharing_tokenizer(
    tokenizer: "PreTrainedTokenizerFast", tokens: "Sequence[PackToken]" = ()
) -> "PreTrainedTokenizerFast":
    """A tokenizer with added tokens that shares its vocabulary with another: 2 ms and 7 KB, while a copy has 7 MB.

    Args:
        tokenizer: of the base; it is not changed.
        tokens: they get the ids after its last one, in order.

    Raises:
        VocabgraftError: when the tokenizer is not a fast one, or its ids have gaps.
    """
    from tokenizers import Tokenizer

    if not getattr(tokenizer, "is_fast", False):
        raise VocabgraftError(f"the tokenizer is a {type(tokenizer).__name__}; only a fast one takes a vocabulary")
    base = tokenizer.backend_tokenizer
    shared = Tokenizer(base.model)
    for part in PARTS:
        if (value := getattr(base, part)) is not None:
            setattr(shared, part, value)
    shared.encode_special_tokens = base.encode_special_tokens
    known = sorted(base.get_added_tokens_decoder().items())
    for special, group in groupby((added for _, added in known), key=lambda added: bool(added.special)):
        (shared.add_special_tokens if special else shared.add_tokens)(list(group))
    first = base.get_vocab_size(with_added_tokens=True)
    shared.add_tokens([token.added for token in tokens])
    wanted = {added.content: token_id for token_id, added in known}
    wanted |= {token.text: first + place for place, token in enumerate(tokens)}
    if wrong := next((text for text, token_id in wanted.items() if shared.token_to_id(text) != token_id), None):
        raise VocabgraftError(
            f"token {wrong!r} gets the id {shared.token_to_id(wrong)} instead of {wanted[wrong]}: it is in the "
            "base already, or the base's ids have gaps; such a base takes no vocabulary"
        )
    copied = copy.copy(tokenizer)
    copied._tokenizer = shared
    return copied
