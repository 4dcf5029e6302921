"""Checks that one model gives one embedding, however it is loaded, batched and computed.

A difference is that of two embeddings number by number, relative to the embedding's length, so that a limit means the
same for models with and without a Normalize at the end.

Batching, padding, another process or another order of rounding cost the last digits of any model. How many depends on
the weights' type and the CPU, so each check makes the same change to the base, on the same texts, and allows the merged
model `NOISE_MULTIPLE` times what the base shows. The tolerances of `params.yaml` are floors.
"""

import copy
import importlib.util
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from vocabgraft.checks.context import Artifact, Evidence
from vocabgraft.checks.isolated import Place
from vocabgraft.checks.result import Finding, at_most, noise_limit, none_of, quoted
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import Embeddings, encode
from vocabgraft.models.extra_modules import custom_modules
from vocabgraft.models.precision import autocast

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Distances = np.ndarray[Any, np.dtype[np.float64]]
# A padded text costs what the longest does, and a processor without the instructions emulates bfloat16.
FEWEST = 8
# The variance of a rounding error, in units of the last digit: that of a uniform one of width 1.
ROUNDING_VARIANCE = 1 / 12
# What rounding costs at most, in units of the number type's epsilon. Measured in all-MiniLM-L6-v2: 1.3 to 7 in float32,
# depending on the CPU, 0.3 to 0.6 in float16 and bfloat16.
MOST_ROUNDINGS = 100
Differences = list[tuple[float, str]]
# For the ONNX backend of sentence-transformers.
NEEDED = ("onnxruntime", "optimum.onnxruntime")


def artifacts_load(evidence: Evidence) -> Finding:
    """Artifacts that do not load as a model."""
    return none_of([str(found) for found in evidence.models.values() if isinstance(found, VocabgraftError)])


def untouched_texts(evidence: Evidence) -> Finding:
    """Largest change of an encoding of a text without a new token, at equal batches."""
    return largest(_between(evidence, "base", "merged", evidence.probes.old), 0)


def reload(evidence: Evidence) -> Finding:
    """Largest difference between the merged model in memory and as loaded from disk; the base is loaded again too."""
    lists = evidence.probes.few().all
    again = evidence.load_base()
    noise = _differences(
        lists,
        [evidence.encode("base", texts) for texts in lists],
        [encode(again, texts, evidence.params.batch_size) for texts in lists],
    )
    found = _between(evidence, "merged in memory", "merged", evidence.probes.all)
    return largest(found, 0, rounding_noise(evidence, noise))


def merged_as_adapter(evidence: Evidence) -> Finding:
    """Largest difference between the merged model and the resized base with the adapter.

    Merging rounds each weight once more. So does a copy of the base with a rounding error in each weight. With a gate
    the adapter is compared on texts with a new token alone, since no other text passes it.
    """
    lists = evidence.probes.few().all
    rounded = _rounded_again(evidence.model("base"))
    noise = _differences(
        lists,
        [evidence.encode("base", texts) for texts in lists],
        [encode(rounded, texts, evidence.params.batch_size) for texts in lists],
    )
    probes = _opened(evidence) if evidence.method == "gated" else evidence.probes.all
    found = _between(evidence, "adapter", "merged", probes)
    return largest(found, evidence.params.merged_tolerance, rounding_noise(evidence, noise))


def adapter_switch(evidence: Evidence) -> Finding:
    """Largest difference of the adapter disabled from the resized base, and enabled again from before.

    Custom modules are no part of what PEFT disables, so with them only the second is compared. The base is encoded
    twice.
    """
    model, lists = evidence.model("adapter"), evidence.probes.few(FEWEST).all
    before = [encode(model, texts, evidence.params.batch_size) for texts in lists]
    model.disable_adapters()
    try:
        without = [encode(model, texts, evidence.params.batch_size) for texts in lists]
    finally:
        model.enable_adapters()
    after = [encode(model, texts, evidence.params.batch_size) for texts in lists]
    found = _differences(lists, before, after, "enabled again")
    if not custom_modules(model):
        found += _differences(lists, [evidence.encode("resized", texts) for texts in lists], without, "disabled")
    base = evidence.model("base")
    once, twice = ([encode(base, texts, evidence.params.batch_size) for texts in lists] for _ in range(2))
    noise = rounding_noise(evidence, _differences(lists, once, twice))
    return largest(found, evidence.params.float32_tolerance, noise)


