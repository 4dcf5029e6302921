"""Saves models so that equal models give equal folders."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vocabgraft.storage.artifacts import read_json, write_json

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast

ADAPTER_CONFIG_NAME = "adapter_config.json"

# The vocabulary pack beside a merged model, and among the artifacts of the run that registered it.
PACK_FOLDER = "pack"
MAGNITUDE = ".lora_magnitude_vector"
# Traces of how a tokenizer was loaded.
LOADING_TRACES = ("is_local", "local_files_only", "name_or_path")


def save_model(model: "SentenceTransformer", folder: Path, adapter_base: str | None = None) -> None:
    """Save a complete sentence-transformers folder: safetensors, no generated README, no absolute path.

    Args:
        model: with or without a PEFT adapter; with one, only the adapter's weights are written.
        folder: an empty folder.
        adapter_base: the base named in the adapter's configuration.
    """
    model.save(str(folder), create_model_card=False, safe_serialization=True)
    _without_loading_traces(folder / "tokenizer_config.json")
    if (adapter_config := folder / ADAPTER_CONFIG_NAME).is_file():
        # PEFT keeps these names in a set, whose order differs between processes.
        values = {key: _ordered(value) for key, value in read_json(adapter_config).items()}
        write_json(adapter_config, {**values, "base_model_name_or_path": adapter_base})
        _name_magnitudes(folder / "adapter_model.safetensors")


def save_tokenizer(tokenizer: "PreTrainedTokenizerFast", folder: Path) -> None:
    """Save only a tokenizer's files, without traces of how it was loaded."""
    tokenizer.save_pretrained(folder)
    _without_loading_traces(folder / "tokenizer_config.json")


def _without_loading_traces(path: Path) -> None:
    write_json(path, {key: value for key, value in read_json(path).items() if key not in LOADING_TRACES})


def _name_magnitudes(path: Path) -> None:
    """Give DoRA's magnitudes a name that both peft and transformers read.

    transformers 5.23 does not find the name that peft 0.21 writes, without `.weight`: it continues with new magnitudes
    and only logs it (embeddings of a tiny model then differ by 4e-3).
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as stored:
        names, metadata = list(stored.keys()), stored.metadata()
    if any(name.endswith(MAGNITUDE) for name in names):
        renamed = {
            f"{name}.weight" if name.endswith(MAGNITUDE) else name: value for name, value in load_file(path).items()
        }
        save_file(renamed, path, metadata)


def _ordered(value: Any) -> Any:
    is_names = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    return sorted(value) if is_names else value
