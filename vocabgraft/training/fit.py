"""Trains an adapter over an extended vocabulary: phases, learning rates, datasets, result."""

import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vocabgraft.config.datasets import RETAIN, DatasetParams, LossParams, Split
from vocabgraft.config.losses import DEFAULT_LOSS, LOSSES, LossEntry, works_with_constants
from vocabgraft.config.training import LoraParams, PhaseParams, TrainAdapterParams
from vocabgraft.data.accepted import AcceptedDataset
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.encode import encode, split_by_new_token
from vocabgraft.models.precision import ChosenPrecision, in_float32, resolve_precision
from vocabgraft.storage.artifacts import read_json
from vocabgraft.token_embeddings.sinks import RowGuard
from vocabgraft.token_embeddings.trainable import ROWS, fast_peft_rows
from vocabgraft.training import distributed
from vocabgraft.training.adapters import adapter_off, add_adapter, train_only
from vocabgraft.training.arguments import trainer_arguments
from vocabgraft.training.checkpoints import (
    CURVE,
    SET_BACK,
    WEIGHTS,
    PhaseCheckpoints,
    is_whole,
    load_weights,
    save_done,
)
from vocabgraft.training.columns import load_rows
from vocabgraft.training.embedding_cache import constant_texts
from vocabgraft.training.evaluators import build_evaluator
from vocabgraft.training.losses import WeightedLoss, build_loss, load_guides

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    from vocabgraft.training.trainer import Listener

# Metrics of the trainer that differ between two equal runs.
TIMINGS = ("runtime", "_per_second", "total_flos")


@dataclass(frozen=True)
class TrainingResult:
    """The curve that the trainer logged, without timings, and what was trained.

    Attributes:
        set_back: tokens whose row became an attention sink and was reset, with how often.
        untrained: new tokens that no training text holds, if the caller asked for them.
        measured: texts per second in each precision, if `precision: auto` timed them.
    """

    curve: list[dict[str, Any]] = field(repr=False)
    trainable_parameters: int
    examples: int
    precision: str
    set_back: dict[str, int]
    untrained: tuple[str, ...] = ()
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def final_loss(self) -> float | None:
        """The last training loss that was logged; None if nothing was trained."""
        losses = [float(entry["loss"]) for entry in self.curve if "loss" in entry]
        return losses[-1] if losses else None


@dataclass(frozen=True)
class TrainingSet:
    """A dataset to train on, its loss, and its rows in the columns that the loss reads.

    Attributes:
        name: of the dataset; metrics are named after it.
        train: training rows.
        loss: a loss by name with its arguments, or a loss instance for the model.
        validation: rows for the evaluation loss.
        weight: of the loss.
        accepted: the dataset's files, for the evaluators in `TrainAdapterParams.evaluators`.
    """

    name: str
    train: "Dataset"
    loss: LossParams | torch.nn.Module
    validation: "Dataset | None" = None
    weight: float = 1.0
    accepted: AcceptedDataset | None = None

    @property
    def entry(self) -> LossEntry | None:
        """The known properties of the loss; None for an instance from the user."""
        return LOSSES[self.loss.name] if isinstance(self.loss, LossParams) else None

    @property
    def works_with_constants(self) -> bool:
        """Whether embeddings of texts without new tokens may be cached for this loss."""
        if isinstance(self.loss, LossParams):
            return works_with_constants(self.loss.name, [wrapper.name for wrapper in self.loss.wrappers])
        loss_class = type(self.loss)
        own = loss_class.__module__.startswith(("sentence_transformers.", "vocabgraft."))
        return own and loss_class.__name__ in LOSSES and LOSSES[loss_class.__name__].constants


@dataclass
class Session:
    """The state shared by the phases of a training."""

    model: "SentenceTransformer"
    sets: Sequence[TrainingSet]
    new_ids: Sequence[int]
    params: TrainAdapterParams
    scratch: Path
    guides: Mapping[str, "SentenceTransformer"]
    precision: ChosenPrecision
    checkpoints: Path | None = None
    listener: "Listener | None" = None
    evaluators: Sequence[Any] = ()
    losses: dict[str, torch.nn.Module] = field(default_factory=dict)
    steps_before: int = 0
    set_back: Counter[str] = field(default_factory=Counter)

    def of_phase(self, number: int) -> PhaseCheckpoints | None:
        """The checkpoints of a phase."""
        if self.checkpoints is None or self.params.checkpoint_every is None:
            return None
        return PhaseCheckpoints(
            self.checkpoints / f"phase-{number}", self.params.checkpoint_every, rank=distributed.rank()
        )


