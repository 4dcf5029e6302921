"""Adds a row for each new token to the base, in memory or as a new folder."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vocabgraft.config.stages import PromptParams
from vocabgraft.model_folder.model_files import transformer_folder
from vocabgraft.model_folder.remote_code import drop_auto_maps
from vocabgraft.model_folder.resize_files import resize_folder
from vocabgraft.models.base import prompts_of
from vocabgraft.models.saving import save_tokenizer
from vocabgraft.storage.artifacts import read_json, write_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast

SETTINGS = "config_sentence_transformers.json"


def write_resized(
    base: Path,
    tokenizer: "PreTrainedTokenizerFast",
    rows: torch.Tensor,
    prompts: PromptParams,
    pad_to_multiple_of: int | None,
    destination: Path,
    trust_remote_code: bool = False,
) -> None:
    """Write the base with new rows, the extended tokenizer and its prompts, complete and self-contained.

    Reads no weights except the input embeddings.

    Args:
        base: a model folder with safetensors weights.
        tokenizer: the extended tokenizer; the rows are those of its last ids.
        rows: (new tokens, width).
        prompts: override the base's own.
        pad_to_multiple_of: rounds the number of rows up to a multiple of this.
        destination: an existing, empty folder.
        trust_remote_code: run the base's own code and copy it; otherwise the written files name no code.

    Raises:
        VocabgraftError: when the base is incomplete or damaged, or the rows do not fit.
    """
    resize_folder(base, destination, rows, len(tokenizer), pad_to_multiple_of, trust_remote_code=trust_remote_code)
    save_tokenizer(tokenizer, destination / transformer_folder(base).relative_to(base))
    if not trust_remote_code:
        drop_auto_maps(destination)
    _with_prompts(destination / SETTINGS, prompts)


def extended_copy(
    model: "SentenceTransformer", tokenizer: "PreTrainedTokenizerFast", rows: torch.Tensor
) -> "SentenceTransformer":
    """The model with new rows and the extended tokenizer; the copy shares all weights except the input embeddings.

    Args:
        model: the base; it is not changed.
        tokenizer: the extended tokenizer; it gets the model's maximum length.
        rows: (new tokens, width), of the tokenizer's last ids; rows of the base beyond its own tokenizer (padding) are
            reused.
    """
    # Resizing replaces the data of the embedding parameter, so this parameter is copied.
    own = model[0].auto_model.get_input_embeddings().weight
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers()) if tensor is not own}
    copied = copy.deepcopy(model, shared)
    transformer = copied[0].auto_model
    if len(tokenizer) > transformer.get_input_embeddings().num_embeddings:
        # The rows are set below; the default would draw almost identical rows (pairwise cosine 0.9999998).
        with torch.random.fork_rng():
            transformer.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        weight = transformer.get_input_embeddings().weight
        weight[len(tokenizer) - len(rows) : len(tokenizer)] = rows.to(weight)
    tokenizer.model_max_length = model.max_seq_length
    copied[0].processor = tokenizer
    return copied


def _with_prompts(settings: Path, prompts: PromptParams) -> None:
    stored = read_json(settings) if settings.is_file() else {}
    write_json(settings, {**stored, "prompts": prompts_of(stored.get("prompts") or {}, prompts)})
