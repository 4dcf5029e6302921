"""Saving models so that equal models give equal folders."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vocabgraft.artifacts import read_json, write_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast

# Traces of how a tokenizer was loaded, not of what it is.
LOADING_TRACES = ("is_local", "local_files_only", "name_or_path")


def save_model(model: "SentenceTransformer", folder: Path, adapter_base: str | None = None) -> None:
    """Save a complete sentence-transformers folder: safetensors, no generated README, no absolute path.

    Args:
        model: with or without a PEFT adapter; with one, only the adapter's weights are written.
        folder: an empty folder.
        adapter_base: what the adapter's configuration names as its base.
    """
    model.save(str(folder), create_model_card=False, safe_serialization=True)
    _without_loading_traces(folder / "tokenizer_config.json")
    if (adapter_config := folder / "adapter_config.json").is_file():
        # PEFT keeps these names in a set, whose order differs from process to process.
        values = {key: _ordered(value) for key, value in read_json(adapter_config).items()}
        write_json(adapter_config, {**values, "base_model_name_or_path": adapter_base})


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Save a tokenizer's files alone, without traces of where it was loaded from."""
    tokenizer.save_pretrained(folder)
    _without_loading_traces(folder / "tokenizer_config.json")


def _without_loading_traces(path: Path) -> None:
    write_json(path, {key: value for key, value in read_json(path).items() if key not in LOADING_TRACES})


def _ordered(value: Any) -> Any:
    is_names = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    return sorted(value) if is_names else value
