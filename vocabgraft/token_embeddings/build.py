"""Makes the rows of new tokens: initialization, followed by distillation."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vocabgraft.config.stages import PromptParams, ResizeBaseParams
from vocabgraft.model_folder.embedding_tensor import find_embedding, initialiser_deviation, read_rows
from vocabgraft.models.base import load_model, prompts_of
from vocabgraft.models.resize import extended_copy
from vocabgraft.token_embeddings.distill import LOWER_RATE, RARE_TEXTS, choose_contexts, distil
from vocabgraft.token_embeddings.initialize import Start, initial_rows
from vocabgraft.token_embeddings.trainable import require_finite
from vocabgraft.tokens.tokenizer import ExtendedToken, load_tokenizer

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast


def make_rows(
    base: Path,
    tokenizer: "PreTrainedTokenizerFast",
    tokens: Sequence[ExtendedToken],
    texts: Sequence[str],
    params: ResizeBaseParams,
    prompts: PromptParams,
    seed: int,
    trust_remote_code: bool = False,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """A row for each new token, made by the method `params.initialisation`.

    Only distillation loads the model; the other methods read just its input embeddings.

    Args:
        base: the base's folder.
        tokenizer: the extended tokenizer.
        tokens: the added tokens.
        texts: train split and contexts, from which distillation chooses; must not include held-out texts.
        params: the section `resize_base`.
        prompts: override the base's own.
        seed: of the random numbers; the global generators are neither read nor changed.
        trust_remote_code: run the base's own code.

    Returns:
        Rows of shape (tokens, width) in the type of the base's weights, and the report of the distillation, which is
        empty for other methods.

    Raises:
        VocabgraftError: for a token that the method cannot initialize.
    """
    start = _start(base, tokens, seed, trust_remote_code)
    if not tokens:
        return start.weight[:0], {}
    rows = initial_rows(_heuristic(params), start)
    if params.initialisation != "distillation":
        return rows, {}
    teacher = load_model(base, trust_remote_code=trust_remote_code)
    teacher.prompts = prompts_of(teacher.prompts, prompts)
    return _distilled(teacher, tokenizer, tokens, texts, rows, params, seed)


def rows_of_model(
    base: "SentenceTransformer",
    tokenizer: "PreTrainedTokenizerFast",
    tokens: Sequence[ExtendedToken],
    texts: Sequence[str],
    params: ResizeBaseParams,
    seed: int,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """A row for each new token of a base in memory; otherwise like `make_rows`.

    Args:
        base: the base; it is not changed.
        tokenizer: the extended tokenizer.
        tokens: the added tokens, at least one.
        texts: texts from which distillation chooses contexts.
        params: how to initialize and distill.
        seed: of the random numbers; the global generators are neither read nor changed.

    Returns:
        As for `make_rows`.

    Raises:
        VocabgraftError: as for `make_rows`.
    """
    transformer = base[0].auto_model
    weight = transformer.get_input_embeddings().weight.detach()
    # Rows beyond the tokenizer's size are padding, which no mean and no neighbor may use.
    weight = weight[: len(base.tokenizer)].cpu()
    deviation = float(getattr(transformer.config.get_text_config(), "initializer_range", 0.02))
    start = Start(weight, tuple(tokens), base.tokenizer.unk_token_id, seed, deviation)
    rows = initial_rows(_heuristic(params), start)
    if params.initialisation != "distillation":
        return rows, {}
    return _distilled(base, tokenizer, tokens, texts, rows, params, seed)


def _heuristic(params: ResizeBaseParams) -> str:
    return params.distillation.start if params.initialisation == "distillation" else params.initialisation


def _distilled(
    teacher: "SentenceTransformer",
    tokenizer: "PreTrainedTokenizerFast",
    tokens: Sequence[ExtendedToken],
    texts: Sequence[str],
    rows: torch.Tensor,
    params: ResizeBaseParams,
    seed: int,
) -> tuple[torch.Tensor, dict[str, Any]]:
    unknown = teacher.tokenizer.unk_token_id
    per_token = params.distillation.contexts_per_token
    contexts = choose_contexts(texts, tokenizer, tokens, per_token, unknown, RARE_TEXTS)
    student = extended_copy(teacher, tokenizer, rows)
    report = distil(student, teacher, contexts, tokens, params.distillation, seed)
    weight = student[0].auto_model.get_input_embeddings().weight.detach()
    rows = weight[[token.id for token in tokens]].to(rows)
    require_finite(rows, [token.text for token in tokens], f"in {rows.dtype}, the type of the base", LOWER_RATE)
    return rows, report


def _start(base: Path, tokens: Sequence[ExtendedToken], seed: int, trust_remote_code: bool) -> Start:
    tokenizer = load_tokenizer(base, trust_remote_code)
    # Rows beyond the tokenizer's size are padding, which no mean and no neighbor may use.
    used = min(find_embedding(base, trust_remote_code).shape[0], len(tokenizer))
    weight = read_rows(base, range(used), trust_remote_code)
    deviation = initialiser_deviation(base, trust_remote_code)
    return Start(weight, tuple(tokens), tokenizer.unk_token_id, seed, deviation)
