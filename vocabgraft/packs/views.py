"""Views: the first module of a model with a vocabulary, over the weights of the base."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch

from vocabgraft.errors import VocabgraftError
from vocabgraft.models.gate import gated
from vocabgraft.packs.adapters import adapted
from vocabgraft.packs.pack import Pack
from vocabgraft.packs.shared_modules import AppendedRows, exchange, sharing_tokenizer, with_children

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Vocabularies that are used together; none is the base.
Names = tuple[str, ...]


class TaggedText(str):
    """A text with the names of its vocabularies."""

    names: Names

    def __new__(cls, text: str, names: Names) -> "TaggedText":
        """The text with its tag."""
        tagged = super().__new__(cls, text)
        tagged.names = names
        return tagged


def vocabulary_view(base: Any, pack: Pack) -> torch.nn.Module:
    """A Transformer module that reads with a pack; `base`, a Transformer module too, is not changed.

    With a gate it has two paths over the same rows, with and without the adapter, and each text uses one of them.

    Raises:
        VocabgraftError: when the base or the pack's adapter does not support this.
    """
    if pack.gate is not None:
        first = len(base.processor)
        ids = [first + place for place, token in enumerate(pack.tokens) if token.text in pack.gate]
        plain = vocabulary_view(base, replace(pack, adapter=None, gate=None))
        return gated(plain, vocabulary_view(base, replace(pack, gate=None)), ids)
    transformer = base
    if pack.adapter is not None:
        transformer = with_children(base, {"model": adapted(base.auto_model, pack.adapter, pack.name)})
    embedding = transformer.auto_model.get_input_embeddings()
    view: Any = exchange(transformer, {embedding: AppendedRows(embedding, pack.rows, len(base.processor))})
    view.processor = sharing_tokenizer(base.processor, pack.tokens)
    # Lengths of prompts in tokens, which depend on the tokenizer.
    view._prompt_length_mapping = {}
    settle_tokenizer(view)
    return cast(torch.nn.Module, view)


def settle_tokenizer(transformer: Any) -> None:
    """Let the library set padding and truncation, as a first call does: later calls only read, in any thread."""
    transformer.preprocess(["a text"])


def mixed_view(base: Any, views: Mapping[Names, Any]) -> torch.nn.Module:
    """A Transformer module that reads each `TaggedText` of a batch with the view of its tag.

    The rows of all views are concatenated; the ids of each view are shifted to its rows.
    """
    first = len(base.processor)
    parts = {names: view.auto_model.get_input_embeddings().rows for names, view in views.items() if names}
    shifts, before = dict.fromkeys(views, 0), 0
    for names, rows in parts.items():
        shifts[names], before = before, before + len(rows)
    embedding = base.auto_model.get_input_embeddings()
    mixed: Any = exchange(base, {embedding: AppendedRows(embedding, torch.cat(list(parts.values())), first)})

    def preprocess(inputs: Sequence[TaggedText], prompt: str | None = None, **options: Any) -> dict[str, Any]:
        places: dict[Names, list[int]] = {}
        for place, text in enumerate(inputs):
            places.setdefault(text.names, []).append(place)
        made = []
        for names, group in places.items():
            features = views[names].preprocess([str(inputs[place]) for place in group], prompt=prompt, **options)
            ids = features["input_ids"]
            made.append({**features, "input_ids": torch.where(ids >= first, ids + shifts[names], ids)})
        return _side_by_side(made, list(places.values()), base.processor)

    mixed.preprocess = preprocess
    return cast(torch.nn.Module, mixed)


def _side_by_side(
    made: Sequence[dict[str, Any]], places: Sequence[Sequence[int]], tokenizer: "PreTrainedTokenizerFast"
) -> dict[str, Any]:
    """Combine batches into one, padded to the longest, with the texts at their indices."""
    order = torch.tensor([place for group in places for place in group]).argsort()
    longest = max(features["input_ids"].shape[1] for features in made)
    padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    joined = dict(made[0])
    for name, value in made[0].items():
        if isinstance(value, torch.Tensor):
            missing = [longest - features[name].shape[1] for features in made]
            widths = [(0, count) if tokenizer.padding_side == "right" else (count, 0) for count in missing]
            padded = [
                torch.nn.functional.pad(features[name], width, value=padding.get(name, 0))
                for features, width in zip(made, widths, strict=True)
            ]
            joined[name] = torch.cat(padded)[order]
        elif any(features[name] != value for features in made):
            raise VocabgraftError(
                f"the vocabularies read the prompt differently ({name}: {[features[name] for features in made]}); "
                "encode the texts of each vocabulary separately"
            )
    return joined
