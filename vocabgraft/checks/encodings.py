"""Checks that a model gives the same embeddings, however it is loaded, batched and computed.

A difference is the largest difference of two embeddings in any dimension, relative to the embedding's length, so that a
limit means the same with and without a Normalize at the end.

In every model, batching, padding, another process or another order of additions changes the last digits. How many
digits change depends on the weights' type and the CPU. So each check makes the same change to the base, on the same
texts, and allows the merged model `NOISE_MULTIPLE` times the base's difference. The tolerances of `params.yaml` are
lower bounds of these limits.
"""

import copy
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vocabgraft.checks.context import Artifact, Evidence
from vocabgraft.checks.isolated import Place
from vocabgraft.checks.result import Finding, at_most, noise_limit, none_of, quoted, shown
from vocabgraft.errors import VocabgraftError
from vocabgraft.export.agreement import Encoded, compare
from vocabgraft.export.encoder import OnnxEncoder
from vocabgraft.export.to_onnx import write_onnx_folder
from vocabgraft.models.encode import Embeddings, encode
from vocabgraft.models.extra_modules import custom_modules
from vocabgraft.models.precision import autocast, in_float32

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Distances = np.ndarray[Any, np.dtype[np.float64]]
# Few texts: a padded text costs as much as the longest one, and a CPU may have to emulate bfloat16.
FEWEST = 8
# Variance of a rounding error in units of the last digit: that of a uniform distribution of width 1.
ROUNDING_VARIANCE = 1 / 12
# Upper bound of rounding differences, in units of the number type's epsilon. Measured with all-MiniLM-L6-v2: 1.3 to 7
# in float32, depending on the CPU, 0.3 to 0.6 in float16 and bfloat16.
MOST_ROUNDINGS = 100
# Share of the ten nearest texts. Rounding may swap the tenth and the eleventh if they are equally near.
NEAREST_KEPT = 0.99
Differences = list[tuple[float, str]]


def artifacts_load(evidence: Evidence) -> Finding:
    """Artifacts that do not load as a model."""
    return none_of([str(found) for found in evidence.models.values() if isinstance(found, VocabgraftError)])


def untouched_texts(evidence: Evidence) -> Finding:
    """Largest change of the embedding of a text without a new token, in equal batches."""
    return largest(_between(evidence, "base", "merged", evidence.probes.old), 0)


def reload(evidence: Evidence) -> Finding:
    """Largest difference between the merged model in memory and loaded from disk; the base is loaded again too."""
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

    Merging rounds each weight once more. For comparison, a copy of the base gets a rounding error in each weight. With
    a gate only texts with a new token are compared, since other texts do not use the adapter.
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
    """Largest difference between the disabled adapter and the resized base, and of the re-enabled adapter from before.

    PEFT does not disable custom modules, so with them only the second is compared. The base encodes twice, for
    comparison.
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
    """Largest difference between texts of all kinds in shared batches and each text alone."""
    texts, size = evidence.probes.few().mixed, evidence.params.batch_size

    def batched(model: "SentenceTransformer") -> Differences:
        return _differences([texts], [encode(model, texts, 1)], [encode(model, texts, size)])

    return _as_the_base(evidence, texts, batched)


def padding(evidence: Evidence) -> Finding:
    """Largest difference between texts padded to the longest probe and each text alone."""
    texts = evidence.probes.few(FEWEST).mixed
    longest = max((text for texts in evidence.probes.all for text in texts), key=len)

    def padded(model: "SentenceTransformer") -> Differences:
        together = encode(model, [*texts, longest], len(texts) + 1)[:-1]
        return _differences([texts], [encode(model, texts, 1)], [together])

    return _as_the_base(evidence, texts, padded)


def bfloat16(evidence: Evidence) -> Finding:
    """Largest cosine distance between embeddings in bfloat16 and in float32."""
    texts = evidence.probes.few(FEWEST).mixed

    def rounded(model: "SentenceTransformer") -> Differences:
        # Autocast supports only bfloat16 mixed with float32: with float16 weights a layer norm raises.
        with in_float32(model):
            exact = encode(model, texts, evidence.params.batch_size)
            with autocast("bfloat16", model.device):
                distances = cosine_distances(exact, encode(model, texts, evidence.params.batch_size))
        return list(zip(distances.tolist(), texts, strict=True))

    found, noise = rounded(evidence.model("merged")), rounded(evidence.model("base"))
    return largest(found, evidence.params.bfloat16_tolerance, _maximum(noise))


def fresh_process(evidence: Evidence) -> Finding:
    """Largest difference from another process that loads the merged folder."""
    return _elsewhere(evidence, "folder")


def moved_folder(evidence: Evidence) -> Finding:
    """Largest difference from another process that loads a copy of the merged folder."""
    return _elsewhere(evidence, "moved")


def base_absent(evidence: Evidence) -> Finding:
    """Largest difference from a process that loads the copy while base and other artifacts cannot be opened."""
    return _elsewhere(evidence, "alone")


def adapter_names_base(evidence: Evidence) -> Finding:
    """Whether the adapter names its base by an absolute path, or not at all."""
    named = str(evidence.adapter_config.get("base_model_name_or_path") or "")
    broken = not named or re.match(r"^(/|~|\\|[A-Za-z]:)", named) is not None
    return none_of([f"base_model_name_or_path is {named!r}"] if broken else [])


def relative_differences(left: Embeddings, right: Embeddings) -> Distances:
    """Largest difference in any dimension of each pair of embeddings, relative to the left one's length: (texts,)."""
    if left.shape != right.shape:
        raise VocabgraftError(f"the embeddings have shape {right.shape}, but {left.shape} is expected")
    differences = np.abs(left.astype(np.float64) - right).max(axis=1, initial=0.0)
    lengths = np.linalg.norm(left.astype(np.float64), axis=1)
    # An empty text may have the zero vector.
    relative: Distances = differences / np.where(lengths > 0, lengths, 1.0)
    return relative


