"""Which methods of PEFT params.yaml may name, and which of their fields. It imports nothing heavy.

A method is allowed if stock sentence-transformers adds, saves and loads its adapter, merging gives the same embeddings,
and training needs only gradients. tests/vocabgraft/config/test_peft_methods.py tests this for each of METHODS, and
checks that every method of the installed library is either allowed or refused.
"""

from collections.abc import Mapping
from typing import Any

from vocabgraft.config.signatures import arguments_of
from vocabgraft.errors import did_you_mean

# Allowed classes. Their fields are those of peft, without OWNED, FIXED and REFUSED_FIELDS.
METHODS = tuple(
    """
    AdamssConfig BOFTConfig BeftConfig C3AConfig DeftConfig DeloraConfig FourierFTConfig GloraConfig GraloraConfig
    HRAConfig HiraConfig IA3Config LNTuningConfig LoHaConfig LoKrConfig LoraConfig MissConfig OFTConfig OSFConfig
    PeanutConfig PsoftConfig RandLoraConfig RoadConfig ShiraConfig SupertuningConfig WaveFTConfig
    """.split()
)
# The only class of METHODS with `trainable_token_indices`: rows of new tokens train beside it.
ROW_CLASSES = ("LoraConfig",)

_SEQUENCE = (
    "it puts trained vectors into the sequence or the attention, which no weight can hold, so it cannot be merged"
)
_SHARED = (
    "its layers share weights that peft keeps outside of the layers, so stock sentence-transformers neither adds nor "
    "loads it (peft's inject_adapter_in_model refuses it)"
)
# Classes of peft that do not work here, with the observed reason.
REFUSED: dict[str, str] = {
    "AdaLoraConfig": "it removes ranks after each step and adds a term to the loss; peft's own model class does both, "
    "which an adapter of sentence-transformers does not have, and without them it is a LoRA",
    "AdaptionPromptConfig": _SEQUENCE,
    "CPTConfig": _SEQUENCE,
    "CartridgeConfig": _SEQUENCE,
    "FrodConfig": _SHARED,
    "LilyConfig": "its layers share weights, which safetensors refuses to save",
    "MultitaskPromptTuningConfig": _SEQUENCE,
    "PolyConfig": "it needs the id of a task with each text, which examples do not have",
    "PrefixTuningConfig": _SEQUENCE,
    "PromptEncoderConfig": _SEQUENCE,
    "PromptTuningConfig": _SEQUENCE,
    "PveraConfig": _SHARED,
    "ShadowConfig": "it runs a second network beside the model, which no weight can hold, so it cannot be merged",
    "TinyLoraConfig": _SHARED,
    "TrainableTokensConfig": "that is train_adapter.method: tokens",
    "UniLoraConfig": _SHARED,
    "VBLoRAConfig": _SHARED,
    "VeraConfig": _SHARED,
    "XLoraConfig": "it mixes adapters that were trained before, with weights that depend on the text, so it cannot be "
    "merged",
}
# Fields of every class.
OWNED: dict[str, str] = {
    "auto_mapping": "peft sets it itself",
    "base_model_name_or_path": "the adapter names the resized base",
    "inference_mode": "it is trained here, and loaded for inference",
    "peft_type": "the class name defines it",
    "peft_version": "peft sets it itself",
    "revision": "the base is a folder, which has none",
    "task_type": "it is FEATURE_EXTRACTION",
}
# Fields that the pipeline sets.
FIXED: dict[str, dict[str, Any]] = {
    # Saved with the adapter, its projections are shared tensors, which safetensors refuses; they are drawn from
    # projection_prng_key again.
    "RandLoraConfig": {"save_projection": False},
}
_NEEDS_DATA = "its start is computed from examples before training, which the pipeline does not do"
_LOSS_TERM = "it needs a term in the loss that peft's own model class computes and no loss here has"
_STEPS = "it needs a call after each step to peft's own model class, which an adapter of sentence-transformers lacks"
REFUSED_FIELDS: dict[str, dict[str, str]] = {
    "AdamssConfig": dict.fromkeys(
        (
            "use_asa",
            "asa_target_subspaces",
            "init_warmup",
            "final_warmup",
            "mask_interval",
            "asa_importance_beta",
            "asa_uncertainty_beta",
            "asa_schedule_exponent",
        ),
        _STEPS,
    ),
    "HRAConfig": {"apply_GS": "its initialization has every vector twice, which Gram-Schmidt turns into 0/0 or noise"},
    "LoraConfig": {
        "alora_invocation_tokens": "it is for generating text and cannot be merged",
        "arrow_config": "it routes each text among adapters that were trained before, so it cannot be merged",
        "corda_config": _NEEDS_DATA,
        "eva_config": _NEEDS_DATA,
        "kasa_config": _LOSS_TERM,
        "layer_replication": "it makes layers that share weights, which safetensors refuses to save when merged",
        "loftq_config": "it is for a quantized base, and the pipeline's is not",
        "lora_ga_config": _NEEDS_DATA,
        "megatron_config": "it is for models of Megatron",
        "megatron_core": "it is for models of Megatron",
        "monteclora_config": _LOSS_TERM,
        "qalora_group_size": "it is for a quantized base, and the pipeline's is not",
        "runtime_config": "it is not saved with an adapter",
        "target_parameters": "it is for parameters outside of linear layers; peft refuses the weight of one",
        "trainable_token_indices": "train_adapter.method: peft_and_tokens sets it to the new tokens",
        "use_qalora": "it is for a quantized base, and the pipeline's is not",
    },
    "OSFConfig": {"modules_to_save": "peft ignores it there", "target_svd_config": "peft ignores it"},
}
# Allowed values of LoraConfig.init_lora_weights. Others start from random weights or weights other than the base's.
LORA_STARTS: tuple[bool | str, ...] = (True, False, "gaussian", "orthogonal", "olora", "pissa")
_REFUSED_STARTS = {
    "corda": _NEEDS_DATA,
    "eva": _NEEDS_DATA,
    "lora_ga": _NEEDS_DATA,
    "loftq": "it is for a quantized base, and the pipeline's is not",
    "pissa_niter": "it removes a random part of the base, and loading draws another one (embeddings then differed by "
    "2e-3); pissa is exact",
}


