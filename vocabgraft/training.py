"""Training an adapter over an extended vocabulary with the trainer of sentence-transformers."""

import math
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vocabgraft.accepted_data import AcceptedDataset
from vocabgraft.adapters import ROWS, ROWS_PATTERN, add_adapter, train_only
from vocabgraft.constant_texts import constant_texts
from vocabgraft.custom_modules import custom_parameters, has_heads
from vocabgraft.errors import VocabgraftError
from vocabgraft.params import PhaseParams, TrainAdapterParams
from vocabgraft.splits import Split
from vocabgraft.token_rows import fast_peft_rows
from vocabgraft.vocabulary import relation_token

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

# Figures of the trainer that differ between two equal runs.
TIMINGS = ("runtime", "_per_second", "total_flos")
POINTS_OF_CURVE = 60


@dataclass(frozen=True)
class TrainingResult:
    """The curve as the trainer logged it, without timings, and what was trained."""

    curve: list[dict[str, Any]]
    trainable_parameters: int
    examples: int


def train_adapter(
    model: "SentenceTransformer",
    datasets: Sequence[AcceptedDataset],
    new_ids: Sequence[int],
    params: TrainAdapterParams,
    seed: int,
) -> TrainingResult:
    """Put an adapter on the resized base (changed in place) and train it, phase after phase.

    Pairs are trained with an in-batch softmax (MultipleNegativesRankingLoss); a triple is the pair of
    `head relation-token` and `tail`.

    Args:
        model: the resized base as it was saved; an adapter over a resize that was not saved cannot be loaded again.
        datasets: what `validate_data` accepted.
        new_ids: ids whose rows are trained.
        params: the section `train_adapter`.
        seed: of the adapter's start and of the order of the examples.

    Raises:
        VocabgraftError: when the loss stops being a number.
    """
    from transformers import set_seed

    set_seed(seed)
    add_adapter(model, params.method, new_ids, params.lora)
    curve: list[dict[str, Any]] = []
    trainable = 0
    with tempfile.TemporaryDirectory() as scratch:
        train = {entry.name: load_pairs(entry, "train", Path(scratch)) for entry in datasets}
        validation = {
            entry.name: load_pairs(entry, "validation", Path(scratch)) for entry in datasets if entry.rows("validation")
        }
        for number, phase in enumerate(params.phases or [PhaseParams()], start=1):
            trainable = max(trainable, train_only(model, phase.train))
            logged = _train_phase(model, train, validation, params, phase, seed + number - 1, Path(scratch), new_ids)
            curve.extend({"phase": number, **entry} for entry in logged)
    model.eval()
    return TrainingResult(curve, trainable, sum(len(dataset) for dataset in train.values()))


def load_pairs(dataset: AcceptedDataset, split: Split, cache: Path) -> "Dataset":
    """A split that has rows, as columns `anchor` and `positive`, memory-mapped from Arrow files under `cache`."""
    from datasets import Dataset

    loaded = Dataset.from_parquet(str(dataset.path(split)), cache_dir=str(cache))
    if dataset.format == "pairs":
        return loaded.select_columns(["anchor", "positive"])
    return loaded.map(_triples_as_pairs, batched=True, remove_columns=loaded.column_names)


def _triples_as_pairs(batch: dict[str, list[str]]) -> dict[str, list[str]]:
    anchors = [f"{head} {relation_token(name)}" for head, name in zip(batch["head"], batch["relation"], strict=True)]
    return {"anchor": anchors, "positive": batch["tail"]}


def _train_phase(
    model: "SentenceTransformer",
    train: dict[str, "Dataset"],
    validation: dict[str, "Dataset"],
    params: TrainAdapterParams,
    phase: PhaseParams,
    seed: int,
    scratch: Path,
    new_ids: Sequence[int],
) -> list[dict[str, Any]]:
    from datasets import DatasetDict
    from sentence_transformers import SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    held_out = DatasetDict(validation)
    examples = sum(len(rows) for rows in train.values())
    trainer = SentenceTransformerTrainer(
        model=model,
        args=_arguments(model, params, phase, seed, examples, bool(held_out), scratch),
        train_dataset=DatasetDict(train),
        eval_dataset=held_out or None,
        loss=MultipleNegativesRankingLoss(model, scale=params.scale),
    )
    with fast_peft_rows(model), _constants(model, new_ids):
        trainer.train()
    return _without_timings(trainer.state.log_history)


def _constants(model: "SentenceTransformer", new_ids: Sequence[int]) -> AbstractContextManager[None]:
    """Where rows alone are trained, texts without one of them are embedded once."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return constant_texts(model, new_ids) if all(ROWS.search(name) for name in trained) else nullcontext()


def _arguments(
    model: "SentenceTransformer",
    params: TrainAdapterParams,
    phase: PhaseParams,
    seed: int,
    examples: int,
    evaluated: bool,
    scratch: Path,
) -> Any:
    from sentence_transformers import SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.training_args import BatchSamplers, MultiDatasetBatchSamplers

    epochs = phase.epochs or params.epochs
    rows_rate = phase.rows_learning_rate or params.rows_learning_rate
    only_rows = params.method == "tokens" and not custom_parameters(model)
    steps = max(1, examples // params.batch_size) * epochs
    return SentenceTransformerTrainingArguments(
        output_dir=str(scratch / "trainer"),
        seed=seed,
        num_train_epochs=epochs,
        per_device_train_batch_size=params.batch_size,
        per_device_eval_batch_size=params.batch_size,
        # The rate that the trainer logs is this one, so where rows alone are trained it is theirs.
        learning_rate=rows_rate if only_rows else phase.learning_rate or params.learning_rate,
        learning_rate_mapping={} if only_rows or params.method == "lora" else {ROWS_PATTERN: rows_rate},
        warmup_steps=params.warmup_ratio,
        lr_scheduler_type="cosine",
        # Decay would pull rows towards zero that no batch mentions.
        weight_decay=0.0,
        # A batch that holds the positive of another of its rows would teach that it is wrong.
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        multi_dataset_batch_sampler=MultiDatasetBatchSamplers.PROPORTIONAL,
        prompts={"anchor": model.prompts.get("query", ""), "positive": model.prompts.get("document", "")},
        router_mapping={"anchor": "query", "positive": "document"} if has_heads(model) else {},
        logging_steps=max(1, steps // POINTS_OF_CURVE),
        logging_nan_inf_filter=False,
        eval_strategy="epoch" if evaluated else "no",
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _without_timings(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    curve = []
    for entry in history:
        kept = {key: value for key, value in entry.items() if not any(part in key for part in TIMINGS)}
        if any(isinstance(value, float) and not math.isfinite(value) for value in kept.values()):
            raise VocabgraftError(
                f"the loss is no number at step {entry.get('step')}; lower the learning rates of train_adapter "
                "(a tenth of each), or raise train_adapter.batch_size"
            )
        curve.append(kept)
    return curve
