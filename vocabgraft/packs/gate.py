"""Runs the consistency checks on a base with a pack."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vocabgraft.checks.context import Folders, gather_evidence
from vocabgraft.checks.runner import Check, check_all
from vocabgraft.config.stages import CheckConsistencyParams, PromptParams
from vocabgraft.config.training import Method
from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder.embedding_tensor import initialiser_deviation, read_rows
from vocabgraft.models.base import load_model
from vocabgraft.models.resize import write_resized
from vocabgraft.models.saving import save_model, save_tokenizer
from vocabgraft.packs.pack import Pack
from vocabgraft.storage.artifacts import new_folder, write_json
from vocabgraft.token_embeddings.initialize import Start, initial_rows
from vocabgraft.token_embeddings.trainable import ROWS
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.tokenizer import ExtendedToken, extend_tokenizer, load_base_tokenizer, load_tokenizer
from vocabgraft.training.adapters import adapter_parameters, embedding_name, merged_model

# Texts without a new word, used if no context is without one.
STAND_IN = "it"


@dataclass(frozen=True)
class Chain:
    """A base with a pack, in the folders of a pipeline run."""

    folders: Folders
    tokens: tuple[ExtendedToken, ...]
    method: Method = "tokens"


def write_chain(base: Path, pack: Pack, root: Path, start: torch.Tensor | None = None) -> Chain:
    """Write the outputs of a run with `method: tokens`: the initial rows, the rows of the pack, the merged model.

    Args:
        base: the base's folder.
        pack: with rows only.
        root: an existing folder on the file system of the working folder; the adapter names its base relative to the
            working folder.
        start: the initial rows, shape (tokens, width); None uses the means of the tokens' old subword tokens.

    Raises:
        VocabgraftError: for a pack with an adapter.
    """
    if pack.adapter is not None:
        raise VocabgraftError(
            f"the pack {pack.name!r} has an adapter; the checks run only for packs of rows (and in the run that "
            "trained the adapter)"
        )
    tokenizer = load_tokenizer(base)
    plain = load_base_tokenizer(base)
    longest = max((len(text) for text in pack.texts), default=1)
    tokens = extend_tokenizer(tokenizer, plain, [token.new_token for token in pack.tokens], longest)
    if start is None:
        weight = read_rows(base, range(len(tokenizer) - len(tokens)))
        start = initial_rows(
            "subword_mean", Start(weight, tuple(tokens), tokenizer.unk_token_id, 0, initialiser_deviation(base))
        )
    folders = Folders(base, *(root / name for name in ("tokenizer", "resized", "adapter", "merged")))
    with new_folder(folders.tokenizer) as work:
        save_tokenizer(tokenizer, work)
    with new_folder(folders.resized) as work:
        write_resized(base, load_tokenizer(folders.tokenizer), start, PromptParams(), None, work)
    untrained = [text for text, old, new in zip(pack.texts, start, pack.rows, strict=True) if torch.equal(old, new)]
    with new_folder(folders.adapter) as work:
        _save_adapter(folders.resized, [token.id for token in tokens], pack.rows, work)
        write_json(work / "report.json", {"method": "tokens", "tokens_without_training_text": untrained})
    with new_folder(folders.merged) as work:
        save_model(merged_model(folders.resized, folders.adapter), work)
    return Chain(folders, tuple(tokens))


def check_chain(chain: Chain, texts: Sequence[str], params: CheckConsistencyParams) -> list[Check]:
    """Every check of `check_consistency`.

    Args:
        chain: from `write_chain`.
        texts: with new words; their counterparts without new words are derived from them.
        params: the section `check_consistency`.
    """
    without = [without_tokens(text, [token.new_token for token in chain.tokens]) for text in texts]
    evidence = gather_evidence(chain.folders, chain.tokens, chain.method, [*texts, *without], texts, (), params)
    return check_all(evidence)


def _save_adapter(resized: Path, ids: Sequence[int], rows: torch.Tensor, folder: Path) -> None:
    from peft import TaskType, TrainableTokensConfig

    model = load_model(resized, device="cpu")
    names = [embedding_name(model)]
    model.add_adapter(
        TrainableTokensConfig(token_indices=list(ids), target_modules=names, task_type=TaskType.FEATURE_EXTRACTION)
    )
    (delta,) = (value for name, value in adapter_parameters(model).items() if ROWS.search(name))
    with torch.no_grad():
        delta.copy_(rows)
    save_model(model, folder, adapter_base=Path(os.path.relpath(resized)).as_posix())


def without_tokens(text: str, tokens: Sequence[NewToken]) -> str:
    """The text with each new token replaced by its description, or by a placeholder if it has none."""
    for token in sorted(tokens, key=lambda token: -len(token.text)):
        text = text.replace(token.text, token.description or STAND_IN)
    return text
