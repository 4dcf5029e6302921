"""Encodes with an exported folder as a service does: with onnxruntime and tokenizers, without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import read_json

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

Embeddings = np.ndarray[Any, np.dtype[np.float32]]
MODEL_FILE = Path("onnx") / "model.onnx"


@dataclass(frozen=True)
class OnnxEncoder:
    """A model exported by `vocabgraft.export`, ready to encode texts.

    Attributes:
        session: of onnxruntime.
        tokenizer: truncates texts to the model's maximum length and pads them to the longest of a batch.
        prompts: texts put before the encoded ones, by name.
        default_prompt: name of the prompt used if none is given.
    """

    session: "InferenceSession"
    tokenizer: "Tokenizer"
    prompts: Mapping[str, str]
    default_prompt: str | None

    @classmethod
    def from_folder(cls, folder: str | Path, threads: int | None = None) -> "OnnxEncoder":
        """Load an exported folder.

        Args:
            folder: with `onnx/model.onnx`.
            threads: number of threads of onnxruntime; all cores by default.

        Raises:
            VocabgraftError: when the folder is not an export, or onnxruntime is not installed.
        """
        folder = Path(folder)
        if not (folder / MODEL_FILE).is_file():
            raise VocabgraftError(
                f"{folder} has no {MODEL_FILE}; make it with `vocabgraft export MODEL --out {folder}`"
            )
        from tokenizers import Tokenizer

        settings = read_json(folder / "config_sentence_transformers.json")
        return cls(
            _session(folder / MODEL_FILE, threads),
            Tokenizer.from_file(str(folder / "tokenizer.json")),
            settings.get("prompts") or {},
            settings.get("default_prompt_name"),
        )

    def encode(self, texts: Sequence[str], prompt_name: str | None = None, batch_size: int = 32) -> Embeddings:
        """Embeddings of shape (texts, width) in float32. Texts of similar length share a batch.

        Args:
            texts: to encode.
            prompt_name: of a prompt of the model, such as `query`.
            batch_size: number of texts per batch.

        Raises:
            VocabgraftError: for a prompt that the model does not have.
        """
        name = prompt_name if prompt_name is not None else self.default_prompt
        if name is not None and name not in self.prompts:
            raise VocabgraftError(f"the model has no prompt {name!r}; allowed: {', '.join(self.prompts) or 'none'}")
        prompt = self.prompts[name] if name is not None else ""
        given = [prompt + text for text in texts]
        order = sorted(range(len(given)), key=lambda place: -len(given[place]))
        found: list[Embeddings | None] = [None] * len(given)
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            (embeddings,) = self.run([given[place] for place in places], ["sentence_embedding"])
            for place, embedding in zip(places, embeddings, strict=True):
                found[place] = embedding
        width = self.session.get_outputs()[-1].shape[-1]
        return np.asarray(found, dtype=np.float32) if found else np.zeros((0, width), dtype=np.float32)

    def run(self, texts: Sequence[str], outputs: Sequence[str]) -> list[Embeddings]:
        """The outputs of the graph for one batch, such as `last_hidden_state` and `sentence_embedding`."""
        return [np.asarray(value) for value in self.session.run(list(outputs), self.features(texts))]

    def features(self, texts: Sequence[str]) -> dict[str, "np.ndarray[Any, np.dtype[np.int64]]"]:
        """The inputs of the graph: token ids, attention mask and, if it has them, token types."""
        encoded = self.tokenizer.encode_batch(list(texts))
        columns = {
            "input_ids": [text.ids for text in encoded],
            "attention_mask": [text.attention_mask for text in encoded],
            "token_type_ids": [text.type_ids for text in encoded],
        }
        wanted = {entry.name for entry in self.session.get_inputs()}
        return {name: np.asarray(values, dtype=np.int64) for name, values in columns.items() if name in wanted}


def _session(path: Path, threads: int | None) -> "InferenceSession":
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise VocabgraftError("onnxruntime is not installed; pip install 'vocabgraft[onnx]'") from error
    options = onnxruntime.SessionOptions()
    # Level 3 shows errors only; below it, onnxruntime warns about devices that it does not find.
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
