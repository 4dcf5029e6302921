"""The base with room for the new tokens, complete and self-contained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from vocabgraft.initialisation import subword_mean
from vocabgraft.params import PromptParams
from vocabgraft.tokenizer import ExtendedToken

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast


def resize_model(
    model: "SentenceTransformer",
    tokenizer: "PreTrainedTokenizerFast",
    tokens: Sequence[ExtendedToken],
    prompts: PromptParams,
) -> None:
    """Give `model` (changed in place) the extended tokenizer, a row for each new token, and its prompts.

    The old rows are not touched. Rows that the base holds beyond its tokenizer (padding) are kept and reused.
    """
    transformer = model[0].auto_model
    unknown_id = model.tokenizer.unk_token_id
    old = transformer.get_input_embeddings().weight.detach().clone()
    rows = subword_mean(old, tokens, unknown_id)
    if len(tokenizer) > old.shape[0]:
        # The rows are set below; the default would draw all of them almost identical (pairwise cosine 0.9999998).
        transformer.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        transformer.get_input_embeddings().weight[[token.id for token in tokens]] = rows
    tokenizer.model_max_length = model.max_seq_length
    model[0].processor = tokenizer
    model.prompts = prompts_of(model, prompts)


def prompts_of(model: "SentenceTransformer", prompts: PromptParams) -> dict[str, str]:
    """The base's prompts with those of `params.yaml` put over them."""
    given = {
        name: text for name, text in (("query", prompts.query), ("document", prompts.document)) if text is not None
    }
    return {**model.prompts, **given}
