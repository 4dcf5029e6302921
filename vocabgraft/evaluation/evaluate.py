"""The evaluation of a run: base, resized and merged (and the control) on the same texts, and what may be said of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vocabgraft.config.stages import EvaluateModelParams
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.data.beir import Benchmark
from vocabgraft.data.splits import SPLITS
from vocabgraft.evaluation.control import judge_control
from vocabgraft.evaluation.evaluated_model import NewWords, Subject
from vocabgraft.evaluation.graded_retrieval import measure_benchmark
from vocabgraft.evaluation.metrics import SUBSETS, Measurement, compared_items, figures_of, problems_of, verdict_json
from vocabgraft.evaluation.neighbors import describe_tokens
from vocabgraft.evaluation.retention import measure_drift, moved_share, reference_corpus
from vocabgraft.evaluation.retrieval import (
    Retention,
    measure_links,
    measure_retention,
    measure_retrieval,
    measure_similarity,
    tokens_per_text,
)
from vocabgraft.tokens.tokenizer import ExtendedToken, added_tokens

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# The base has no token for a relation, so it reads a description; nor has the control.
WITHOUT_NEW_TOKENS = frozenset({"base", "control"})


@dataclass(frozen=True)
class Questions:
    """What models are asked.

    Attributes:
        datasets: accepted by `validate_data`.
        translations: names of those whose triples are learnt as translations.
        retention: pairs with scores.
        contexts: sentences, for the reference corpus.
        benchmarks: the user's own.
    """

    datasets: Sequence[AcceptedDataset]
    retention: Retention
    translations: frozenset[str] = frozenset()
    contexts: Sequence[str] = ()
    benchmarks: Sequence[Benchmark] = ()

    def texts(self) -> list[str]:
        """Every text but the benchmarks', of which the reference corpus is taken."""
        datasets = [text for dataset in self.datasets for split in SPLITS for text in dataset.texts(split)]
        return [*datasets, *self.retention[0], *self.retention[1], *self.contexts]


@dataclass(frozen=True)
class Evaluation:
    """The figures of `metrics.json`, `comparison.json`, `retention.json` and `tokens.json`, and every main item."""

    metrics: dict[str, dict[str, Any]]
    comparison: dict[str, Any]
    retention: dict[str, Any]
    tokens: dict[str, Any]
    measurements: Sequence[Measurement]

    @property
    def problems(self) -> list[str]:
        """What could not be measured."""
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
        models: `base`, `merged` and others by name; `base` and `control` read a special token that they do not have
            as its description, since that is all that they could have been given.
        questions: what they are asked.
        tokens: those whose rows trained.
        params: the section `evaluate_model`.
        seed: of intervals, tests and the map's sample.

    Raises:
        VocabgraftError: for a dataset of questions without a test row, or a model whose embeddings are no numbers.
    """
    new_words = NewWords(models["merged"].tokenizer, tokens)
    described = [token.new_token for token in added_tokens(tokens)]
    subjects = {
        name: Subject(name, model, new_words, params.batch_size, described if name in WITHOUT_NEW_TOKENS else ())
        for name, model in models.items()
    }
    measured, problems = _measure_benefit(questions, list(subjects.values()), new_words, params.recall_at)
    kept = measure_retention(questions.retention, list(subjects.values()), new_words)
    metrics: dict[str, dict[str, Any]] = {name: {**of} for name, of in figures_of([*measured, kept]).items()}
    for name, subject in subjects.items():
        metrics[name]["tokens_per_text"] = tokens_per_text(subject, questions.datasets)
    corpus = reference_corpus(questions.texts(), params.reference_texts)
    drift = measure_drift(subjects["base"], subjects["merged"], corpus, new_words)
    return Evaluation(
        metrics=metrics,
        comparison={
            "items": compared_items(measured, params.smoke_under, seed),
            "smoke_under": params.smoke_under,
            "problems": problems,
            "control": _control(measured, subjects, corpus, params.smoke_under, seed),
        },
        retention={
            **drift,
            "spearman": _spearman(kept, params.smoke_under, seed),
            "problems": [*problems_of([kept]), *drift["problems"]],
        },
        tokens=describe_tokens(models["merged"], tokens, seed),
        measurements=[*measured, kept],
    )


def item_columns(measurements: Sequence[Measurement]) -> dict[str, list[Any]]:
    """The held-out items of every dataset's main metric, a column of numbers a model: what a paired test needs.

    The number is the reciprocal rank (of a benchmark NDCG@10), 0 to 1, and with a `score` the similarity of the pair.
    """
    columns: dict[str, list[Any]] = {}
    for entry in (entry for entry in measurements if entry.main):
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
        whole = 100 if entry.scores is None else 1
        part |= {name: (values / whole).round(6).tolist() for name, values in entry.values.items()}
        for name, values in part.items():
            columns.setdefault(name, []).extend(values)
    return columns


def gains_for_plots(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """The gains with their intervals as rows of a plot."""
    return [
        {
            "figure": f"{item['dataset']}, {item['subset']}: {item['metric']}",
            **{key: item[key] for key in ("gain", "low", "high", "verdict")},
        }
        for item in comparison["items"]
    ]


def _measure_benefit(
    questions: Questions, subjects: Sequence[Subject], new_words: NewWords, recall_at: int
) -> tuple[list[Measurement], list[str]]:
    measured, problems = list[Measurement](), list[str]()
    for dataset in questions.datasets:
        if dataset.is_retrieval:
            measured += measure_retrieval(dataset, subjects, new_words, recall_at)
        if dataset.format == "triples":
            measured += measure_links(dataset, subjects, new_words, dataset.name in questions.translations)
        if dataset.format != "scored_pairs":
            continue
        if not dataset.rows("test"):
            problems.append(f"{dataset.name} has no test row, so it is not measured; raise its held_out.test")
            continue
        found = measure_similarity(dataset, subjects, new_words)
        measured.append(found)
        problems += problems_of([found], ["all"])
    for benchmark in questions.benchmarks:
        measured += measure_benchmark(benchmark, subjects, new_words)
    return measured, problems


def _spearman(kept: Measurement, smoke_under: int, seed: int) -> dict[str, Any]:
    """What happened to the correlation on the retention pairs, by subset, where it is defined."""
    return {
        subset: {
            **{model: kept.figure(model, subset) for model in ("base", "merged")},
            **verdict_json(kept, comparison, subset, smoke_under),
        }
        for subset in SUBSETS
        if (comparison := kept.compare("base", "merged", subset, seed)) is not None
    }


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
