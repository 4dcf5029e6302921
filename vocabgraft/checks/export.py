"""Checks that the model exported to ONNX gives the same embeddings."""

import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vocabgraft.checks.context import Evidence
from vocabgraft.checks.encodings import FEWEST, largest, relative_differences
from vocabgraft.checks.result import Finding, shown
from vocabgraft.export.agreement import Encoded, compare
from vocabgraft.export.encoder import OnnxEncoder
from vocabgraft.export.to_onnx import write_onnx_folder
from vocabgraft.models.encode import encode

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Share of the ten nearest texts. Rounding may swap the tenth and the eleventh where they are equally near.
NEAREST_KEPT = 0.99


def onnx_export(evidence: Evidence) -> Finding:
    """Largest difference of the model exported to ONNX from the same in torch, both in float32.

    A search for each held-out text must find the same others too.
    """
    model = _in_float32(evidence.model("merged"))
    size, few = evidence.params.batch_size, evidence.probes.few(FEWEST)
    lists = [few.mixed, *(texts for texts in (few.longest_with_new, few.longest_without_new) if texts)]
    searched = [*evidence.probes.with_new, *evidence.probes.without_new]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_onnx_folder(model, folder)
        # Threads that wait for a core spin, so there are no more than torch was given.
        encoder = OnnxEncoder.from_folder(folder, torch.get_num_threads())
        differences = [
            (difference, text)
            for texts in lists
            for difference, text in zip(
                relative_differences(encode(model, texts, size), encoder.encode(texts, batch_size=size)).tolist(),
                texts,
                strict=True,
            )
        ]
        exact, exported = encode(model, searched, size), encoder.encode(searched, batch_size=size)
    agreement = compare(Encoded(exact, exact), Encoded(exported, exported), searched, searched)
    found = largest(differences, evidence.params.onnx_tolerance, 0.0)
    if agreement.nearest_kept >= NEAREST_KEPT:
        return found
    lost = f"of the {len(searched)} texts, searches keep {agreement.nearest_kept:.3f} of the ten nearest"
    return replace(found, holds=False, details=shown([f"{lost}, at least {NEAREST_KEPT} is allowed", *found.details]))


def _in_float32(model: "SentenceTransformer") -> "SentenceTransformer":
    return model if model.dtype == torch.float32 else copy.deepcopy(model).float()
