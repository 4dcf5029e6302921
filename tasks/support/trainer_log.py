"""The trainer's log: its metric names, known before training, and its loss curves."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vocabgraft.config.datasets import COLUMNS, LABELS, NUMBERS, VECTORS, DatasetParams
from vocabgraft.config.training import EvaluatorParams
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.errors import VocabgraftError
from vocabgraft.storage.artifacts import new_folder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ROWS, DIMENSION = 4, 8


def losses_of(datasets: Sequence[DatasetParams]) -> list[str]:
    """Names of the validation losses: one per dataset with a validation split, and their mean weighted by rows."""
    own = [f"eval_{dataset.name}_loss" for dataset in datasets if dataset.has_validation]
    return ["eval_loss", *own] if own else []


def metrics_of(
    evaluators: Sequence[EvaluatorParams], datasets: Sequence[DatasetParams], similarity: str | None = None
) -> list[str]:
    """Names of the evaluators' metrics, as the trainer logs them.

    Each evaluator runs once on a few artificial rows and a model of ten words. That gives the names and also finds
    arguments that a class refuses. A `*` in a name stands for any relation of the data.

    Args:
        evaluators: the evaluators in params.yaml.
        datasets: the datasets that they name.
        similarity: the base's similarity function, part of most names; None for the library's default.

    Raises:
        VocabgraftError: if an evaluator cannot be built or run with its arguments.
    """
    from torch import nn

    from vocabgraft.training.evaluators import build_evaluator

    by_name = {dataset.name: dataset for dataset in datasets}
    found: dict[str, float] = {}
    model = _tiny_model(similarity, evaluators)
    with tempfile.TemporaryDirectory() as scratch:
        for number, entry in enumerate(evaluators):
            dataset = by_name[entry.dataset]
            rows = _made_up(dataset, Path(scratch) / str(number))
            loss_name = dataset.chosen_loss.name
            loss = _softmax_loss(model) if loss_name == "SoftmaxLoss" else nn.Identity()
            evaluator = build_evaluator(entry, rows, loss_name, loss, ROWS)
            try:
                found |= evaluator(model)
            except Exception as error:
                raise VocabgraftError(
                    f"train_adapter.evaluators.{number} cannot run: {type(error).__name__}: {error}; see its arguments"
                ) from error
    # The trainer wraps the evaluators in a SequentialEvaluator, which adds this score.
    return [name if name.startswith("eval_") else f"eval_{name}" for name in (*found, "sequential_score")]


def _tiny_model(similarity: str | None, evaluators: Sequence[EvaluatorParams]) -> "SentenceTransformer":
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).normal(size=(len(vocabulary), DIMENSION)).astype(np.float32)
    # The base's own prompts are unknown without loading it.
    prompts = {
        value: "" for entry in evaluators for name, value in entry.arguments.items() if name.endswith("prompt_name")
    }
    modules: Any = [StaticEmbedding(tokenizer, embedding_weights=weights)]
    return SentenceTransformer(modules=modules, device="cpu", similarity_fn_name=similarity, prompts=prompts)


def _softmax_loss(model: "SentenceTransformer") -> Any:
    from sentence_transformers.sentence_transformer.losses import SoftmaxLoss

    return SoftmaxLoss(model, DIMENSION, 2)


def _made_up(dataset: DatasetParams, folder: Path) -> AcceptedDataset:
    """Artificial rows in the dataset's format, as train and validation split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {name: _values(name, place) for place, name in enumerate(COLUMNS[dataset.format])}
    with new_folder(folder) as work:
        for split in ("train", "validation"):
            pq.write_table(pa.table(columns), work / f"{split}.parquet")
    return AcceptedDataset(dataset.name, dataset.format, folder, dataset.template)


def _values(column: str, place: int) -> list[Any]:
    if column == "relation":
        # Link prediction has metrics for each relation, and only the data contain the relations' names.
        return ["*"] * ROWS
    if column in LABELS:
        return [number % 2 for number in range(ROWS)]
    if column in NUMBERS:
        return [number / ROWS for number in range(ROWS)]
    if column in VECTORS:
        return [[float(number)] * DIMENSION for number in range(ROWS)]
    return [WORDS[(number + 2 * place) % len(WORDS)] for number in range(ROWS)]


def loss_lines(log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The losses of all phases; steps of later phases continue the count.

    Returns:
        `train` with `steps` and `losses`; `validation` with the same for each validation loss by name, without the
        mean if there is only one dataset; `phases` with each phase's number and the steps before it.
    """
    train: dict[str, list[float]] = {"steps": [], "losses": []}
    validation: dict[str, dict[str, list[float]]] = {}
    before, phases = 0, []
    for phase in sorted({entry.get("phase", 1) for entry in log}):
        entries = [entry for entry in log if entry.get("phase", 1) == phase]
        phases.append([phase, before])
        for entry in entries:
            for name in (name for name in entry if name == "loss" or re.fullmatch("eval_.*loss", name)):
                line = train if name == "loss" else validation.setdefault(name, {"steps": [], "losses": []})
                line["steps"].append(before + entry["step"])
                line["losses"].append(entry[name])
        before += max(entry["step"] for entry in entries)
    if len(validation) == 2:
        validation.pop("eval_loss", None)
    return {"train": train, "validation": dict(sorted(validation.items())), "phases": phases}
