"""Compares a new model with the champion on the same held-out items, recorded or measured again."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq

from tasks.registry.lineage import BASE_TAG
from tasks.registry.lookup import Client, Registered, download_model
from tasks.registry.register import artifact_of
from vocabgraft.config.benefits import LINK_METRICS, SPEARMAN, TOKENS, WITHOUT_LABELS, Benefit
from vocabgraft.config.stages import PromptParams
from vocabgraft.data.accepted import read_datasets
from vocabgraft.data.beir import read_benchmarks
from vocabgraft.errors import VocabgraftError
from vocabgraft.evaluation.evaluated_model import NewWords, Subject
from vocabgraft.evaluation.graded_retrieval import measure_benchmark
from vocabgraft.evaluation.metrics import Measurement, figures_of
from vocabgraft.evaluation.retention import cosines_of
from vocabgraft.evaluation.retrieval import measure_links, measure_retrieval, measure_similarity
from vocabgraft.evaluation.significance import Array, Comparison
from vocabgraft.model_folder.remote_code import code_hashes
from vocabgraft.models.base import load_model, prompts_of
from vocabgraft.storage.artifacts import read_json
from vocabgraft.tokens.tokenizer import added_tokens, read_tokens

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)

ITEMS, METRICS = "items.parquet", "metrics.json"
ITEMS_TAG, WIDTH_TAG = "test_items_digest", "embedding_width"
MEASURED_AGAIN = "measured again, because the held-out items have changed"


@dataclass(frozen=True)
class Rival:
    """The champion in comparison with a new model.

    Attributes:
        version: the champion's version.
        benefit: the metric that is compared.
        gain: gain of the new model over the champion, with its interval; None if they could not be compared.
        how: where the champion's values come from, or why there are none.
        items: number of held-out items on which both were scored.
        figures: the champion's metrics on these items, by dataset, subset and metric.
    """

    version: int
    benefit: Benefit
    gain: Comparison | None
    how: str
    items: int = 0
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """The new model.

    Attributes:
        merged: folder of the merged model.
        evaluation: output folder of evaluate_model.
        datasets: folder of the accepted datasets; the benchmarks are beside it.
        tokens: file of its new tokens.
        find_base: function that gives the folder of its base, for fidelity.
        prompts: prompts that replace the base's own.
        translations: names of the datasets whose triples are learned as translations.
        tags: tags of its version.
        batch_size: batch size of the encoding.
        seed: seed of the intervals.
        trust_remote_code: whether its own code may run.
    """

    merged: Path
    evaluation: Path
    datasets: Path
    tokens: Path
    find_base: Callable[[], Path]
    prompts: PromptParams
    translations: frozenset[str]
    tags: Mapping[str, str]
    batch_size: int
    seed: int
    trust_remote_code: bool = False


def compare_with_champion(client: Client, champion: Registered, candidate: Candidate, benefit: Benefit) -> Rival:
    """The gain of a new model over the champion on the same held-out items.

    Uses the champion's recorded values if it was scored on the same items; otherwise loads it and scores it again.
    """
    try:
        items = candidate.evaluation / ITEMS
        found = compare_recorded(client, champion, items, candidate.tags, benefit, candidate.seed)
        return found or _measure_again(champion, candidate, benefit)
    except VocabgraftError as error:
        logger.warning("warning: version %d, the champion, could not be compared: %s", champion.version, error)
        return Rival(champion.version, benefit, None, f"could not be compared: {error}")


def with_widths(rival: Rival, champion: Registered, registered: Registered) -> Rival:
    """Add a warning if the two have different widths: metrics are comparable, stored vectors are not."""
    before, after = (version.tags.get(WIDTH_TAG) for version in (champion, registered))
    if None in (before, after) or before == after:
        return rival
    told = f"its vectors have width {before} and this model's {after}, so every text must be encoded again"
    logger.warning("warning: version %d, the champion: %s", champion.version, told)
    return replace(rival, how=f"{rival.how}; {told}")


def compare_recorded(
    client: Client, champion: Registered, items: Path, tags: Mapping[str, str], benefit: Benefit, seed: int
) -> Rival | None:
    """Compare by the recorded items of both models.

    Args:
        client: client of the registry.
        champion: the champion; its items come from its run.
        items: `items.parquet` of the other model.
        tags: tags of the other model's version: digest of its examples, which give its documents, and its base.
        benefit: the metric.
        seed: seed of the interval.

    Returns:
        None if the champion's items are missing or differ.
    """
    same = [ITEMS_TAG] if benefit.depends_on_documents else [BASE_TAG] if benefit.rule == "fidelity" else []
    if any(champion.tags.get(tag) != tags.get(tag, "") for tag in same):
        return None
    with artifact_of(client, champion, ITEMS) as path:
        theirs = _items(path, benefit) if path else None
    ours = _items(items, benefit)
    columns = ("item", "answer", "group", "score")
    if theirs is None or any(theirs[name] != ours[name] for name in columns):
        return None
    with artifact_of(client, champion, METRICS) as path:
        figures = read_json(path)["merged"] if path else {}
    measured = _beside(ours, _values(theirs, benefit), benefit)
    return _rival(champion.version, benefit, measured, seed, "recorded on the same items", figures)


def _rival(
    version: int, benefit: Benefit, measured: Measurement, seed: int, how: str, figures: Mapping[str, Any]
) -> Rival:
    """Compare `champion` and `merged` on items that all belong to the benefit's subset."""
    if why := measured.undefined("all"):
        return Rival(version, benefit, None, f"could not be compared on {benefit}, because {why}", figures=figures)
    gain = measured.compare("champion", "merged", "all", seed)
    return Rival(version, benefit, gain, how, len(measured.items), figures)


