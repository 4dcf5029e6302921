"""Which evaluator fits which format, in one table. It imports nothing heavy, since params.yaml is checked often."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vocabgraft.config.losses import FORMATS, Format, check_arguments

LIBRARY = "sentence_transformers.sentence_transformer.evaluation"


@dataclass(frozen=True)
class EvaluatorEntry:
    """One evaluator.

    Attributes:
        formats: the formats that it fits.
        filled_in: arguments of the class that the pipeline sets and params.yaml may not.
        module: module of the class.
    """

    formats: tuple[Format, ...]
    filled_in: tuple[str, ...]
    module: str = LIBRARY


EVALUATORS: dict[str, EvaluatorEntry] = {
    "InformationRetrievalEvaluator": EvaluatorEntry(
        ("triples", "pairs", "triplets"), ("queries", "corpus", "relevant_docs", "score_functions")
    ),
    "LinkPredictionEvaluator": EvaluatorEntry(
        ("triples",),
        ("heads", "relations", "tails", "known", "entities", "relation_vectors"),
        module="vocabgraft.triples.link_prediction",
    ),
    "TranslationEvaluator": EvaluatorEntry(("triples", "pairs"), ("source_sentences", "target_sentences")),
    "TripletEvaluator": EvaluatorEntry(
        ("triplets", "margins"), ("anchors", "positives", "negatives", "main_distance_function")
    ),
    "RerankingEvaluator": EvaluatorEntry(("triplets", "margins"), ("samples", "mrr_at_k")),
    "EmbeddingSimilarityEvaluator": EvaluatorEntry(("scored_pairs",), ("sentences1", "sentences2", "scores")),
    "BinaryClassificationEvaluator": EvaluatorEntry(("labelled_pairs",), ("sentences1", "sentences2", "labels")),
    "LabelAccuracyEvaluator": EvaluatorEntry(("labelled_pairs",), ("dataloader", "softmax_model")),
    "ParaphraseMiningEvaluator": EvaluatorEntry(
        ("pairs", "labelled_texts"), ("sentences_map", "duplicates_list", "duplicates_dict")
    ),
    "MSEEvaluator": EvaluatorEntry(
        ("teacher_embeddings",), ("source_sentences", "target_sentences", "teacher_model", "truncate_dim")
    ),
}


def evaluators_for(dataset_format: Format) -> list[str]:
    """The evaluators that fit a format, the default first."""
    return [name for name, entry in EVALUATORS.items() if dataset_format in entry.formats]


def default_evaluator(dataset_format: Format, loss: str) -> str:
    """The default evaluator of a format; for SoftmaxLoss, that of its classifier.

    Raises:
        ValueError: if none fits.
    """
    if loss == "SoftmaxLoss":
        return "LabelAccuracyEvaluator"
    found = evaluators_for(dataset_format)
    if not found:
        have = ", ".join(name for name in FORMATS if evaluators_for(name))
        raise ValueError(f"no evaluator fits the format {dataset_format}; formats that have one: {have}")
    return found[0]


def check_evaluator(dataset_format: Format, loss: str, name: str | None, arguments: Mapping[str, Any]) -> None:
    """Refuse an evaluator that does not exist or does not fit, or an unknown argument.

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
        raise ValueError(
            f"LabelAccuracyEvaluator needs the classifier of SoftmaxLoss, but the dataset's loss is {loss}"
        )
    # Every evaluator takes a batch size: LabelAccuracyEvaluator through its loader, the others as an argument.
    given = {key: value for key, value in arguments.items() if key != "batch_size"}
    check_arguments(chosen, given, EVALUATORS[chosen].module, EVALUATORS[chosen].filled_in)