def train_adapter(
    model: "SentenceTransformer",
    datasets: Sequence[AcceptedDataset],
    new_ids: Sequence[int],
    params: TrainAdapterParams,
    seed: int,
    settings: Sequence[DatasetParams] = (),
    checkpoints: Path | None = None,
    listener: "Listener | None" = None,
    general_texts: Sequence[str] = (),
) -> TrainingResult:
    """Put an adapter on the resized base (changed in place) and train it, or with `full` the base, phase after phase.

    Each dataset is trained with its own loss; the default for pairs is an in-batch softmax
    (MultipleNegativesRankingLoss), for which a triple is the pair of `head relation-token` and `tail`.

    Args:
        model: the saved resized base; an adapter over an unsaved one could not be loaded again.
        datasets: accepted by `validate_data`.
        new_ids: ids whose rows are trained.
        params: the section `train_adapter`.
        seed: of the adapter's initialization and of the order of the examples.
        settings: the datasets in params.yaml, for their losses and weights; missing ones use the defaults.
        checkpoints: a folder for this training only. A training that finds a checkpoint in it resumes and ends with the
            same weights as without the interruption; the caller deletes the folder after saving them.
        listener: called with each logged step, counted over all phases, and its metrics.
        general_texts: their embeddings stay near the base's if `params.retain` is set.

    Raises:
        VocabgraftError: when the loss becomes NaN, a batch runs out of memory, or the best weights of an evaluation are
            lost. The model then has the last good weights.
    """
    with tempfile.TemporaryDirectory() as cache:
        by_name = {entry.name: entry for entry in settings}
        sets = [accepted_set(entry, by_name.get(entry.name), Path(cache), seed) for entry in datasets]
        return fit(model, sets, new_ids, params, seed, checkpoints, listener, general_texts=general_texts)


def fit(
    model: "SentenceTransformer",
    sets: Sequence[TrainingSet],
    new_ids: Sequence[int],
    params: TrainAdapterParams,
    seed: int,
    checkpoints: Path | None = None,
    listener: "Listener | None" = None,
    evaluators: Sequence[Any] = (),
    general_texts: Sequence[str] = (),
) -> TrainingResult:
    """Put an adapter on the model (changed in place), or with `full` none, and train it on datasets in memory.

    Args:
        model: with a row for each new token and no adapter. A model stored in 16 bits trains in float32 and gets its
            type back afterwards; its adapter stays float32.
        sets: the training sets, each with its loss.
        new_ids: ids whose rows are trained.
        params: what to train, and how.
        seed: of the adapter's initialization and of the order of the examples.
        checkpoints: as in `train_adapter`.
        listener: as in `train_adapter`.
        evaluators: of sentence-transformers, run with each evaluation, in addition to those in `params`.
        general_texts: as in `train_adapter`.

    Raises:
        VocabgraftError: as for `train_adapter`.
    """
    from transformers import set_seed

    with tempfile.TemporaryDirectory() as scratch, in_float32(model):
        guides = load_guides([entry.loss for entry in sets if isinstance(entry.loss, LossParams)], model)
        retained = _retained(model, general_texts, new_ids, params)
        set_seed(seed)
        add_adapter(model, params.method, new_ids, params.lora, params.peft)
        precision = resolve_precision(params.precision, model, distributed.world_size())
        trained_on = [*sets, *retained]
        session = Session(
            model, trained_on, new_ids, params, Path(scratch), guides, precision, checkpoints, listener, evaluators
        )
        curve: list[dict[str, Any]] = []
        trainable = 0
        for number, phase in enumerate(params.phases or [PhaseParams()], start=1):
            trainable = max(trainable, train_only(model, phase.train))
            logged = _phase(session, phase, number, seed + number - 1)
            curve.extend({"phase": number, **entry} for entry in logged)
    model.eval()
    examples = sum(len(entry.train) for entry in sets)
    computed_in = "float16" if params.arguments.get("fp16") else precision.name
    set_back = dict(sorted(session.set_back.items()))
    return TrainingResult(curve, trainable, examples, computed_in, set_back, measured=precision.measured)


def leave_untrained(model: "SentenceTransformer", new_ids: Sequence[int]) -> TrainingResult:
    """Put an adapter on the model (changed in place) that holds the current rows of the new tokens.

    So a run without examples writes the same folders as any other: an adapter that merges to the resized base.
    """
    if new_ids:
        add_adapter(model, "tokens", new_ids, LoraParams())
    model.eval()
    return TrainingResult([], 0, 0, "float32", {})