IN_SUBSET: Mapping[str, tuple[bool, ...]] = {"all": (True, False), "new_word": (True,), "no_new_word": (False,)}
Columns = dict[str, list[Any]]


def _items(path: Path, benefit: Benefit) -> Columns:
    """The columns of the benefit's items."""
    rows = [
        row
        for row in pq.read_table(path).to_pylist()
        if (row["dataset"], row["metric"]) == (benefit.dataset, benefit.metric)
        and row["new_word"] in IN_SUBSET[benefit.subset]
        # A model whose width differs from the base's has no fidelity.
        and row["merged"] is not None
    ]
    return {name: [row[name] for row in rows] for name in ("item", "answer", "group", "score", "merged")}


def _values(items: Columns, benefit: Benefit) -> Array:
    """The value of each item in the metric's unit; shares become percent."""
    return np.array(items["merged"], dtype=np.float64) * (100 if benefit.depends_on_documents else 1)


def _beside(ours: Columns, champions: Array, benefit: Benefit) -> Measurement:
    """The new model's recorded items, with the values of both models."""
    scores = np.array(ours["score"], dtype=np.float64) if benefit.metric == SPEARMAN else None
    return Measurement(
        dataset=benefit.dataset,
        metric=benefit.metric,
        items=ours["item"],
        groups=ours["group"],
        new_word=np.ones(len(ours["item"]), dtype=bool),
        values={"champion": champions, "merged": _values(ours, benefit)},
        scores=scores,
        lower_is_better=benefit.metric == TOKENS,
    )


def _measure_again(champion: Registered, candidate: Candidate, benefit: Benefit) -> Rival:
    """Score the champion on the current held-out items."""
    new_words = NewWords(_load(candidate).tokenizer, read_tokens(candidate.tokens))
    rival = _champion(champion, candidate, new_words)
    if benefit.dataset in WITHOUT_LABELS:
        ours = _items(candidate.evaluation / ITEMS, benefit)
        measured = _beside(ours, _champion_values(rival, ours, candidate, benefit), benefit)
        return _rival(champion.version, benefit, measured, candidate.seed, MEASURED_AGAIN, {})
    both = [rival, Subject("merged", _load(candidate), new_words, candidate.batch_size)]
    found = _measure(candidate, both, new_words, benefit)
    chosen = next(entry for entry in found if entry.metric == benefit.metric)
    rows = chosen.rows(benefit.subset)
    gain = chosen.compare("champion", "merged", benefit.subset, candidate.seed)
    how = MEASURED_AGAIN if gain else f"could not be compared on {benefit}, because {chosen.undefined(benefit.subset)}"
    return Rival(champion.version, benefit, gain, how, int(rows.sum()), figures_of(found)["champion"])


