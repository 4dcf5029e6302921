"""Which arguments of SentenceTransformerTrainingArguments params.yaml may set, and to which values.

Importing this module imports nothing heavy; `library_values` imports the library.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin

from vocabgraft.config.signatures import arguments_of
from vocabgraft.errors import VocabgraftError, did_you_mean

CLASS = "SentenceTransformerTrainingArguments"
# Arguments that have a setting of their own in params.yaml.
SETTINGS: dict[str, str] = {
    "num_train_epochs": "train_adapter.epochs",
    "per_device_train_batch_size": "train_adapter.batch_size",
    "learning_rate": "train_adapter.learning_rate",
    "warmup_ratio": "train_adapter.warmup_ratio",
    "warmup_steps": "train_adapter.warmup_ratio",
    "load_best_model_at_end": "train_adapter.best_metric",
    "metric_for_best_model": "train_adapter.best_metric",
    "bf16": "train_adapter.precision",
    "seed": "seed",
    "prompts": "base.prompts",
    "router_mapping": "resize_base.modules",
}
_CHECKPOINTS = "the pipeline manages checkpoints (train_adapter.checkpoint_every, train_adapter.best_metric)"
_PUBLISHING = "only register_model publishes a model, and nothing leaves the machine"
_STAGES = "the stages decide what is trained and evaluated"
_FIXED = "sentence-transformers sets it itself"
OWNED: dict[str, str] = {
    "output_dir": "the stage writes to its own folder",
    "resume_from_checkpoint": _CHECKPOINTS,
    "save_strategy": _CHECKPOINTS,
    "save_steps": _CHECKPOINTS,
    "save_total_limit": _CHECKPOINTS,
    "save_only_model": _CHECKPOINTS,
    "save_on_each_node": _CHECKPOINTS,
    "enable_jit_checkpoint": _CHECKPOINTS,
    "ignore_data_skip": _CHECKPOINTS,
    "restore_callback_states_from_checkpoint": _CHECKPOINTS,
    "push_to_hub": _PUBLISHING,
    "hub_token": _PUBLISHING,
    "hub_private_repo": _PUBLISHING,
    "hub_model_id": _PUBLISHING,
    "hub_strategy": _PUBLISHING,
    "hub_always_push": _PUBLISHING,
    "hub_revision": _PUBLISHING,
    "project": _PUBLISHING,
    "trackio_space_id": _PUBLISHING,
    "trackio_bucket_id": _PUBLISHING,
    "trackio_static_space_id": _PUBLISHING,
    "do_train": _STAGES,
    "do_eval": _STAGES,
    "do_predict": _STAGES,
    "logging_nan_inf_filter": "a NaN loss must be visible",
    "prediction_loss_only": _FIXED,
    "remove_unused_columns": _FIXED,
    "label_names": _FIXED,
    "ddp_broadcast_buffers": _FIXED,
    "local_rank": "the launcher of several processes sets it",
}
REPORTS = ("none", "mlflow", "tensorboard", "wandb")
WORDS_OF_TYPES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "a mapping",
    type(None): "null",
}


def check_training_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the library does not have, the pipeline sets, or another setting sets.

    Raises:
        ValueError: naming the argument and the remedy.
    """
    for name, value in arguments.items():
        if name in SETTINGS:
            raise ValueError(f"{name} repeats the setting {SETTINGS[name]}; set it there")
        if name in OWNED:
            raise ValueError(f"{name} cannot be set: {OWNED[name]}; remove it")
        if name not in (known := arguments_of("sentence_transformers", CLASS)):
            allowed = [argument for argument in known if argument not in OWNED and argument not in SETTINGS]
            hint = did_you_mean(name, [*allowed, *SETTINGS])
            raise ValueError(f"{name} is not an argument of {CLASS}{hint}; allowed: {', '.join(allowed)}")
        if name == "report_to":
            _check_report(value)


def _check_report(value: Any) -> None:
    targets = value if isinstance(value, list) else [value]
    if unknown := [target for target in targets if target not in REPORTS]:
        raise ValueError(f"report_to names {', '.join(map(str, unknown))}; allowed: {', '.join(REPORTS)}")


def report_targets(arguments: Mapping[str, Any]) -> list[str]:
    """The destinations of training metrics in `report_to`, without duplicates."""
    value = arguments.get("report_to", "none")
    return [target for target in dict.fromkeys(value if isinstance(value, list) else [value]) if target != "none"]


def require_reports(arguments: Mapping[str, Any]) -> None:
    """Raise VocabgraftError if a destination in `report_to` is not installed."""
    if absent := [target for target in report_targets(arguments) if importlib.util.find_spec(target) is None]:
        raise VocabgraftError(
            f"train_adapter.arguments.report_to names {', '.join(absent)}, not installed here; "
            f"pip install {' '.join(absent)}"
        )


def library_values(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Convert arguments to the values that the library takes; its fields define the types and values allowed.

    An enumeration value may be written as in the library's documentation, such as `NO_DUPLICATES` or
    `BatchSamplers.NO_DUPLICATES`.

    Args:
        arguments: arguments that `check_training_arguments` accepts.

    Raises:
        VocabgraftError: naming every argument whose value is not allowed, the value and what is allowed.
    """
    if not arguments:
        return {}
    from dataclasses import fields
    from typing import get_type_hints

    from sentence_transformers import SentenceTransformerTrainingArguments

    types = get_type_hints(SentenceTransformerTrainingArguments)
    known = fields(SentenceTransformerTrainingArguments)
    choices = {field.name: field.metadata.get("choices") or () for field in known}
    found, problems = dict[str, Any](), list[str]()
    for name, value in arguments.items():
        try:
            found[name] = _library_value(name, value, types[name], tuple(choices[name]))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise VocabgraftError("train_adapter.arguments: " + "; ".join(problems))
    return found


def _library_value(name: str, value: Any, expected: Any, choices: Sequence[str]) -> Any:
    parts = get_args(expected) if get_origin(expected) in (Union, UnionType) else (expected,)
    kinds = [kind for kind in parts if isinstance(kind, type) and issubclass(kind, Enum)]
    members = {member.name: str(member.value) for kind in kinds for member in kind}
    allowed = [*members.values(), *choices]
    if not (allowed and isinstance(value, str)):
        _require_type(name, value, expected, parts, allowed)
        return value
    for kind in kinds:
        value = value.removeprefix(f"{kind.__name__}.")
    if (found := members.get(value, value)) in allowed:
        return found
    # `adamm` is nearer to the first part of adamw_torch than to any whole name.
    names = {name.partition("_")[0]: name for name in reversed(allowed)} | {name: name for name in allowed}
    near = get_close_matches(found.lower(), list(names), n=1)
    hint = f" (do you mean {names[near[0]]}?)" if near else ""
    raise ValueError(f"{name} is {value!r}{hint}; allowed: {', '.join(allowed)}")


def _require_type(name: str, value: Any, expected: Any, parts: Sequence[Any], allowed: Sequence[str]) -> None:
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        TypeAdapter(expected, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError as error:
        words = [WORDS_OF_TYPES.get(get_origin(part) or part, str(part)) for part in parts]
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed) or ' or '.join(words)}") from error