def fields_of(config: str) -> tuple[str, ...]:
    """The fields of a class of `METHODS` that params.yaml may set."""
    taken = {*OWNED, *REFUSED_FIELDS.get(config, {}), *FIXED.get(config, {})}
    return tuple(name for name in arguments_of("peft", config) if name not in taken)


def check_peft(config: str, arguments: Mapping[str, Any]) -> None:
    """Refuse a class or a field that works with no model.

    Raises:
        ValueError: naming the class or field, the reason, and what is allowed.
    """
    if config in REFUSED:
        raise ValueError(f"{config} does not work here: {REFUSED[config]}; allowed: {', '.join(METHODS)}")
    if config not in METHODS:
        raise ValueError(
            f"peft has no method with the class {config}{did_you_mean(config, METHODS)}; allowed: {', '.join(METHODS)}"
        )
    reasons = OWNED | REFUSED_FIELDS.get(config, {}) | dict.fromkeys(FIXED.get(config, {}), "the pipeline sets it")
    allowed = fields_of(config) if arguments else ()
    for name, value in arguments.items():
        if name in reasons:
            raise ValueError(f"{config}: {name} cannot be set: {reasons[name]}; allowed: {', '.join(allowed)}")
        if name not in allowed:
            raise ValueError(
                f"{config} has no field {name}{did_you_mean(name, allowed)}; allowed: {', '.join(allowed)}"
            )
        if name == "init_lora_weights":
            _check_start(value)


def _check_start(value: Any) -> None:
    # In Python 1 == True, and peft would read it as such.
    if isinstance(value, (bool, str)) and value in LORA_STARTS:
        return
    known = (reason for name, reason in _REFUSED_STARTS.items() if str(value).startswith(name))
    reason = next(known, "")
    shown = ", ".join(str(start).lower() if isinstance(start, bool) else start for start in LORA_STARTS)
    raise ValueError(
        f"LoraConfig: init_lora_weights is {value!r}{f', which does not work here: {reason}' if reason else ''}; "
        f"allowed: {shown}"
    )