def one_at_a_time(evidence: Evidence) -> Finding:
    """Largest difference of texts of all kinds in shared batches from each text alone."""
    texts, size = evidence.probes.few().mixed, evidence.params.batch_size

    def batched(model: "SentenceTransformer") -> Differences:
        return _differences([texts], [encode(model, texts, 1)], [encode(model, texts, size)])

    return _as_the_base(evidence, texts, batched)


def padding(evidence: Evidence) -> Finding:
    """Largest difference of texts padded to the longest probe from each text alone."""
    texts = evidence.probes.few(FEWEST).mixed
    longest = max((text for texts in evidence.probes.all for text in texts), key=len)

    def padded(model: "SentenceTransformer") -> Differences:
        together = encode(model, [*texts, longest], len(texts) + 1)[:-1]
        return _differences([texts], [encode(model, texts, 1)], [together])

    return _as_the_base(evidence, texts, padded)


def bfloat16(evidence: Evidence) -> Finding:
    """Largest cosine distance of the model computed in bfloat16 from the same in float32."""
    texts = evidence.probes.few(FEWEST).mixed

    def rounded(model: "SentenceTransformer") -> Differences:
        exact = encode(model, texts, evidence.params.batch_size)
        with autocast("bfloat16", model.device):
            distances = cosine_distances(exact, encode(model, texts, evidence.params.batch_size))
        return list(zip(distances.tolist(), texts, strict=True))

    found, noise = rounded(evidence.model("merged")), rounded(evidence.model("base"))
    return largest(found, evidence.params.bfloat16_tolerance, _maximum(noise))


def fresh_process(evidence: Evidence) -> Finding:
    """Largest difference from what another process reads from the merged folder."""
    return _elsewhere(evidence, "folder")


def moved_folder(evidence: Evidence) -> Finding:
    """Largest difference from what another process reads from a copy of the merged folder."""
    return _elsewhere(evidence, "moved")


def base_absent(evidence: Evidence) -> Finding:
    """Largest difference from what it reads from the copy while base and other artifacts cannot be opened."""
    return _elsewhere(evidence, "alone")


def adapter_names_base(evidence: Evidence) -> Finding:
    """Whether the adapter names its base by a path of this machine, or by none."""
    named = str(evidence.adapter_config.get("base_model_name_or_path") or "")
    broken = not named or re.match(r"^(/|~|\\|[A-Za-z]:)", named) is not None
    return none_of([f"base_model_name_or_path is {named!r}"] if broken else [])


def relative_differences(left: Embeddings, right: Embeddings) -> Distances:
    """The largest difference of two numbers of each pair of embeddings, relative to the left one's length: (texts,)."""
    if left.shape != right.shape:
        raise VocabgraftError(f"the embeddings have shape {right.shape}, and {left.shape} is expected")
    differences = np.abs(left.astype(np.float64) - right).max(axis=1, initial=0.0)
    lengths = np.linalg.norm(left.astype(np.float64), axis=1)
    # A text of nothing may have the zero vector.
    relative: Distances = differences / np.where(lengths > 0, lengths, 1.0)
    return relative


def cosine_distances(left: Embeddings, right: Embeddings) -> Distances:
    """1 - cosine of each pair of embeddings: (texts,); 0 where both are zero."""
    first, second = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = (first * second).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)
    both_zero = ~first.any(axis=1) & ~second.any(axis=1)
    return np.where(both_zero, 0.0, np.maximum(0.0, 1 - cosines))


def largest(differences: Differences, floor: float, noise: float = 0.0) -> Finding:
    """The largest difference against its limit, and the texts over it, worst first.

    Args:
        differences: each with its text.
        floor: the limit where the base's noise is smaller.
        noise: the largest difference when the same change is made to the base.
    """
    limit = noise_limit(floor, noise)
    worst = sorted(differences, key=lambda entry: -np.nan_to_num(entry[0], nan=np.inf))
    over = [f"{difference:.3g}: {quoted(text)}" for difference, text in worst if not difference <= limit]
    return replace(at_most(_maximum(differences), limit, over), noise=noise)


