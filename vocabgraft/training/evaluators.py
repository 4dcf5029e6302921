"""Builds evaluators from params.yaml, over the validation split of a dataset."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from torch import nn

from vocabgraft.config.datasets import MORE_NEGATIVES
from vocabgraft.config.evaluators import EVALUATORS, LIBRARY, default_evaluator
from vocabgraft.config.losses import LOSSES
from vocabgraft.config.training import EvaluatorParams
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.data.splits import SPLITS
from vocabgraft.errors import VocabgraftError
from vocabgraft.tokens.new_token import relation_token

Arguments = dict[str, Any]


def build_evaluator(
    params: EvaluatorParams, dataset: AcceptedDataset, loss_name: str, loss: nn.Module, batch_size: int
) -> Any:
    """The evaluator of a dataset's validation split; its metrics are named after the dataset.

    Args:
        params: the evaluator's class and arguments, checked by `vocabgraft.config.evaluators.check_evaluator`.
        dataset: with the validation split to evaluate on.
        loss_name: of the dataset; it selects the evaluator of labels.
        loss: of the dataset, whose classifier LabelAccuracyEvaluator uses.
        batch_size: used if params gives none.

    Raises:
        VocabgraftError: for a split without rows, or a value that the evaluator refuses.
    """
    name = params.name or default_evaluator(dataset.format, loss_name)
    place = f"train_adapter.evaluators: {name} of {dataset.name}"
    if not dataset.rows("validation"):
        raise VocabgraftError(
            f"{place} has no rows to evaluate on; raise held_out.validation or give files.validation, or take it out"
        )
    defaults = {"name": dataset.name, "batch_size": batch_size, "write_csv": False}
    if name == "LinkPredictionEvaluator":
        # A relation as in the loss: a vector to add, or a word of a query.
        is_translation = LOSSES[loss_name].reads == "triple"
        defaults |= {"scoring": "translation" if is_translation else "text", "template": dataset.template}
    options = defaults | {key: _value(key, value) for key, value in params.arguments.items()}
    try:
        return _class(name)(**BUILDERS[name](dataset, loss, options))
    except (ValueError, TypeError, AssertionError) as error:
        raise VocabgraftError(f"{place} cannot be built: {error}; see its arguments") from error


def _class(name: str) -> Any:
    if EVALUATORS[name].module != LIBRARY:
        # Imported by name, so that the code deps in dvc.yaml can be derived from the imports.
        from vocabgraft.triples import link_prediction

        return link_prediction.LinkPredictionEvaluator
    from sentence_transformers.sentence_transformer import evaluation

    return getattr(evaluation, name)


def _value(name: str, value: Any) -> Any:
    from sentence_transformers import util

    return getattr(util, str(value), value) if name == "similarity_fct" else value


def _retrieval(dataset: AcceptedDataset, loss: nn.Module, options: Arguments) -> Arguments:
    """The validation queries over the documents of every split except the test split, which no choice may use."""
    documents = dict.fromkeys(answer for split in SPLITS if split != "test" for _, answer in dataset.pairs(split))
    ids = {text: f"d{number}" for number, text in enumerate(documents)}
    pairs, groups = dataset.pairs("validation"), dataset.groups("validation")
    answers: dict[str, set[str]] = {}
    for group, (question, answer) in zip(groups, pairs, strict=True):
        answers.setdefault(question if dataset.format == "triples" else group, set()).add(ids[answer])
    keys = {
        question: question if dataset.format == "triples" else group
        for group, (question, _) in zip(groups, pairs, strict=True)
    }
    return options | {
        "queries": {f"q{number}": question for number, question in enumerate(keys)},
        "corpus": {key: text for text, key in ids.items()},
        "relevant_docs": {f"q{number}": answers[key] for number, key in enumerate(keys.values())},
    }


def _link_prediction(dataset: AcceptedDataset, loss: nn.Module, options: Arguments) -> Arguments:
    """The validation triples among all known triples except the test split's, which no choice may use."""
    columns = {split: _with_tokens(dataset.columns(split)) for split in SPLITS if split != "test"}
    asked = columns["validation"]
    known = {name: [text for split in columns.values() for text in split[name]] for name in asked}
    return options | {"heads": asked["head"], "relations": asked["relation"], "tails": asked["tail"], "known": known}


def _with_tokens(columns: dict[str, list[str]]) -> dict[str, list[str]]:
    return columns | {"relation": [relation_token(name) for name in columns["relation"]]}


def _translation(dataset: AcceptedDataset, loss: nn.Module, options: Arguments) -> Arguments:
    questions, answers = zip(*dataset.pairs("validation"), strict=True)
    return options | {"source_sentences": list(questions), "target_sentences": list(answers)}


def _triplets(dataset: AcceptedDataset, loss: nn.Module, options: Arguments) -> Arguments:
    rows = _rows_with_negatives(dataset)
    # One triplet per negative.
    flat = [(query, positive, negative) for query, positive, negatives in rows for negative in negatives]
    anchors, positives, negatives = zip(*flat, strict=True)
    return options | {"anchors": list(anchors), "positives": list(positives), "negatives": list(negatives)}