def accepted_set(dataset: AcceptedDataset, settings: DatasetParams | None, cache: Path, seed: int) -> TrainingSet:
    """An accepted dataset, as a training set with the loss of its settings.

    Args:
        dataset: with a non-empty train split.
        settings: its loss and weight; None uses the default loss of its format.
        cache: an existing folder, which must stay while the rows are read.
        seed: of the words removed as noise and of the texts paired at random.
    """
    loss = settings.chosen_loss if settings else LossParams(name=DEFAULT_LOSS[dataset.format])
    entry = LOSSES[loss.name]

    def rows(split: Split) -> "Dataset":
        return load_rows(dataset, split, entry, cache, seed, scores_each=loss.name == "DistillKLDivLoss")

    validation = rows("validation") if dataset.rows("validation") else None
    weight = settings.weight if settings else 1.0
    return TrainingSet(dataset.name, rows("train"), loss, validation, weight, dataset)


def _retained(
    model: "SentenceTransformer", texts: Sequence[str], new_ids: Sequence[int], params: TrainAdapterParams
) -> list[TrainingSet]:
    """General texts with their embeddings from before training, as a set whose loss is the cosine distance.

    Uses the library's EmbedDistillLoss, the embedding matching of EmbedDistill (Kim et al., 2023). Texts with a new
    token are left out, since the base reads them differently.
    """
    if params.retain is None:
        return []
    _, general = split_by_new_token(model.tokenizer, list(dict.fromkeys(texts)), new_ids)
    if not general:
        raise VocabgraftError(
            f"train_adapter.retain is set, but none of the {len(texts)} general texts is without a new word; give "
            "retain.texts, a file with one general text per line, or set retain: null"
        )
    from datasets import Dataset

    rows = Dataset.from_dict({"text": general, "label": encode(model, general, params.batch_size).tolist()})
    return [TrainingSet(RETAIN, rows, LossParams(name="EmbedDistillLoss"), weight=params.retain.weight)]


def _phase(session: Session, phase: PhaseParams, number: int, seed: int) -> list[dict[str, Any]]:
    """Train a phase and save its results, or load them if they are saved already."""
    checkpoints = session.of_phase(number)
    losses = _losses(session, seed)
    if checkpoints and is_whole(checkpoints.done):
        load_weights(session.model, losses, checkpoints.done / WEIGHTS)
        curve: list[dict[str, Any]] = read_json(checkpoints.done / CURVE)
        set_back: dict[str, int] = read_json(checkpoints.done / SET_BACK)
    else:
        curve, set_back = _train_phase(session, phase, seed, losses, checkpoints)
        if checkpoints and distributed.rank() == 0:
            save_done(session.model, losses, curve, set_back, checkpoints.done)
    session.set_back.update(set_back)
    session.steps_before += max(entry.get("step", 0) for entry in curve)
    return curve


