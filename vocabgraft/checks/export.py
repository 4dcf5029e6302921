"""Checks of the model in other runtimes than torch."""

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vocabgraft.checks.context import Evidence
from vocabgraft.checks.encodings import FEWEST, largest, relative_differences, rounding_noise
from vocabgraft.checks.result import Finding
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import encode

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

NEEDED = ("onnxruntime", "optimum.onnxruntime")


def onnx_export(evidence: Evidence) -> Finding:
    """Largest difference of the model exported to ONNX by sentence-transformers from the same in torch."""
    merged, base = (_differences(evidence, artifact) for artifact in ("merged", "base"))
    return largest(merged, evidence.params.onnx_tolerance, rounding_noise(evidence, base))


def _differences(evidence: Evidence, artifact: Literal["merged", "base"]) -> list[tuple[float, str]]:
    texts = evidence.probes.few(FEWEST).mixed
    with tempfile.TemporaryDirectory() as scratch:
        # The export may write beside the weights, and an artifact stays as its manifest has it.
        copy = Path(shutil.copytree(getattr(evidence.folders, artifact), Path(scratch) / "model"))
        exported = encode(load_onnx(copy, evidence.trust_remote_code), texts, evidence.params.batch_size)
    exact = encode(evidence.model(artifact), texts, evidence.params.batch_size)
    return list(zip(relative_differences(exact, exported).tolist(), texts, strict=True))


def load_onnx(folder: Path, trust_remote_code: bool = False) -> "SentenceTransformer":
    """The model in a folder, exported on the way by the library's own backend.

    Raises:
        VocabgraftError: when what that backend needs is not installed.
    """
    if absent := [name for name in NEEDED if not _is_installed(name)]:
        raise VocabgraftError(
            f"{' and '.join(absent)} is not installed, which the ONNX backend of sentence-transformers needs; install "
            "it, or waive onnx_export in check_consistency.waived with a reason"
        )
    from sentence_transformers import SentenceTransformer

    options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    return SentenceTransformer(str(folder), device="cpu", backend="onnx", **options)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        # Of a dotted name, the part before the dot.
        return False
