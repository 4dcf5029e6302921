"""Exports a model to an ONNX folder for sentence-transformers, text-embeddings-inference and fastembed."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vocabgraft.data.texts import general_sentences
from vocabgraft.errors import VocabgraftError, did_you_mean
from vocabgraft.export.agreement import Agreement, Encoded, compare
from vocabgraft.export.encoder import MODEL_FILE, OnnxEncoder
from vocabgraft.export.graph import parts_of, require_packages, write_graph
from vocabgraft.export.layout import lay_out, length_of
from vocabgraft.export.quantize import PRECISIONS, Precision, quantize
from vocabgraft.models.saving import save_model
from vocabgraft.storage.artifacts import write_json
from vocabgraft.storage.atomic import put_in_place, work_beside

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ABOUT = "export.json"
# float32 in another order of operations: measured 2e-7 for all-MiniLM-L6-v2. A larger difference means another graph.
LARGEST_LOSS = 1e-4
BATCH = 32
# Pairs of general sentences to encode: takes seconds with a small model; one text moves a share by 0.3 points at most.
GENERAL = 300


@dataclass(frozen=True)
class Export:
    """A written export.

    Attributes:
        folder: of the export.
        precision: of the weights.
        megabytes: of the ONNX model.
        agreement: with the model itself.
    """

    folder: Path
    precision: Precision
    megabytes: float
    agreement: Agreement

    def as_json(self) -> dict[str, Any]:
        """The contents of `export.json` in the folder."""
        return {
            "format": "onnx",
            "precision": self.precision,
            "megabytes": round(self.megabytes, 1),
            "agreement": self.agreement.as_json(),
        }


def export_onnx(
    model: "SentenceTransformer",
    out: str | Path,
    precision: Precision = "float32",
    queries: Sequence[str] = (),
    documents: Sequence[str] = (),
) -> Export:
    """Write a folder with the model in ONNX, encode texts with it, and measure how well it agrees with the model.

    The folder has `onnx/model.onnx`, `export.json`, the tokenizer, the configuration of the transformer, the pooling
    and the modules after it, and no torch weights. Modules between Transformer and Pooling are part of the graph.

    Args:
        model: merged; it is not changed.
        out: a folder that does not exist yet. A failure leaves no folder.
        precision: of the weights.
        queries: texts that search, to measure the agreement; general sentences by default.
        documents: texts that are searched; by default the general sentences paired with the queries.

    Raises:
        VocabgraftError: when `out` exists, the exporter does not cover the model, or the written folder gives other
            embeddings than the model: a cosine loss above 1e-4 in float32, embeddings that are not finite in 8 bits.
    """
    require_precision(precision)
    require_packages()
    parts_of(model)
    out = Path(out)
    if out.exists():
        raise VocabgraftError(f"{out} exists already; name another folder, or delete it")
    sample = (queries, documents) if queries and documents else general_sample()
    with work_beside(out) as work:
        write_onnx_folder(model, work, precision)
        agreement = measure(model, work, *sample)
        _require_agreement(agreement, precision)
        size = sum(path.stat().st_size for path in (work / MODEL_FILE).parent.iterdir()) / 1e6
        made = Export(out, precision, size, agreement)
        write_json(work / ABOUT, made.as_json())
        _open_modes(work)
        put_in_place(work, out)
    return made


def general_sample() -> tuple[list[str], list[str]]:
    """General queries and documents, from the sentence pairs that come with the package."""
    return general_sentences(GENERAL)


def require_precision(precision: str) -> Precision:
    """Return the precision; VocabgraftError if there is no such precision."""
    if precision not in PRECISIONS:
        hint = did_you_mean(precision, PRECISIONS)
        raise VocabgraftError(f"there is no precision {precision!r}{hint}; allowed: {', '.join(PRECISIONS)}")
    return precision


def write_onnx_folder(model: "SentenceTransformer", folder: Path, precision: Precision = "float32") -> None:
    """Write the files of an export into an existing folder, without measuring them.

    Raises:
        VocabgraftError: when the exporter does not cover the model.
    """
    save_model(model, folder)
    lay_out(folder, parts_of(model).folded, length_of(model))
    path = folder / MODEL_FILE
    path.parent.mkdir()
    if precision == "float32":
        write_graph(model, path)
        return
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        exact = Path(scratch) / path.name
        write_graph(model, exact)
        quantize(exact, path, precision)


def measure(model: "SentenceTransformer", folder: Path, queries: Sequence[str], documents: Sequence[str]) -> Agreement:
    """Encode texts with the model and with its export, and compare."""
    encoder = OnnxEncoder.from_folder(folder, torch.get_num_threads())

    def exact(texts: Sequence[str]) -> Any:
        return model.encode(list(texts), batch_size=BATCH, show_progress_bar=False, convert_to_numpy=True)

    return compare(
        Encoded(exact(queries), exact(documents)),
        Encoded(encoder.encode(queries, batch_size=BATCH), encoder.encode(documents, batch_size=BATCH)),
        queries,
        documents,
    )


def _require_agreement(agreement: Agreement, precision: Precision) -> None:
    seen = agreement.cosine_min
    if precision == "float32" and not seen >= 1 - LARGEST_LOSS:
        raise VocabgraftError(
            f"the exported model differs from the model: cosine {seen:.6f} for {agreement.worst[:100]!r}, at least "
            f"{1 - LARGEST_LOSS} is allowed; the graph is not what torch computes, so nothing is written"
        )
    if not np.isfinite(seen):
        raise VocabgraftError(
            f"the model in {precision} gives embeddings that are not finite, so nothing is written; use float32"
        )


def _open_modes(folder: Path) -> None:
    """Give the files the default modes: temporary folders and safetensors files are private."""
    import os

    mask = os.umask(0)
    os.umask(mask)
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