def _train_phase(
    session: Session,
    phase: PhaseParams,
    seed: int,
    losses: dict[str, torch.nn.Module],
    checkpoints: PhaseCheckpoints | None,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    from datasets import DatasetDict

    from vocabgraft.training.trainer import AdapterTrainer

    model, params, sets = session.model, session.params, session.sets
    evaluators = [*_named_evaluators(session, losses), *session.evaluators]
    held_out = DatasetDict({entry.name: entry.validation for entry in sets if entry.validation is not None})
    try:
        trainer = AdapterTrainer(
            model=model,
            args=trainer_arguments(session, phase, seed, bool(held_out), checkpoints),
            train_dataset=DatasetDict({entry.name: entry.train for entry in sets}),
            eval_dataset=held_out or None,
            loss=losses,
            evaluator=evaluators or None,
            early_stopping=params.early_stopping,
            checkpoints=checkpoints,
            listener=_counted_on(session.listener, session.steps_before),
            guard=_guard(session),
        )
    except (ValueError, TypeError) as error:
        raise VocabgraftError(f"the trainer refuses its settings: {error}; see train_adapter.arguments") from error
    with fast_peft_rows(model), _constants(session, checkpoints):
        _run(trainer, params)
    trainer.require_best()
    _unwrap(losses, model)
    _leave_autocast(model)
    return _without_timings(trainer.state.log_history), trainer.guard.report() if trainer.guard else {}


def _guard(session: Session) -> RowGuard | None:
    """The guard of the rows of new tokens, if this phase trains them."""
    found = [
        parameter
        for name, parameter in session.model.named_parameters()
        if parameter.requires_grad and ROWS.search(name)
    ]
    if not found:
        return None
    texts = session.model.tokenizer.convert_ids_to_tokens(list(session.new_ids))
    return RowGuard(session.model, session.new_ids, texts, found[0])


def _counted_on(listener: "Listener | None", before: int) -> "Listener | None":
    if listener is None:
        return None
    return lambda step, figures: listener(before + step, figures)


def _unwrap(losses: Mapping[str, torch.nn.Module], model: "SentenceTransformer") -> None:
    """Remove torch's wrapper for several processes, which knows only the parameters trained in this phase."""
    for loss in losses.values():
        for module in list(loss.modules()):
            if isinstance(getattr(module, "model", None), torch.nn.parallel.DistributedDataParallel):
                module.model = model


def _leave_autocast(model: "SentenceTransformer") -> None:
    """Remove accelerate's wrapper for bfloat16, with which the model would still encode after its training."""
    for name in ("forward", "_original_forward"):
        model.__dict__.pop(name, None)


def _run(trainer: Any, params: TrainAdapterParams) -> None:
    from vocabgraft.training.trainer import told_of_memory

    try:
        trainer.train_or_resume()
    except (RuntimeError, MemoryError) as error:
        if not told_of_memory(error):
            raise
        message = str(error).splitlines()[0][:200]
        raise VocabgraftError(
            f"the training ran out of memory with train_adapter.batch_size {params.batch_size} ({message}); "
            "lower it, set train_adapter.arguments to {auto_find_batch_size: true}, or use a Cached loss, such as "
            "CachedMultipleNegativesRankingLoss with arguments: {mini_batch_size: 16}, which fits any batch"
        ) from error


def _losses(session: Session, seed: int) -> dict[str, torch.nn.Module]:
    """The loss of each dataset, made once, so that a classifier keeps learning in the next phase.

    A loss that trains a copy of the model is made again, since a phase does not freeze parts of a copy.
    """
    for entry in session.sets:
        if entry.name in session.losses and not (entry.entry and entry.entry.copies_model):
            continue
        session.losses[entry.name] = _loss(session, entry, seed)
    for name in session.losses:
        # The trainer puts the losses into a Sequential under these names.
        if hasattr(torch.nn.Sequential, name):
            raise VocabgraftError(f"a dataset is named {name}, which torch reserves; give it another name")
    return session.losses


def _loss(session: Session, entry: TrainingSet, seed: int) -> torch.nn.Module:
    if not isinstance(entry.loss, LossParams):
        return entry.loss if entry.weight == 1 else WeightedLoss(session.model, entry.loss, entry.weight)
    rows = [entry.train] + ([entry.validation] if entry.validation is not None else [])
    return build_loss(
        session.model, entry.name, entry.loss, rows, entry.weight, session.params.scale, session.guides, seed
    )


def _named_evaluators(session: Session, losses: Mapping[str, torch.nn.Module]) -> list[Any]:
    """The evaluators named in the parameters, over the files of their datasets."""
    files = {
        entry.name: (entry.accepted, entry.loss)
        for entry in session.sets
        if entry.accepted is not None and isinstance(entry.loss, LossParams)
    }
    built = []
    for evaluator in session.params.evaluators:
        if evaluator.dataset not in files:
            raise VocabgraftError(
                f"train_adapter.evaluators names the dataset {evaluator.dataset}; allowed: {', '.join(files) or 'none'}"
            )
        accepted, loss = files[evaluator.dataset]
        built.append(
            build_evaluator(evaluator, accepted, loss.name, losses[evaluator.dataset], session.params.batch_size)
        )
    return built


def _constants(session: Session, checkpoints: PhaseCheckpoints | None) -> AbstractContextManager[None]:
    """Cache embeddings of texts without a trained token, if they cannot change and no loss reads more than embeddings.

    This applies if only rows train, and with a gate, where the model without its adapter embeds them.
    """
    table = checkpoints.table if checkpoints else None
    if session.params.method == "gated":
        for entry in session.sets:
            _require_constants(entry)
        return constant_texts(session.model, session.new_ids, table, partial(adapter_off, session.model))
    trained = [name for name, parameter in session.model.named_parameters() if parameter.requires_grad]
    rows_alone = all(ROWS.search(name) for name in trained)
    seen_from_outside = all(entry.works_with_constants for entry in session.sets)
    if not (rows_alone and seen_from_outside):
        return nullcontext()
    return constant_texts(session.model, session.new_ids, table)


def _require_constants(entry: TrainingSet) -> None:
    if not entry.works_with_constants:
        raise VocabgraftError(
            f"the loss of the dataset {entry.name} reads more of the model than a text's embedding, but method gated "
            "trains on stored embeddings of texts without a new token; use a loss over embeddings, such as "
            "MultipleNegativesRankingLoss, or another method"
        )


def _without_timings(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    curve = []
    for entry in history:
        kept = {key: value for key, value in entry.items() if not any(part in key for part in TIMINGS)}
        if any(isinstance(value, float) and not math.isfinite(value) for value in kept.values()):
            raise VocabgraftError(
                f"the loss is NaN or infinite at step {entry.get('step')}; lower the learning rates of train_adapter "
                "(a tenth of each), or raise train_adapter.batch_size"
            )
        curve.append(kept)
    return curve