def _load(candidate: Candidate) -> "SentenceTransformer":
    trusted = candidate.trust_remote_code
    return load_model(candidate.merged, device="cpu", own_modules=True, trust_remote_code=trusted)


def _champion(champion: Registered, candidate: Candidate, new_words: NewWords) -> Subject:
    """The champion. Relations whose tokens it lacks are replaced with their descriptions, as for a base."""
    model = load_champion(download_model(f"models:/{champion.name}/{champion.version}"), candidate)
    known = model.tokenizer.get_vocab()
    described = [token.new_token for token in added_tokens(new_words.tokens) if token.text not in known]
    return Subject("champion", model, new_words, candidate.batch_size, described)


def load_champion(folder: Path, candidate: Candidate) -> "SentenceTransformer":
    """Load the champion. Its code runs only if the new model has it too, because the setting is for this run's base."""
    trusted = candidate.trust_remote_code and set(code_hashes(folder).values()) <= set(
        code_hashes(candidate.merged).values()
    )
    return load_model(folder, device="cpu", own_modules=True, trust_remote_code=trusted)


def _measure(
    candidate: Candidate, subjects: Sequence[Subject], new_words: NewWords, benefit: Benefit
) -> list[Measurement]:
    """Measure the metrics of the benefit's dataset or benchmark, the benefit's among them."""
    dataset = next((entry for entry in read_datasets(candidate.datasets) if entry.name == benefit.dataset), None)
    if dataset is None:
        benchmarks = read_benchmarks(candidate.datasets.parent / "benchmarks")
        benchmark = next((entry for entry in benchmarks if entry.name == benefit.dataset), None)
        if benchmark is None:
            raise VocabgraftError(f"the accepted data has neither a dataset nor a benchmark {benefit.dataset}")
        return measure_benchmark(benchmark, subjects, new_words)
    if benefit.metric == SPEARMAN:
        return [measure_similarity(dataset, subjects, new_words)]
    if benefit.metric in LINK_METRICS:
        return measure_links(dataset, subjects, new_words, dataset.name in candidate.translations)
    recall_at = int(benefit.metric.partition("@")[2] or 10)
    return measure_retrieval(dataset, subjects, new_words, recall_at)


def _champion_values(champion: Subject, ours: Columns, candidate: Candidate, benefit: Benefit) -> Array:
    """The champion's value on each of the new model's items.

    Raises:
        VocabgraftError: if its width differs from the base's, or the base cannot be found.
    """
    if benefit.metric == TOKENS:
        return champion.token_counts(ours["item"])
    if benefit.metric == SPEARMAN:
        pairs = (champion.encode(ours[name]) for name in ("item", "answer"))
        return champion.similarities_of_pairs(*pairs).astype(np.float64).round(6)
    trusted = candidate.trust_remote_code
    base = load_model(candidate.find_base(), device="cpu", trust_remote_code=trusted)
    base.prompts = prompts_of(base.prompts, candidate.prompts)
    described = [token.new_token for token in added_tokens(champion.new_words.tokens)]
    reader = Subject("base", base, champion.new_words, candidate.batch_size, described)
    goals, found = (subject.encode(ours["item"], "document") for subject in (reader, champion))
    if goals.shape != found.shape:
        raise VocabgraftError(
            f"its embeddings have width {found.shape[1]} and the base's {goals.shape[1]}, so it has no fidelity"
        )
    return cosines_of(goals, found)
