"""Metrics without labeled data: fidelity to the base, and tokens per text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vocabgraft.config.benefits import FIDELITY, TOKENS_PER_TEXT
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.evaluation.evaluated_model import NewWords, Subject
from vocabgraft.evaluation.metrics import Measurement
from vocabgraft.evaluation.retention import cosines_of
from vocabgraft.evaluation.significance import Array, compare_means


def held_out_texts(
    datasets: Sequence[AcceptedDataset], contexts: Sequence[str], learnt: Sequence[str] = ()
) -> list[str]:
    """The distinct texts on which nothing was trained.

    Args:
        datasets: datasets whose test splits are used, without the texts of their train splits.
        contexts: contexts that distillation held out.
        learnt: the other contexts, which may be texts of a test split.
    """
    texts = dict.fromkeys(text for dataset in datasets for text in dataset.texts("test"))
    texts.update(dict.fromkeys(contexts))
    for dataset in datasets:
        for block in dataset.text_blocks("train"):
            for text in block:
                texts.pop(text, None)
    for text in learnt:
        texts.pop(text, None)
    return list(texts)


def measure_fidelity(
    base: Subject, subjects: Sequence[Subject], texts: Sequence[str], new_words: NewWords
) -> Measurement | None:
    """The cosine of each text's embedding to the base's embedding, for texts with a new word.

    A model whose embeddings differ from the base's in width has no value.

    Returns:
        None if no text contains a new word.
    """
    chosen = [text for text, held in zip(texts, new_words.held(texts), strict=True) if held]
    if not chosen:
        return None
    goals = base.encode(chosen, "document")
    values = {
        subject.name: cosines_of(goals, found)
        for subject in subjects
        if (found := subject.encode(chosen, "document")).shape == goals.shape
    }
    return _measured(FIDELITY.dataset, FIDELITY.metric, chosen, np.ones(len(chosen), dtype=bool), values)


def measure_tokens(subjects: Sequence[Subject], texts: Sequence[str], new_words: NewWords) -> Measurement | None:
    """The number of tokens of each text; fewer are better. None without texts."""
    if not texts:
        return None
    values = {subject.name: subject.token_counts(texts) for subject in subjects}
    return _measured(TOKENS_PER_TEXT.dataset, TOKENS_PER_TEXT.metric, texts, new_words.held(texts), values)


def fidelity_json(measured: Measurement | None, seed: int) -> dict[str, Any] | None:
    """The mean fidelity of the merged model (as `gain`) with its 95 % interval; None if it was not measured.

    The interval is over texts, not over words, because another sample of texts would contain the same vocabulary.
    """
    if measured is None or "merged" not in measured.values:
        return None
    values = 100 * measured.values["merged"]
    found = compare_means(np.zeros_like(values), values, measured.groups, seed)
    return {
        **{name: round(getattr(found, name) / 100, 8) for name in ("gain", "low", "high", "standard_error")},
        "p_value": found.p_value,
        "queries": len(measured.items),
        "groups": len(set(measured.groups)),
    }


def _measured(
    dataset: str,
    metric: str,
    texts: Sequence[str],
    new_word: "np.ndarray[Any, np.dtype[np.bool_]]",
    values: dict[str, Array],
) -> Measurement:
    return Measurement(
        dataset=dataset,
        metric=metric,
        items=texts,
        # A text that occurs twice is one group, because its values are not independent.
        groups=texts,
        new_word=new_word,
        values=values,
        counted="texts",
        percent=False,
        lower_is_better=metric == TOKENS_PER_TEXT.metric,
    )
