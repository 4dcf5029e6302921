"""Decides which texts two models embed differently, from weights and tokenizers, without encoding."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vocabgraft.models.encode import Role
from vocabgraft.models.gate import gated_ids, without_gate
from vocabgraft.tokens.tokenizer import normalised, raw_tokenizer
from vocabgraft.tokens.word_filter import WordFilter

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import AddedToken, Tokenizer

BoolArray = np.ndarray[Any, np.dtype[np.bool_]]
# Parts of a configuration that describe where a model came from and its number of rows, not what it computes.
CONFIG_TRACES = ("vocab_size", "_name_or_path", "name_or_path", "transformers_version", "architectures")
# The order in which sentence-transformers looks for the prompt of a role.
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}
ROWS_AT_A_TIME = 8_192


@dataclass(frozen=True)
class ModelDifference:
    """The known differences of two models before any text is read.

    Attributes:
        everything: why every text may have another vector; None if only some have.
        previous: the previous model's tokenizer, without padding and truncation.
        new: the new model's.
        moved: ids whose input rows differ, among those that both models have.
        prompt: the prefix of each text.
        word_filter: finds the texts that the tokenizers must read; None if they must read all.
    """

    everything: str | None
    previous: "Tokenizer | None" = None
    new: "Tokenizer | None" = None
    moved: frozenset[int] = frozenset()
    prompt: str = ""
    word_filter: WordFilter | None = None

    def stale(self, texts: Sequence[str]) -> BoolArray:
        """Whether the new model's vector of each text may differ: bool array of shape (texts,).

        It may if the tokenizers split the text differently, or if the text holds a token whose row changed. Truncation
        is ignored, so a new word beyond the model's maximum length counts too.
        """
        if self.everything is not None or self.previous is None or self.new is None:
            return np.ones(len(texts), dtype=bool)
        found = np.zeros(len(texts), dtype=bool)
        read = [self.prompt + text for text in texts] if self.prompt else list(texts)
        places = self.word_filter.places(read) if self.word_filter is not None else range(len(read))
        asked = [read[place] for place in places]
        for place, before, after in zip(places, _ids(self.previous, asked), _ids(self.new, asked), strict=True):
            found[place] = before != after or not self.moved.isdisjoint(after)
        return found


def compare_models(
    previous: "SentenceTransformer", new: "SentenceTransformer", role: Role | None = "document"
) -> ModelDifference:
    """Compare two loaded models with respect to stored vectors of texts.

    For any vector to stay valid, everything except the rows of the input embeddings must be equal bit for bit: the
        other
    weights, configurations, modules, the maximum length, the prompt. What cannot be compared counts as different. For
    models with a gate (`method: gated`) this applies to the weights for texts without a new token; texts that open a
    gate change unless both models have equal gates and adapted weights.

    Args:
        previous: the model that made the vectors.
        new: the model that replaces it.
        role: with which the texts are embedded; None for a plain `encode`.
    """
    plain = without_gate(previous), without_gate(new)
    if (reason := _different_elsewhere(*plain, role)) is not None:
        return ModelDifference(reason)
    moved = _moved_rows(_input_rows(previous), _input_rows(new)) | _moved_by_the_gate(previous, new)
    before, after = raw_tokenizer(previous), raw_tokenizer(new)
    prompt = prompt_of(new, role)
    always = after.encode(prompt).ids
    if before.encode(prompt).ids != always:
        return ModelDifference("the tokenizers put other tokens around every text")
    if in_every_text := sorted(moved.intersection(always)):
        named = after.id_to_token(in_every_text[0])
        return ModelDifference(f"the row of {named!r}, which every text holds, differs")
    return ModelDifference(None, before, after, moved, prompt, _word_filter(before, after, moved))


def prompt_of(model: "SentenceTransformer", role: Role | None) -> str:
    """The prefix that the model puts before a text of that role, looked up as in sentence-transformers."""
    prompts: Mapping[str, str] = model.prompts or {}
    named = next((name for name in PROMPT_NAMES.get(role or "", ()) if name in prompts), model.default_prompt_name)
    return prompts.get(named, "") if named is not None else ""


def _different_elsewhere(previous: "SentenceTransformer", new: "SentenceTransformer", role: Role | None) -> str | None:
    """The first difference outside the input rows and the tokenizer; None if there is none."""
    kinds = [[type(module).__name__ for module in model] for model in (previous, new)]
    if kinds[0] != kinds[1]:
        return f"the modules are {', '.join(kinds[1])} and were {', '.join(kinds[0])}"
    if not (_can_be_compared(previous) and _can_be_compared(new)):
        return f"a {kinds[0][0]} without a transformer and a fast tokenizer cannot be compared"
    for at, modules in enumerate(zip(previous, new, strict=True)):
        if _config_of(modules[0]) != _config_of(modules[1]):
            return f"the configuration of module {at} ({kinds[0][at]}) differs"
    for name, values in {
        "the maximum length": (previous.max_seq_length, new.max_seq_length),
        "the prompt": (prompt_of(previous, role), prompt_of(new, role)),
        "truncate_dim": (previous.truncate_dim, new.truncate_dim),
        "the padding side": (previous.tokenizer.padding_side, new.tokenizer.padding_side),
        "the truncation side": (previous.tokenizer.truncation_side, new.tokenizer.truncation_side),
    }.items():
        if values[0] != values[1]:
            return f"{name} is {values[1]!r} and was {values[0]!r}"
    return _different_weight(previous, new)


def _can_be_compared(model: "SentenceTransformer") -> bool:
    return getattr(model.tokenizer, "is_fast", False) and hasattr(model[0], "auto_model")


def _config_of(module: Any) -> Any:
    own = module.get_config_dict() if hasattr(module, "get_config_dict") else repr(module)
    if not hasattr(module, "auto_model"):
        return own
    config: dict[str, Any] = module.auto_model.config.to_dict()
    return own, {key: value for key, value in config.items() if key not in CONFIG_TRACES}


def _different_weight(previous: "SentenceTransformer", new: "SentenceTransformer") -> str | None:
    before, after = previous.state_dict(), new.state_dict()
    if before.keys() != after.keys():
        return f"only one of the models has the weight {min(before.keys() ^ after.keys())}"
    rows = _input_rows(previous).data_ptr()
    for name, value in before.items():
        other = after[name]
        if value.dtype != other.dtype or value.shape[1:] != other.shape[1:]:
            return f"the weight {name} has another type or shape"
        if value.data_ptr() != rows and not (value.shape == other.shape and torch.equal(value, other)):
            return f"the weight {name}, which affects every text, differs"
    return None


def _input_rows(model: "SentenceTransformer") -> torch.Tensor:
    rows: torch.Tensor = model[0].auto_model.get_input_embeddings().weight.detach()
    return rows


def _moved_rows(before: torch.Tensor, after: torch.Tensor) -> frozenset[int]:
    """The ids of both matrices whose rows differ; compares a few rows at a time, since a matrix may fill the memory."""
    moved: list[int] = []
    for start in range(0, min(len(before), len(after)), ROWS_AT_A_TIME):
        stop = min(start + ROWS_AT_A_TIME, len(before), len(after))
        differ = (before[start:stop] != after[start:stop].to(before.device)).any(dim=1)
        moved += (differ.nonzero().flatten() + start).tolist()
    return frozenset(moved)


def _moved_by_the_gate(previous: "SentenceTransformer", new: "SentenceTransformer") -> frozenset[int]:
    """The ids that open a gate, if the two models differ behind it.

    An id that the new tokenizer lacks is left out: it splits such a text differently anyway.
    """
    ids = [gated_ids(model) for model in (previous, new)]
    if ids[0] == ids[1] and (not ids[0] or _equal_behind_the_gate(previous, new)):
        return frozenset()
    return frozenset(token_id for token_id in ids[0] | ids[1] if token_id < len(new.tokenizer))


def _equal_behind_the_gate(previous: Any, new: Any) -> bool:
    before, after = (model[0].adapted_weights() for model in (previous, new))
    return before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def _word_filter(previous: "Tokenizer", new: "Tokenizer", moved: frozenset[int]) -> WordFilter | None:
    """A filter for the added tokens in which the tokenizers differ; None if they differ in more.

    Both tokenizers split a text alike if it contains none of these tokens, whole word or not: an added token that does
    not occur can neither match nor hide another.
    """
    added = previous.get_added_tokens_decoder(), new.get_added_tokens_decoder()
    if _without_added_tokens(previous) != _without_added_tokens(new) or not moved <= added[1].keys():
        return None
    described = [{(number, _properties(token)) for number, token in tokens.items()} for tokens in added]
    different = {number for number, _ in described[0] ^ described[1]} | moved
    concerned = [tokens[number] for tokens in added for number in sorted(different & tokens.keys())]
    # Such a token is matched before the text is normalized, so it also decides what is normalized together.
    raw = {token.content for token in chain(*(tokens.values() for tokens in added)) if not token.normalized}
    return WordFilter.of(new, {normalised(new, token.content) for token in concerned if token.normalized}, raw)


def _properties(token: "AddedToken") -> tuple[str, bool, bool, bool, bool]:
    return token.content, token.single_word, token.lstrip, token.rstrip, token.normalized


def _without_added_tokens(tokenizer: "Tokenizer") -> Any:
    import json

    return {key: value for key, value in json.loads(tokenizer.to_str()).items() if key != "added_tokens"}


def _ids(tokenizer: "Tokenizer", texts: Collection[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
