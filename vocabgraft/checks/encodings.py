"""Checks that one model gives one embedding, however it is loaded, batched and computed.

A difference is that of two embeddings number by number, relative to the embedding's length, so that a limit means the
same for models with and without a Normalize at the end.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vocabgraft.checks.context import Artifact, Evidence
from vocabgraft.checks.isolated import Place
from vocabgraft.checks.result import Finding, at_most, none_of, quoted
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import Embeddings, encode
from vocabgraft.models.extra_modules import custom_modules
from vocabgraft.models.precision import autocast

Distances = np.ndarray[Any, np.dtype[np.float64]]
# A padded text costs what the longest does, and a processor without the instructions emulates bfloat16.
FEWEST = 8


def artifacts_load(evidence: Evidence) -> Finding:
    """Artifacts that do not load as a model."""
    return none_of([str(found) for found in evidence.models.values() if isinstance(found, VocabgraftError)])


def untouched_texts(evidence: Evidence) -> Finding:
    """Largest change of an encoding of a text without a new token, at equal batches."""
    return _same(evidence, "base", "merged", evidence.probes.old, 0)


def reload(evidence: Evidence) -> Finding:
    """Largest difference between the merged model in memory and as loaded from disk."""
    return _same(evidence, "merged in memory", "merged", evidence.probes.all, 0)


def merged_as_adapter(evidence: Evidence) -> Finding:
    """Largest difference between the merged model and the resized base with the adapter."""
    return _same(evidence, "adapter", "merged", evidence.probes.all, evidence.params.merged_tolerance)


def adapter_switch(evidence: Evidence) -> Finding:
    """Largest difference of the adapter disabled from the resized base, and enabled again from before.

    Custom modules are no part of what PEFT disables, so with them only the second is compared.
    """
    model, lists = evidence.model("adapter"), evidence.probes.few(FEWEST).all
    before = [encode(model, texts, evidence.params.batch_size) for texts in lists]
    model.disable_adapters()
    try:
        without = [encode(model, texts, evidence.params.batch_size) for texts in lists]
    finally:
        model.enable_adapters()
    after = [encode(model, texts, evidence.params.batch_size) for texts in lists]
    told = _differences(lists, before, after, "enabled again")
    if not custom_modules(model):
        told += _differences(lists, [evidence.encode("resized", texts) for texts in lists], without, "disabled")
    return _largest(told, evidence.params.float32_tolerance)


def one_at_a_time(evidence: Evidence) -> Finding:
    """Largest difference of texts of all kinds in shared batches from each text alone."""
    texts, model = evidence.probes.few().mixed, evidence.model("merged")
    shared, alone = (encode(model, texts, size) for size in (evidence.params.batch_size, 1))
    return _largest(_differences([texts], [alone], [shared]), evidence.params.float32_tolerance)


def padding(evidence: Evidence) -> Finding:
    """Largest difference of texts padded to the longest probe from each text alone."""
    texts, model = evidence.probes.few(FEWEST).mixed, evidence.model("merged")
    longest = max((text for texts in evidence.probes.all for text in texts), key=len)
    padded = encode(model, [*texts, longest], len(texts) + 1)[:-1]
    return _largest(_differences([texts], [encode(model, texts, 1)], [padded]), evidence.params.float32_tolerance)


def bfloat16(evidence: Evidence) -> Finding:
    """Largest cosine distance of the model computed in bfloat16, as training does it, from the same in float32."""
    texts, model = evidence.probes.few(FEWEST).mixed, evidence.model("merged")
    exact = encode(model, texts, evidence.params.batch_size)
    with autocast("bfloat16", model.device):
        rounded = encode(model, texts, evidence.params.batch_size)
    distances = cosine_distances(exact, rounded)
    return _largest(list(zip(distances.tolist(), texts, strict=True)), evidence.params.bfloat16_tolerance)


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


def _same(evidence: Evidence, left: Artifact, right: Artifact, lists: Sequence[Sequence[str]], limit: float) -> Finding:
    one, other = ([evidence.encode(artifact, texts) for texts in lists] for artifact in (left, right))
    return _largest(_differences(lists, one, other), limit)


def _elsewhere(evidence: Evidence, place: Place) -> Finding:
    lists = evidence.fresh.lists
    here = [evidence.encode("merged", texts) for texts in lists] if lists else []
    return _largest(_differences(lists, here, evidence.fresh.encodings(place)), evidence.params.float32_tolerance)


def _differences(
    lists: Sequence[Sequence[str]], left: Sequence[Embeddings], right: Sequence[Embeddings], label: str = ""
) -> list[tuple[float, str]]:
    prefix = f"{label}: " if label else ""
    return [
        (difference, f"{prefix}{text}")
        for texts, one, other in zip(lists, left, right, strict=True)
        for difference, text in zip(relative_differences(one, other).tolist(), texts, strict=True)
    ]


def _largest(told: Sequence[tuple[float, str]], limit: float) -> Finding:
    """The largest figure, and the texts over the limit, worst first."""
    worst = sorted(
        (entry for entry in told if not entry[0] <= limit), key=lambda entry: -np.nan_to_num(entry[0], nan=np.inf)
    )
    figure = float(np.max([entry[0] for entry in told], initial=0.0))
    return at_most(figure, limit, [f"{difference:.3g}: {quoted(text)}" for difference, text in worst])
