"""The files around an exported graph, in the layouts that different versions of readers expect.

sentence-transformers 3 to 6 reads them (its ONNX backend needs transformers below 4.58, so often an older release), and
so do text-embeddings-inference and fastembed, which know only the names of sentence-transformers 2.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vocabgraft.model_folder.remote_code import LIBRARY
from vocabgraft.storage.artifacts import read_json, write_json

# The path of every module class up to sentence-transformers 5; version 6 still reads them.
MODULES = "sentence_transformers.models"
POOLING_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Keys that sentence-transformers 6 writes for a text-only Transformer; earlier versions refuse them.
PLAIN_TRANSFORMER = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}


def lay_out(folder: Path, folded: Sequence[str], longest: int | None) -> None:
    """Turn a saved model's folder into one that goes with an ONNX graph (changed in place).

    Args:
        folder: as sentence-transformers saved it.
        folded: names of the modules that are part of the graph; they are removed.
        longest: the model's maximum number of tokens per text; None without a limit.
    """
    for weights in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
        weights.unlink()
    _write_modules(folder, folded)
    _write_length(folder, longest)
    _write_tokenizer(folder, longest)


def _write_modules(folder: Path, folded: Sequence[str]) -> None:
    kept: list[dict[str, Any]] = []
    for entry in read_json(folder / "modules.json"):
        path = folder / entry["path"]
        if entry["name"] in folded:
            shutil.rmtree(path)
            continue
        name = entry["type"].rpartition(".")[2]
        if entry["type"].startswith(LIBRARY):
            entry["type"] = f"{MODULES}.{name}"
        if name == "Pooling":
            _write_pooling(path / "config.json")
        kept.append({**entry, "idx": len(kept)})
    write_json(folder / "modules.json", kept)


def _write_pooling(path: Path) -> None:
    stored = read_json(path)
    modes = stored["pooling_mode"]
    chosen = [modes] if isinstance(modes, str) else modes
    write_json(
        path,
        {
            "word_embedding_dimension": stored["embedding_dimension"],
            **{key: mode in chosen for key, mode in POOLING_KEYS.items()},
            "include_prompt": stored["include_prompt"],
        },
    )


def _write_length(folder: Path, longest: int | None) -> None:
    path = folder / "sentence_bert_config.json"
    stored = read_json(path)
    others = {} if stored == PLAIN_TRANSFORMER else stored
    write_json(path, {**others, "max_seq_length": longest, "do_lower_case": False})


def _write_tokenizer(folder: Path, longest: int | None) -> None:
    """Make the tokenizer truncate and pad by itself, to the length that sentence-transformers uses.

    A saved tokenizer keeps the state of its last call, and an older `max_length` beside `model_max_length`:
    all-MiniLM-L6-v2 has 128 and 256, and fastembed takes the smaller.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer_config.json"
    settings = read_json(path)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    if longest is not None:
        tokenizer.enable_truncation(longest, direction=settings.get("truncation_side", "right"))
        settings |= {"max_length": longest, "model_max_length": longest}
    pad = _text_of(settings.get("pad_token")) or "[PAD]"
    pad_id = tokenizer.token_to_id(pad) or 0
    tokenizer.enable_padding(direction=settings.get("padding_side", "right"), pad_id=pad_id, pad_token=pad)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(path, settings)


def length_of(model: Any) -> int | None:
    """The model's maximum number of tokens per text; None without a limit."""
    longest = model.max_seq_length
    # transformers returns 1e30 for an unknown length.
    return int(longest) if longest is not None and 0 < longest <= sys.maxsize else None


def _text_of(token: Any) -> str | None:
    return None if token is None else str(token["content"] if isinstance(token, dict) else token)
