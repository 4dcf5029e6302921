"""Which evaluator fits which format, in one table; nothing heavy is imported, so that params.yaml is judged by it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vocabgraft.config.losses import FORMATS, Format, check_arguments


@dataclass(frozen=True)
class EvaluatorEntry:
    """One evaluator: the formats that it fits, and the arguments that params.yaml may give."""

    formats: tuple[Format, ...]
    arguments: tuple[str, ...]
    own_module: str | None = None


_COMMON = ("name", "batch_size", "show_progress_bar", "write_csv")
_SIMILARITY = ("similarity_fn_names",)
_TRUNCATED = (*_COMMON, "truncate_dim")

EVALUATORS: dict[str, EvaluatorEntry] = {
    "InformationRetrievalEvaluator": EvaluatorEntry(
        ("triples", "pairs", "triplets"),
        (
            *_TRUNCATED,
            "corpus_chunk_size",
            "mrr_at_k",
            "ndcg_at_k",
            "accuracy_at_k",
            "precision_recall_at_k",
            "map_at_k",
            "main_score_function",
            "query_prompt",
            "query_prompt_name",
            "corpus_prompt",
            "corpus_prompt_name",
            "write_predictions",
        ),
    ),
    "LinkPredictionEvaluator": EvaluatorEntry(
        ("triples",),
        (
            "name",
            "batch_size",
            "write_csv",
            "scoring",
            "template",
            "inverse_template",
            "similarity",
            "leave_out_query",
            "scores_at_once",
        ),
        own_module="vocabgraft.triples.link_prediction",
    ),
    "TranslationEvaluator": EvaluatorEntry(("triples", "pairs"), (*_TRUNCATED, "print_wrong_matches")),
    "TripletEvaluator": EvaluatorEntry(
        ("triplets", "margins"), (*_TRUNCATED, *_SIMILARITY, "margin", "main_similarity_function")
    ),
    "RerankingEvaluator": EvaluatorEntry(
        ("triplets", "margins"), (*_TRUNCATED, "at_k", "similarity_fct", "use_batched_encoding")
    ),
    "EmbeddingSimilarityEvaluator": EvaluatorEntry(
        ("scored_pairs",), (*_TRUNCATED, *_SIMILARITY, "main_similarity", "precision")
    ),
    "BinaryClassificationEvaluator": EvaluatorEntry(("labelled_pairs",), (*_TRUNCATED, *_SIMILARITY)),
    "LabelAccuracyEvaluator": EvaluatorEntry(("labelled_pairs",), ("name", "batch_size", "write_csv")),
    "ParaphraseMiningEvaluator": EvaluatorEntry(
        ("pairs", "labelled_texts"),
        (*_TRUNCATED, "add_transitive_closure", "query_chunk_size", "corpus_chunk_size", "max_pairs", "top_k"),
    ),
    "MSEEvaluator": EvaluatorEntry(("teacher_embeddings",), (*_COMMON,)),
}


def evaluators_for(dataset_format: Format) -> list[str]:
    """The evaluators that fit a format; the first is the one that is taken where none is named."""
    return [name for name, entry in EVALUATORS.items() if dataset_format in entry.formats]


def default_evaluator(dataset_format: Format, loss: str) -> str:
    """The evaluator of a format where none is named; that of labels in classes follows the loss.

    Raises:
        ValueError: when none fits.
    """
    if loss == "SoftmaxLoss":
        return "LabelAccuracyEvaluator"
    found = evaluators_for(dataset_format)
    if not found:
        have = ", ".join(name for name in FORMATS if evaluators_for(name))
        raise ValueError(f"no evaluator fits the format {dataset_format}; formats that have one: {have}")
    return found[0]


def check_evaluator(dataset_format: Format, loss: str, name: str | None, arguments: Mapping[str, Any]) -> None:
    """Refuse an evaluator that does not exist or does not fit, or an argument that it does not have.

    Raises:
        ValueError: with what is allowed.
    """
    chosen = name or default_evaluator(dataset_format, loss)
    fitting = evaluators_for(dataset_format)
    if chosen not in EVALUATORS:
        raise ValueError(f"there is no evaluator {chosen}; for {dataset_format}: {', '.join(fitting) or 'none'}")
    if chosen not in fitting:
        raise ValueError(
            f"{chosen} does not fit the format {dataset_format}; evaluators that do: {', '.join(fitting) or 'none'}"
        )
    if chosen == "LabelAccuracyEvaluator" and loss != "SoftmaxLoss":
        raise ValueError(f"LabelAccuracyEvaluator asks the classifier of SoftmaxLoss, and the dataset's loss is {loss}")
    check_arguments(chosen, arguments, EVALUATORS[chosen].arguments)
