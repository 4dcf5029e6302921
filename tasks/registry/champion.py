"""The champion and a new model on the same held-out items: from what was recorded, else measured anew."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from tasks.registry.lookup import Client, Registered, download_model
from tasks.registry.register import artifact_of
from vocabgraft.data.accepted import read_datasets
from vocabgraft.errors import VocabgraftError
from vocabgraft.evaluation.evaluated_model import NewWords, Subject
from vocabgraft.evaluation.metrics import Measurement, figures_of
from vocabgraft.evaluation.retrieval import measure_retrieval, measure_similarity
from vocabgraft.evaluation.significance import Array, Comparison, compare_correlations, compare_means
from vocabgraft.models.base import load_model
from vocabgraft.models.remote_code import code_hashes
from vocabgraft.storage.artifacts import read_json
from vocabgraft.tokens.tokenizer import added_tokens, read_tokens

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

ITEMS, METRICS = "items.parquet", "metrics.json"
ITEMS_TAG, WIDTH_TAG = "test_items_digest", "embedding_width"


@dataclass(frozen=True)
class Benefit:
    """The figure that promotion is decided by: DATASET.SUBSET.METRIC of evaluate_model."""

    dataset: str
    subset: str
    metric: str


@dataclass(frozen=True)
class Rival:
    """The champion beside a new model.

    Attributes:
        version: its number.
        gain: of the new model over it, with its interval; None where it could not be compared.
        how: where the champion's values come from, or why there are none.
        figures: the champion's, by dataset, subset and metric, on the same items.
    """

    version: int
    gain: Comparison | None
    how: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """The new model: where it lies, what was measured of it, on what, and whether its own code may run."""

    merged: Path
    evaluation: Path
    datasets: Path
    tokens: Path
    items_digest: str
    batch_size: int
    seed: int
    trust_remote_code: bool = False


def compare_with_champion(client: Client, champion: Registered, candidate: Candidate, benefit: Benefit) -> Rival:
    """What a new model gains over the champion on the same held-out items.

    The champion's own recorded items count where it was asked the same; else the champion is loaded and asked anew.
    """
    try:
        items = candidate.evaluation / ITEMS
        found = compare_recorded(client, champion, items, candidate.items_digest, benefit, candidate.seed)
        return found or _measured_anew(champion, candidate, benefit)
    except VocabgraftError as error:
        logger.warning("warning: version %d, the champion, could not be compared: %s", champion.version, error)
        return Rival(champion.version, None, f"could not be compared: {error}")


def with_widths(rival: Rival, champion: Registered, registered: Registered) -> Rival:
    """Say it where the two embed in different widths: figures compare, stored vectors do not."""
    before, after = (version.tags.get(WIDTH_TAG) for version in (champion, registered))
    if None in (before, after) or before == after:
        return rival
    told = f"its vectors have {before} numbers and this model's {after}, so every stored vector must be made again"
    logger.warning("warning: version %d, the champion: %s", champion.version, told)
    return replace(rival, how=f"{rival.how}; {told}")


def compare_recorded(
    client: Client, champion: Registered, items: Path, items_digest: str, benefit: Benefit, seed: int
) -> Rival | None:
    """By the items that both models left.

    Args:
        client: of the registry.
        champion: whose items are taken from its run.
        items: `items.parquet` of the other model.
        items_digest: of the examples that it was asked; its documents come from all of them.
        benefit: the figure.
        seed: of the interval.

    Returns:
        None where the champion's items are missing, or others.
    """
    if champion.tags.get(ITEMS_TAG) != items_digest:
        return None
    with artifact_of(client, champion, ITEMS) as path:
        theirs = _items(path, benefit) if path else None
    ours = _items(items, benefit)
    asked = ("item", "answer", "group", "score")
    if theirs is None or any(theirs[name] != ours[name] for name in asked):
        return None
    with artifact_of(client, champion, METRICS) as path:
        figures = read_json(path)["merged"] if path else {}
    before, after = (_values(found["merged"], benefit.metric) for found in (theirs, ours))
    if benefit.metric == "spearman":
        gain = compare_correlations(before, after, np.array(ours["score"], dtype=np.float64), ours["group"], seed)
    else:
        gain = compare_means(before, after, ours["group"], seed)
    return Rival(champion.version, gain, "recorded on the same items", figures)


def _items(path: Path, benefit: Benefit) -> dict[str, list[Any]]:
    """The columns of the benefit's items."""
    rows = [
        row
        for row in pq.read_table(path).to_pylist()
        if row["dataset"] == benefit.dataset and row["new_word"] in IN_SUBSET[benefit.subset]
    ]
    return {name: [row[name] for row in rows] for name in ("item", "answer", "group", "score", "merged")}


IN_SUBSET: Mapping[str, tuple[bool, ...]] = {"all": (True, False), "new_word": (True,), "no_new_word": (False,)}


def _values(column: list[float], metric: str) -> Array:
    """The metric of each item from what is written down of it: a reciprocal rank, or the similarity of a pair."""
    values = np.array(column, dtype=np.float64)
    if metric == "spearman":
        return values
    if metric == "mrr":
        return 100 * values
    # Written with six places, so that 1/3 is a little less than a third.
    return np.where(values >= 1 / int(metric.partition("@")[2]) - 1e-6, 100.0, 0.0)


def _measured_anew(champion: Registered, candidate: Candidate, benefit: Benefit) -> Rival:
    """By asking both models today's held-out items."""
    merged = load_model(candidate.merged, device="cpu", own_modules=True, trust_remote_code=candidate.trust_remote_code)
    model = load_champion(download_model(f"models:/{champion.name}/{champion.version}"), candidate)
    tokens = read_tokens(candidate.tokens)
    new_words = NewWords(merged.tokenizer, tokens)
    known = model.tokenizer.get_vocab()
    # Relations that the champion has no token for are put to it as to a base: in words.
    described = [token.new_token for token in added_tokens(tokens) if token.text not in known]
    subjects = [
        Subject("champion", model, new_words, candidate.batch_size, described),
        Subject("merged", merged, new_words, candidate.batch_size),
    ]
    measured = _ask(candidate.datasets, subjects, new_words, benefit)
    gain = next(entry for entry in measured if entry.metric == benefit.metric).compare(
        "champion", "merged", benefit.subset, candidate.seed
    )
    how = "measured anew, since the held-out items are others by now"
    return Rival(champion.version, gain, how, figures_of(measured)["champion"])


def load_champion(folder: Path, candidate: Candidate) -> "SentenceTransformer":
    """The champion; of its code runs only what the new model has too, since the setting is of this run's base."""
    trusted = candidate.trust_remote_code and set(code_hashes(folder).values()) <= set(
        code_hashes(candidate.merged).values()
    )
    return load_model(folder, device="cpu", own_modules=True, trust_remote_code=trusted)


def _ask(datasets: Path, subjects: list[Subject], new_words: NewWords, benefit: Benefit) -> list[Measurement]:
    dataset = next(entry for entry in read_datasets(datasets) if entry.name == benefit.dataset)
    if benefit.metric == "spearman":
        return [measure_similarity(dataset, subjects, new_words)]
    recall_at = int(benefit.metric.partition("@")[2] or 10)
    return measure_retrieval(dataset, subjects, new_words, recall_at)
