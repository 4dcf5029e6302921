"""The arguments of the sentence-transformers trainer."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from vocabgraft.config.training import ROW_METHODS, PhaseParams, TrainAdapterParams
from vocabgraft.config.training_arguments import library_values
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.extra_modules import custom_parameters, has_heads
from vocabgraft.token_embeddings.trainable import ROWS, ROWS_PATTERN
from vocabgraft.training import distributed
from vocabgraft.training.columns import DOCUMENT_COLUMNS, OTHER_COLUMNS, QUERY_COLUMNS
from vocabgraft.training.losses import own_parameters

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from vocabgraft.training.checkpoints import PhaseCheckpoints
    from vocabgraft.training.fit import Session

POINTS_OF_CURVE = 60


def trainer_arguments(
    session: "Session", phase: PhaseParams, seed: int, evaluated: bool, checkpoints: "PhaseCheckpoints | None"
) -> Any:
    """The trainer's arguments: derived from the parameters, then this project's defaults, then the user's own.

    Args:
        session: the model, its parameters and its datasets.
        phase: the phase to train.
        seed: of the order of the rows.
        evaluated: whether there are rows to evaluate on.
        checkpoints: for the best weights, so that they survive a kill; None for a temporary folder.

    Raises:
        VocabgraftError: when the library refuses an argument.
    """
    from sentence_transformers import SentenceTransformerTrainingArguments

    from vocabgraft.training.samplers import batches_of

    model, params = session.model, session.params
    epochs = phase.epochs or params.epochs
    rows_rate = phase.rows_learning_rate or params.rows_learning_rate
    besides = any(not ROWS.search(name) for name in own_parameters(session.losses, model))
    only_rows = params.method == "tokens" and not custom_parameters(model) and not besides
    examples = sum(len(entry.train) for entry in session.sets)
    steps = max(1, examples // params.batch_size) * epochs
    # With fewer steps than the logging interval, the curve would be empty.
    most = params.arguments.get("max_steps", -1)
    steps = min(steps, most) if most > 0 else steps
    owned: dict[str, Any] = {
        # The best weights must survive a kill too.
        "output_dir": str(checkpoints.best if checkpoints else session.scratch / "trainer"),
        "seed": seed,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": params.batch_size // distributed.world_size(),
        # The trainer logs this rate; if only rows train, it is theirs.
        "learning_rate": rows_rate if only_rows else phase.learning_rate or params.learning_rate,
        "learning_rate_mapping": {ROWS_PATTERN: rows_rate} if params.method in ROW_METHODS and not only_rows else {},
        "warmup_steps": params.warmup_ratio,
        "logging_nan_inf_filter": False,
        "bf16": session.precision.name == "bfloat16" and not params.arguments.get("fp16"),
        # The listener logs live metrics, since it knows the store.
        "report_to": "none",
        **_columns(model),
        **_best(params),
    }
    defaults: dict[str, Any] = {
        "per_device_eval_batch_size": params.batch_size // distributed.world_size(),
        "lr_scheduler_type": "cosine",
        # Weight decay would pull rows towards zero even in steps whose batch does not use them.
        "weight_decay": 0.0,
        "batch_sampler": partial(batches_of, by_length=params.group_by_length),
        "multi_dataset_batch_sampler": "proportional",
        "logging_steps": max(1, steps // POINTS_OF_CURVE),
        "eval_strategy": "epoch" if evaluated else "no",
        # Otherwise the library looks for a GPU before it connects processes on a CPU, and refuses bfloat16 there.
        "use_cpu": model.device.type == "cpu",
        # Each forward pass of a step sees another column, so no single pass shows which parameters the step uses.
        "ddp_find_unused_parameters": False if distributed.world_size() > 1 else None,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    given = library_values({name: value for name, value in params.arguments.items() if name != "report_to"})
    owned["learning_rate_mapping"] = given.pop("learning_rate_mapping", {}) | owned["learning_rate_mapping"]
    try:
        arguments = SentenceTransformerTrainingArguments(**(defaults | owned | given))
    except (ValueError, TypeError) as error:
        raise VocabgraftError(f"train_adapter.arguments are refused by the trainer: {error}") from error
    # With several processes the library drops the last batch, since its own split would make it unequal.
    arguments.dataloader_drop_last = bool(given.get("dataloader_drop_last", False))
    return arguments


def _columns(model: "SentenceTransformer") -> dict[str, Any]:
    """The prompt and the route of each column that a loss may read."""
    queries = dict.fromkeys(QUERY_COLUMNS, model.prompts.get("query", ""))
    documents = dict.fromkeys(DOCUMENT_COLUMNS, model.prompts.get("document", ""))
    routes = dict.fromkeys(QUERY_COLUMNS, "query") | dict.fromkeys((*DOCUMENT_COLUMNS, *OTHER_COLUMNS), "document")
    return {"prompts": queries | documents, "router_mapping": routes if has_heads(model) else {}}


def _best(params: TrainAdapterParams) -> dict[str, Any]:
    from vocabgraft.training.trainer import lower_is_better

    if params.best_metric is None:
        return {"save_strategy": "no"}
    return {
        "save_strategy": "best",
        "save_only_model": True,
        "save_total_limit": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": params.best_metric,
        "greater_is_better": not lower_is_better(params.best_metric),
    }