def _reranking(dataset: AcceptedDataset, loss: nn.Module, options: Arguments) -> Arguments:
    samples: dict[str, dict[str, Any]] = {}
    for query, positive, negatives in _rows_with_negatives(dataset):
        sample = samples.setdefault(query, {"query": query, "positive": [], "negative": []})
        sample["positive"] += [positive] if positive not in sample["positive"] else []
        sample["negative"] += [text for text in negatives if text not in sample["negative"]]
    return options | {"samples": list(samples.values())}


def _rows_with_negatives(dataset: AcceptedDataset) -> list[tuple[str, str, Sequence[str]]]:
    columns = dataset.columns("validation")
    names = ["negative", *(name for name in MORE_NEGATIVES if name in columns)]
    negatives = zip(*(columns[name] for name in names), strict=True)
    first = columns["anchor" if dataset.format == "triplets" else "query"]
    return list(zip(first, columns["positive"], negatives, strict=True))


def _similarity(dataset: AcceptedDataset, loss: nn.Module, options: Arguments) -> Arguments:
    columns = dataset.columns("validation")
    given = {"sentences1": columns["sentence1"], "sentences2": columns["sentence2"], "scores": columns["score"]}
    return options | given


def _classification(dataset: AcceptedDataset, loss: nn.Module, options: Arguments) -> Arguments:
    columns = dataset.columns("validation")
    if not set(columns["label"]) <= {0, 1}:
        raise ValueError("it distinguishes labels 0 and 1, but there are more; use LabelAccuracyEvaluator")
    return options | {
        "sentences1": columns["sentence1"],
        "sentences2": columns["sentence2"],
        "labels": columns["label"],
    }


def _label_accuracy(dataset: AcceptedDataset, loss: nn.Module, options: Arguments) -> Arguments:
    from sentence_transformers import InputExample
    from sentence_transformers.sentence_transformer.losses import SoftmaxLoss
    from torch.utils.data import DataLoader

    columns = dataset.columns("validation")
    rows = zip(columns["sentence1"], columns["sentence2"], columns["label"], strict=True)
    examples: Any = [InputExample(texts=[first, second], label=label) for first, second, label in rows]
    options = dict(options)
    loader = DataLoader(examples, batch_size=options.pop("batch_size"))
    classifier = next(module for module in loss.modules() if isinstance(module, SoftmaxLoss))
    return options | {"dataloader": loader, "softmax_model": classifier}


def _paraphrases(dataset: AcceptedDataset, loss: nn.Module, options: Arguments) -> Arguments:
    """Texts of one pair, or of one label, are paraphrases."""
    if dataset.format == "pairs":
        alike = dataset.pairs("validation")
    else:
        columns = dataset.columns("validation")
        of_label: dict[int, list[str]] = {}
        for text, label in zip(columns["text"], columns["label"], strict=True):
            of_label.setdefault(label, []).append(text)
        alike = [pair for texts in of_label.values() for pair in pairwise(texts)]
        # Only neighboring pairs are given; the evaluator adds the other pairs of each label.
        options = {"add_transitive_closure": True} | options
    ids = {text: f"t{number}" for number, text in enumerate(dict.fromkeys(dataset.texts("validation")))}
    return options | {
        "sentences_map": {key: text for text, key in ids.items()},
        "duplicates_list": [(ids[left], ids[right]) for left, right in alike],
    }


class StoredTeacher:
    """Stored teacher embeddings with the interface of a model."""

    def __init__(self, embeddings: Sequence[Sequence[float]]) -> None:
        """Store embeddings, one per text."""
        self.embeddings = np.asarray(embeddings, dtype=np.float32)

    def encode(self, sentences: Sequence[str], **options: Any) -> "np.ndarray[Any, Any]":
        """The stored embeddings of these texts."""
        if len(sentences) != len(self.embeddings):
            raise ValueError(f"{len(sentences)} texts have {len(self.embeddings)} stored embeddings")
        return self.embeddings


def _distance(dataset: AcceptedDataset, loss: nn.Module, options: Arguments) -> Arguments:
    columns = dataset.columns("validation")
    teacher = StoredTeacher(columns["embedding"])
    return options | {
        "source_sentences": columns["text"],
        "target_sentences": columns["text"],
        "teacher_model": teacher,
    }


BUILDERS: dict[str, Callable[[AcceptedDataset, nn.Module, Arguments], Arguments]] = {
    "InformationRetrievalEvaluator": _retrieval,
    "LinkPredictionEvaluator": _link_prediction,
    "TranslationEvaluator": _translation,
    "TripletEvaluator": _triplets,
    "RerankingEvaluator": _reranking,
    "EmbeddingSimilarityEvaluator": _similarity,
    "BinaryClassificationEvaluator": _classification,
    "LabelAccuracyEvaluator": _label_accuracy,
    "ParaphraseMiningEvaluator": _paraphrases,
    "MSEEvaluator": _distance,
}