def rounding_noise(evidence: Evidence, differences: Differences) -> float:
    """The largest difference of the base, as far as rounding explains it.

    A base that reads padding, say, has a fault and no noise: its model must not have leave to read padding too.
    """
    most, seen = MOST_ROUNDINGS * torch.finfo(evidence.model("base").dtype).eps, _maximum(differences)
    return most if seen > most else seen


def _between(evidence: Evidence, left: Artifact, right: Artifact, lists: Sequence[Sequence[str]]) -> Differences:
    one, other = ([evidence.encode(artifact, texts) for texts in lists] for artifact in (left, right))
    return _differences(lists, one, other)


def _opened(evidence: Evidence) -> list[list[str]]:
    """The lists of texts with a new token, without those where it stands after what the model reads."""
    return [
        [text for text, opens in zip(texts, evidence.reads(texts, evidence.new_ids), strict=True) if opens]
        for texts in evidence.probes.new
    ]


def _as_the_base(
    evidence: Evidence, texts: Sequence[str], change: "Callable[[SentenceTransformer], Differences]"
) -> Finding:
    """What a change costs the merged model, against what it costs the base.

    The base may happen to round all of few texts alike, so its noise is one rounding step of its weights' type at
    least.
    """
    found, noise = change(evidence.model("merged")), rounding_noise(evidence, change(evidence.model("base")))
    return largest(found, evidence.params.float32_tolerance, max(noise, _rounding_step(evidence, texts)))


def _rounding_step(evidence: Evidence, texts: Sequence[str]) -> float:
    """The last digit of an embedding's largest number in the type of the base's weights, relative to its length."""
    embeddings = evidence.encode("base", texts).astype(np.float64)
    lengths = np.linalg.norm(embeddings, axis=1)
    largest_numbers = np.abs(embeddings).max(axis=1, initial=0.0) / np.where(lengths > 0, lengths, 1.0)
    return float(torch.finfo(evidence.model("base").dtype).eps * np.nanmax(largest_numbers, initial=0.0))


def _elsewhere(evidence: Evidence, place: Place) -> Finding:
    lists = evidence.fresh.lists
    here = [evidence.encode("merged", texts) for texts in lists] if lists else []
    found = _differences(lists, here, evidence.fresh.encodings(place))
    return largest(found, evidence.params.float32_tolerance, _base_elsewhere(evidence))


def _base_elsewhere(evidence: Evidence) -> float:
    """What another process costs the base; 0 where the base does not load there, which says nothing of the model."""
    lists = evidence.fresh.lists
    try:
        there = evidence.fresh.encodings("base")
    except VocabgraftError:
        return 0.0
    return rounding_noise(evidence, _differences(lists, [evidence.encode("base", texts) for texts in lists], there))


def _rounded_again(model: "SentenceTransformer") -> "SentenceTransformer":
    """A copy whose linear layers have weights with one more rounding error.

    Each weight moves to its neighbour in its own number type, up or down, with the probability that gives the variance
    of a rounding error.
    """
    copied = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in copied.modules():
            if isinstance(module, torch.nn.Linear):
                weight = module.weight
                drawn = torch.rand(weight.shape, generator=generator)
                up, down = (torch.nextafter(weight, torch.full_like(weight, end)) for end in (torch.inf, -torch.inf))
                moved = torch.where(drawn < ROUNDING_VARIANCE / 2, up, weight)
                weight.copy_(torch.where(drawn > 1 - ROUNDING_VARIANCE / 2, down, moved))
    return copied


def _differences(
    lists: Sequence[Sequence[str]], left: Sequence[Embeddings], right: Sequence[Embeddings], label: str = ""
) -> Differences:
    prefix = f"{label}: " if label else ""
    return [
        (difference, f"{prefix}{text}")
        for texts, one, other in zip(lists, left, right, strict=True)
        for difference, text in zip(relative_differences(one, other).tolist(), texts, strict=True)
    ]


def _maximum(found: Differences) -> float:
    return float(np.max([difference for difference, _ in found], initial=0.0))


def onnx_export(evidence: Evidence) -> Finding:
    """Largest difference of the model exported to ONNX by sentence-transformers from the same in torch."""
    merged, base = (_exported_differences(evidence, artifact) for artifact in ("merged", "base"))
    return largest(merged, evidence.params.onnx_tolerance, rounding_noise(evidence, base))


def _exported_differences(evidence: Evidence, artifact: Literal["merged", "base"]) -> Differences:
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
