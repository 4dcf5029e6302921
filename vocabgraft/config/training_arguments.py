"""Which arguments of SentenceTransformerTrainingArguments params.yaml may set; nothing heavy is imported."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

# Each is a field of the library's class (tests/vocabgraft/config/test_training_arguments.py); these are handed to it as
# given.
ALLOWED: tuple[str, ...] = tuple(
    """
    max_steps lr_scheduler_type lr_scheduler_kwargs optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    optim_target_modules gradient_accumulation_steps average_tokens_across_devices max_grad_norm label_smoothing_factor
    fp16 bf16_full_eval fp16_full_eval tf32 activation_checkpointing activation_checkpointing_kwargs
    gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode
    use_liger_kernel liger_kernel_config use_cache neftune_noise_alpha torch_empty_cache_steps auto_find_batch_size
    logging_strategy logging_steps logging_first_step log_on_each_node include_num_input_tokens_seen log_level
    log_level_replica disable_tqdm report_to run_name eval_strategy eval_steps eval_delay per_device_eval_batch_size
    eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics
    batch_eval_metrics greater_is_better full_determinism data_seed use_cpu accelerator_config parallelism_config
    dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
    dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order train_sampling_strategy
    length_column_name ddp_find_unused_parameters ddp_bucket_cap_mb ddp_backend ddp_timeout ddp_static_graph fsdp
    fsdp_config deepspeed debug skip_memory_metrics batch_sampler multi_dataset_batch_sampler learning_rate_mapping
    """.split()
)
# The setting of params.yaml that says it.
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
_CHECKPOINTS = "checkpoints are the pipeline's (train_adapter.checkpoint_every, train_adapter.best_metric)"
_PUBLISHING = "a model is published by register_model alone, and nothing leaves the machine"
_STAGES = "what is trained and evaluated is said by the stages"
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
    "logging_nan_inf_filter": "a loss that is no number must be seen",
    "prediction_loss_only": _FIXED,
    "remove_unused_columns": _FIXED,
    "label_names": _FIXED,
    "ddp_broadcast_buffers": _FIXED,
    "local_rank": "the launcher of several processes sets it",
}
REPORTS = ("none", "mlflow")


def check_training_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse what the library does not have, the pipeline owns, or another setting says.

    Raises:
        ValueError: naming the argument and the way out.
    """
    for name, value in arguments.items():
        if name in SETTINGS:
            raise ValueError(f"{name} repeats the setting {SETTINGS[name]}; set it there")
        if name in OWNED:
            raise ValueError(f"{name} is not yours to set: {OWNED[name]}; take it out")
        if name not in ALLOWED:
            near = get_close_matches(name, [*ALLOWED, *SETTINGS], n=1)
            hint = f" (do you mean {near[0]}?)" if near else ""
            raise ValueError(
                f"{name} is no argument of SentenceTransformerTrainingArguments{hint}; allowed: {', '.join(ALLOWED)}"
            )
        if name == "report_to":
            _check_report(value)


def _check_report(value: Any) -> None:
    targets = value if isinstance(value, list) else [value]
    if unknown := [target for target in targets if target not in REPORTS]:
        raise ValueError(f"report_to names {', '.join(map(str, unknown))}; allowed: {', '.join(REPORTS)}")
