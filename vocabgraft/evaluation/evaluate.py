"""The evaluation of a run: base, resized, merged (and control) on the same texts, with verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vocabgraft.config.benefits import FIDELITY, RETENTION, SPEARMAN, SUBSETS, TOKENS_PER_TEXT, metrics_of
from vocabgraft.config.stages import EvaluateModelParams
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.data.beir import Benchmark
from vocabgraft.data.splits import SPLITS
from vocabgraft.evaluation.by_token import describe_tokens
from vocabgraft.evaluation.control import judge_control
from vocabgraft.evaluation.evaluated_model import NewWords, Subject
from vocabgraft.evaluation.graded_retrieval import measure_benchmark
from vocabgraft.evaluation.metrics import Measurement, compared_items, figures_of, problems_of, verdict_json
from vocabgraft.evaluation.relations import compare_relations
from vocabgraft.evaluation.retention import measure_drift, moved_share, reference_corpus
from vocabgraft.evaluation.retrieval import (
    Retention,
    measure_links,
    measure_retention,
    measure_retrieval,
    measure_similarity,
    retrieval_set,
)
from vocabgraft.evaluation.searches import benchmark_set, changed_searches
from vocabgraft.evaluation.unlabelled import fidelity_json, held_out_texts, measure_fidelity, measure_tokens
from vocabgraft.models.same_model import differ_in_new_rows_alone
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.tokenizer import ExtendedToken, added_tokens

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# These models have no tokens for relations, so they read descriptions.
WITHOUT_NEW_TOKENS = frozenset({"base", "control"})


@dataclass(frozen=True)
class Questions:
    """The data on which models are evaluated.

    Attributes:
        datasets: datasets accepted by `validate_data`.
        translations: names of datasets whose triples are learned as translations.
        retention: retention pairs with scores.
        contexts: context sentences, for the reference corpus.
        held_out_contexts: contexts that distillation held out.
        benchmarks: the user's benchmarks.
    """

    datasets: Sequence[AcceptedDataset]
    retention: Retention
    translations: frozenset[str] = frozenset()
    contexts: Sequence[str] = ()
    held_out_contexts: Sequence[str] = ()
    benchmarks: Sequence[Benchmark] = ()

    def texts(self) -> list[str]:
        """Every text except those of benchmarks; the reference corpus is chosen from them."""
        datasets = [text for dataset in self.datasets for split in SPLITS for text in dataset.texts(split)]
        return [*datasets, *self.retention[0], *self.retention[1], *self.contexts]


@dataclass(frozen=True)
class Evaluation:
    """The contents of the files `metrics`, `comparison`, `retention`, `tokens`, `searches` and `items`."""

    metrics: dict[str, dict[str, Any]]
    comparison: dict[str, Any]
    retention: dict[str, Any]
    tokens: dict[str, Any]
    searches: list[dict[str, Any]]
    measurements: Sequence[Measurement]

    @property
    def problems(self) -> list[str]:
        """Everything that could not be measured, with reasons."""
        return [*self.comparison["problems"], *self.retention["problems"]]


def evaluate(
    models: "dict[str, SentenceTransformer]",
    questions: Questions,
    tokens: Sequence[ExtendedToken],
    params: EvaluateModelParams,
    seed: int,
) -> Evaluation:
    """Score models on the same texts.

    Args:
        models: `base`, `merged` and others by name; `base` and `control` read the descriptions of special tokens that
            they lack, because a user without these tokens would give them the descriptions.
        questions: the data.
        tokens: tokens whose rows were trained.
        params: the section `evaluate_model`.
        seed: seed of intervals, tests and the map's sample.

    Raises:
        VocabgraftError: for a model whose embeddings are not finite.
    """
    new_words = NewWords(models["merged"].tokenizer, tokens)
    described = [token.new_token for token in added_tokens(tokens)]
    subjects = _subjects(models, new_words, params.batch_size, described)
    measured, problems = _measure_benefit(questions, list(subjects.values()), new_words, params.recall_at)
    kept = measure_retention(questions.retention, list(subjects.values()), new_words)
    corpus = reference_corpus(questions.texts(), params.reference_texts)
    drift = measure_drift(subjects["base"], subjects["merged"], corpus, new_words)
    fidelity, tokens_per_text = _measure_without_labels(questions, subjects, new_words)
    metrics: dict[str, dict[str, Any]] = {name: {} for name in models}
    for name, of_model in figures_of([*measured, kept]).items():
        metrics[name] |= of_model
    for name, entry in ((FIDELITY.dataset, fidelity), (TOKENS_PER_TEXT.dataset, tokens_per_text)):
        for model in models:
            metrics[model][name] = entry.figure(model, "all") if entry and model in entry.values else None
    found = fidelity_json(fidelity, seed)
    return Evaluation(
        metrics=metrics,
        comparison={
            "items": compared_items(measured, params.smoke_under, seed),
            "relations": [
                row
                for dataset in questions.datasets
                if dataset.format == "triples" and dataset.rows("test")
                for row in compare_relations(dataset, measured, seed)
            ],
            "without_labels": {
                FIDELITY.dataset: found,
                TOKENS_PER_TEXT.dataset: _compared(tokens_per_text, "all", params.smoke_under, seed),
            },
            "smoke_under": params.smoke_under,
            "problems": problems + ([] if found else [_why_no_fidelity(fidelity)]),
            "control": _control(measured, subjects, corpus, params.smoke_under, seed),
        },
        retention={
            **drift,
            "spearman": _spearman(kept, params.smoke_under, seed),
            "problems": [*problems_of([kept]), *drift["problems"]],
        },
        tokens=describe_tokens(subjects, tokens, measured, seed),
        searches=_searches(questions, subjects["base"], subjects["merged"], seed),
        measurements=[entry for entry in (*measured, kept, fidelity, tokens_per_text) if entry],
    )


def _subjects(
    models: "dict[str, SentenceTransformer]", new_words: NewWords, batch_size: int, described: Sequence[NewToken]
) -> dict[str, Subject]:
    """The models by name; those that differ from the base only in new rows share its embeddings."""
    base = Subject("base", models["base"], new_words, batch_size, described)
    found = {"base": base}
    for name, model in models.items():
        if name == "base":
            continue
        shared = base if differ_in_new_rows_alone(models["base"], model) else None
        found[name] = Subject(
            name, model, new_words, batch_size, described if name in WITHOUT_NEW_TOKENS else (), shared
        )
    return found


def item_columns(measurements: Sequence[Measurement]) -> dict[str, list[Any]]:
    """The held-out items of every metric with one column of values per model, as paired tests need them.

    A metric in percent is stored as a share of 1 (the reciprocal rank, 1 for a hit). The value of an item with a
    `score` is a similarity. Others are unchanged (a cosine, a number of tokens). A missing value is None.
    """
    columns: dict[str, list[Any]] = {}
    models = list(dict.fromkeys(name for entry in measurements for name in entry.values))
    for entry in measurements:
        count = len(entry.items)
        part: dict[str, list[Any]] = {
            "dataset": [entry.dataset] * count,
            "metric": [entry.metric] * count,
            "item": list(entry.items),
            "answer": list(entry.answers) if entry.answers is not None else [None] * count,
            "group": list(entry.groups),
            "new_word": entry.new_word.tolist(),
            "score": entry.scores.tolist() if entry.scores is not None else [None] * count,
        }
        whole = 100 if entry.percent and entry.scores is None else 1
        part |= {
            name: (entry.values[name] / whole).round(6).tolist() if name in entry.values else [None] * count
            for name in models
        }
        for name, values in part.items():
            columns.setdefault(name, []).extend(values)
    return columns


def key_metrics(found: Evaluation) -> dict[str, float]:
    """The merged model's metrics that fit into one line of `dvc metrics show`; those not measured are left out.

    Returns:
        For each dataset its main metric, on queries with a new word if there are any (`terms_mrr`); fidelity, tokens
        per text, the Spearman correlation of the retention pairs, and the share of stored vectors that stay valid.
    """
    merged = found.metrics["merged"]
    values: dict[str, float | None] = {}
    for entry in found.measurements:
        if entry.main and entry.dataset != RETENTION:
            subset = "new_word" if entry.new_word.any() else "all"
            values[f"{entry.dataset}_{entry.metric}"] = merged[entry.dataset][subset].get(entry.metric)
    values |= {name: merged[name] for name in (FIDELITY.dataset, TOKENS_PER_TEXT.dataset)}
    values |= {RETENTION: merged[RETENTION]["all"].get(SPEARMAN), "valid_share": found.retention.get("valid_share")}
    return {name: value for name, value in values.items() if value is not None}


def gains_for_plots(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """The gains with their intervals as rows of a plot, without the hits of link prediction, which follow its MRR."""
    return [
        {
            "figure": f"{item['dataset']}, {item['subset']}: {item['metric']}",
            **{key: item[key] for key in ("gain", "low", "high", "verdict")},
        }
        for item in comparison["items"]
        if not item["metric"].startswith("link_hits")
    ]


def _measure_benefit(
    questions: Questions, subjects: Sequence[Subject], new_words: NewWords, recall_at: int
) -> tuple[list[Measurement], list[str]]:
    measured, problems = list[Measurement](), list[str]()
    for dataset in (entry for entry in questions.datasets if metrics_of(entry.format, recall_at)):
        if not dataset.rows("test"):
            problems.append(f"{dataset.name} has no test row, so it is not measured; raise its held_out.test")
            continue
        if dataset.is_retrieval:
            measured += measure_retrieval(dataset, subjects, new_words, recall_at)
        if dataset.format == "triples":
            measured += measure_links(dataset, subjects, new_words, dataset.name in questions.translations)
        if dataset.format == "scored_pairs":
            found = measure_similarity(dataset, subjects, new_words)
            measured.append(found)
            problems += problems_of([found], ["all"])
    for benchmark in questions.benchmarks:
        measured += measure_benchmark(benchmark, subjects, new_words)
    return measured, problems


def _searches(questions: Questions, base: Subject, merged: Subject, seed: int) -> list[dict[str, Any]]:
    sets = [retrieval_set(entry) for entry in questions.datasets if entry.is_retrieval and entry.rows("test")]
    sets += [benchmark_set(benchmark) for benchmark in questions.benchmarks]
    return [changed_searches(entry, base, merged, seed) for entry in sets]


def _measure_without_labels(
    questions: Questions, subjects: dict[str, Subject], new_words: NewWords
) -> tuple[Measurement | None, Measurement | None]:
    """Fidelity, and tokens per text."""
    everyone = list(subjects.values())
    held_out = set(questions.held_out_contexts)
    learnt = [text for text in questions.contexts if text not in held_out]
    texts = held_out_texts(questions.datasets, questions.held_out_contexts, learnt)
    test = [text for dataset in questions.datasets for text in dataset.texts("test")]
    return (
        measure_fidelity(subjects["base"], everyone, texts, new_words),
        measure_tokens(everyone, test or questions.held_out_contexts, new_words),
    )


def _why_no_fidelity(measured: Measurement | None) -> str:
    if measured is None:
        return "fidelity: not measured, because no held-out text (test split or held-out context) contains a new word"
    return "fidelity: not measured, because the merged model's embeddings differ from the base's in width"


def _compared(entry: Measurement | None, subset: str, smoke_under: int, seed: int) -> dict[str, Any] | None:
    """The gain of the merged model over the base, with interval, test and verdict."""
    comparison = entry.compare("base", "merged", subset, seed) if entry else None
    if entry is None or comparison is None:
        return None
    models = {model: entry.figure(model, subset) for model in ("base", "merged")}
    return {**models, **verdict_json(entry, comparison, subset, smoke_under)}


def _spearman(kept: Measurement, smoke_under: int, seed: int) -> dict[str, Any]:
    """The change of the correlation on the retention pairs, for each subset in which it is defined."""
    found = {subset: _compared(kept, subset, smoke_under, seed) for subset in SUBSETS}
    return {subset: entry for subset, entry in found.items() if entry}


def _control(
    measured: Sequence[Measurement],
    subjects: dict[str, Subject],
    corpus: Sequence[str],
    smoke_under: int,
    seed: int,
) -> dict[str, Any]:
    if "control" not in subjects:
        return {"trained": False}
    recompute = {name: moved_share(subjects["base"], subjects[name], corpus) for name in ("merged", "control")}
    return judge_control(measured, recompute, smoke_under, seed)