def cosine_distances(left: Embeddings, right: Embeddings) -> Distances:
    """1 - cosine of each pair of embeddings: (texts,); 0 if both are zero."""
    first, second = left.astype(np.float64), right.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = (first * second).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)
    both_zero = ~first.any(axis=1) & ~second.any(axis=1)
    return np.where(both_zero, 0.0, np.maximum(0.0, 1 - cosines))


def largest(differences: Differences, floor: float, noise: float = 0.0) -> Finding:
    """Compare the largest difference with its limit; the texts above the limit, worst first.

    Args:
        differences: each with its text.
        floor: lower bound of the limit.
        noise: largest difference of the base after the same change.
    """
    limit = noise_limit(floor, noise)
    worst = sorted(differences, key=lambda entry: -np.nan_to_num(entry[0], nan=np.inf))
    over = [f"{difference:.3g}: {quoted(text)}" for difference, text in worst if not difference <= limit]
    return replace(at_most(_maximum(differences), limit, over), noise=noise)


def rounding_noise(evidence: Evidence, differences: Differences) -> float:
    """The largest difference of the base, limited to what rounding can explain.

    A base whose embeddings depend on padding, for example, has a fault and not noise, which must not excuse the model.
    """
    most, seen = MOST_ROUNDINGS * torch.finfo(evidence.model("base").dtype).eps, _maximum(differences)
    return most if seen > most else seen


def _between(evidence: Evidence, left: Artifact, right: Artifact, lists: Sequence[Sequence[str]]) -> Differences:
    one, other = ([evidence.encode(artifact, texts) for texts in lists] for artifact in (left, right))
    return _differences(lists, one, other)


def _opened(evidence: Evidence) -> list[list[str]]:
    """The lists of texts with a new token, without texts that have it only beyond the model's maximum length."""
    return [
        [text for text, opens in zip(texts, evidence.reads(texts, evidence.new_ids), strict=True) if opens]
        for texts in evidence.probes.new
    ]


def _as_the_base(
    evidence: Evidence, texts: Sequence[str], change: "Callable[[SentenceTransformer], Differences]"
) -> Finding:
    """Compare the effect of a change on the merged model with that on the base.

    With few texts the base may happen to show no difference, so its noise is at least one rounding step of its type.
    """
    found, noise = change(evidence.model("merged")), rounding_noise(evidence, change(evidence.model("base")))
    return largest(found, evidence.params.float32_tolerance, max(noise, _rounding_step(evidence, texts)))


def _rounding_step(evidence: Evidence, texts: Sequence[str]) -> float:
    """One rounding step of an embedding's largest entry in the base's number type, relative to its length."""
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
    """The base's difference in another process; 0 if the base does not load there."""
    lists = evidence.fresh.lists
    try:
        there = evidence.fresh.encodings("base")
    except VocabgraftError:
        return 0.0
    return rounding_noise(evidence, _differences(lists, [evidence.encode("base", texts) for texts in lists], there))


def _rounded_again(model: "SentenceTransformer") -> "SentenceTransformer":
    """A copy of the model with one more rounding error in the weights of its linear layers.

    Each weight moves to the next number of its type, up or down, with the probability that gives the variance of a
    rounding error.
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
    """Largest difference between the ONNX export and the model in torch, both in float32.

    A search with each probe text must also find the same texts.
    """
    model = _in_float32(evidence.model("merged"))
    size, few = evidence.params.batch_size, evidence.probes.few(FEWEST)
    lists = [few.mixed, *(texts for texts in (few.longest_with_new, few.longest_without_new) if texts)]
    searched = [*evidence.probes.with_new, *evidence.probes.without_new]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_onnx_folder(model, folder)
        # Threads that wait for a core spin, so use as many as torch does.
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
    lost = f"searches with {len(searched)} texts keep {agreement.nearest_kept:.3f} of the ten nearest"
    return replace(found, holds=False, details=shown([f"{lost}; needed: {NEAREST_KEPT}", *found.details]))


def _in_float32(model: "SentenceTransformer") -> "SentenceTransformer":
    return model if model.dtype == torch.float32 else copy.deepcopy(model).float()
