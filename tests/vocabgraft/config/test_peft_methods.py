"""Each method of PEFT that is allowed is trained, saved, loaded and merged for real; each refusal is still deserved."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.vocabgraft.conftest import RESIZED, Graft, load, lora_params, train_params
from vocabgraft.config.peft_methods import (
    FIXED,
    LORA_STARTS,
    METHODS,
    OWNED,
    REFUSED,
    REFUSED_FIELDS,
    ROW_CLASSES,
    check_peft,
    fields_of,
)
from vocabgraft.config.training import Method, PeftParams
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.saving import save_model
from vocabgraft.storage.artifacts import new_folder
from vocabgraft.training.adapters import Part, add_adapter, merged_model, require_reload, train_only

TEXTS = ["a nephrolith in the kidney", "dog <|IsA|> animal", "a dog", "x -> y", "the Thrombopenia"]
TRAINED = ["a nephrolith -> dog", "the stone in a kidney", "a cat", "blood of -> the dog"]
TARGETS = ["query", "value"]
R = {"r": 4, "target_modules": TARGETS}
# One or more ways to make each class.
MADE: dict[str, list[dict[str, Any]]] = {
    "AdamssConfig": [
        {**R, "num_subspaces": 2, "subspace_rank": 1},
        {**R, "num_subspaces": 2, "use_dynamic_rank": True},
    ],
    "BOFTConfig": [{"boft_block_size": 4, "target_modules": TARGETS}],
    "BeftConfig": [{"target_modules": TARGETS}],
    "C3AConfig": [{"block_size": 8, "target_modules": TARGETS}],
    "DeftConfig": [R],
    "DeloraConfig": [R],
    "FourierFTConfig": [{"n_frequency": 50, "target_modules": TARGETS}],
    "GloraConfig": [R],
    "GraloraConfig": [{**R, "gralora_k": 2}],
    "HRAConfig": [R],
    "HiraConfig": [R],
    "IA3Config": [{"target_modules": ["key", "value", "dense"], "feedforward_modules": ["dense"]}],
    "LNTuningConfig": [{"target_modules": ["LayerNorm"]}],
    "LoHaConfig": [R, {**R, "rank_pattern": {"query": 2}, "module_dropout": 0.1}],
    "LoKrConfig": [R],
    "LoraConfig": [
        R,
        {**R, "use_dora": True},
        {**R, "use_rslora": True, "lora_dropout": 0.1},
        {"r": 4, "target_modules": "all-linear"},
        {"r": 4, "target_modules": r".*layer\.1.*(query|value)"},
        {**R, "bias": "all"},
        {**R, "modules_to_save": ["LayerNorm"]},
        {**R, "rank_pattern": {"query": 2}, "alpha_pattern": {"query": 3}, "layers_to_transform": [1]},
        {**R, "velora_config": {}},
        *({**R, "init_lora_weights": start} for start in LORA_STARTS if start is not True),
    ],
    "MissConfig": [R, {**R, "init_weights": "bat"}],
    "OFTConfig": [{"oft_block_size": 4, "target_modules": TARGETS}],
    "OSFConfig": [{"effective_rank": 4, "target_modules": TARGETS}],
    "PeanutConfig": [R],
    "PsoftConfig": [R],
    "RandLoraConfig": [R],
    "RoadConfig": [{"group_size": 8, "target_modules": TARGETS}],
    "ShiraConfig": [R],
    "SupertuningConfig": [{"target_modules": TARGETS}, {**R, "save_precomputed_indices": False}],
    "WaveFTConfig": [{"n_frequency": 50, "target_modules": TARGETS}],
}
CASES = [(name, arguments) for name, made in MADE.items() for arguments in made]
IDS = [f"{name}-{', '.join(f'{key}={value}' for key, value in a.items() if R.get(key) != value)}" for name, a in CASES]


def trained(graft: Graft, peft: PeftParams, method: Method = "peft", part: Part = "all", rate: float = 0.02) -> Any:
    """A model after three steps, in bfloat16, which a method that casts wrongly fails in; weights stay float32."""
    import torch

    torch.manual_seed(3)
    model = load(graft.resized)
    add_adapter(model, method, graft.new_ids, lora_params(), peft)
    train_only(model, part)
    optimizer = torch.optim.Adam([entry for entry in model.parameters() if entry.requires_grad], lr=rate)
    model.train()
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embeddings = model(model.preprocess(TRAINED))["sentence_embedding"]
        similarities = 20 * embeddings.float() @ embeddings.float().roll(1, 0).T
        loss = torch.nn.functional.cross_entropy(similarities, torch.arange(len(TRAINED)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@contextlib.contextmanager
def saved(model: Any, graft: Graft, folder: Path) -> Iterator[Path]:
    """The adapter's folder, with the working folder from which it loads."""
    with new_folder(folder) as work:
        save_model(model, work, adapter_base=RESIZED)
    with contextlib.chdir(graft.root):
        yield folder


def far(left: Any, right: Any) -> float:
    """The largest difference between the encodings of two models."""
    return float(np.abs(left.encode(TEXTS) - right.encode(TEXTS)).max())


def test_every_method_is_tried() -> None:
    assert set(MADE) == set(METHODS)


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=IDS)
def test_an_adapter_is_what_was_trained_when_it_is_loaded_by_stock_libraries_and_when_it_is_merged(
    graft: Graft, tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
    from sentence_transformers import SentenceTransformer

    peft = PeftParams(config=name, arguments=arguments)
    model = trained(graft, peft)
    assert far(model, load(graft.resized)) > 1e-4
    with saved(model, graft, tmp_path / "adapter") as folder:
        assert far(SentenceTransformer(str(folder), device="cpu"), model) <= 1e-5
        merged = merged_model(graft.resized, folder)
    assert far(merged, model) <= 1e-4
    assert not [module for module in merged.modules() if type(module).__module__.startswith("peft.")]
    assert not (tmp_path / "adapter" / "model.safetensors").exists()


def test_training_moves_an_adapters_weights_from_where_they_started(graft: Graft) -> None:
    # This one starts away from the base, so that only its own start shows that it was trained.
    peft = PeftParams(config="FourierFTConfig", arguments=MADE["FourierFTConfig"][0])
    assert far(trained(graft, peft), trained(graft, peft, rate=1e-12)) > 1e-4


@pytest.mark.parametrize("part", ["rows", "adapter", "all"])
def test_rows_and_a_variant_of_lora_train_apart_and_together(graft: Graft, tmp_path: Path, part: Part) -> None:
    peft = PeftParams(config="LoraConfig", arguments={**R, "use_dora": True})
    model = trained(graft, peft, "peft_and_tokens", part)
    start = load(graft.resized)
    with saved(model, graft, tmp_path / "adapter") as folder:
        require_reload(model, folder, TEXTS)
        merged = merged_model(graft.resized, folder)
    rows = [entry[0].auto_model.get_input_embeddings().weight for entry in (start, merged)]
    queries = [entry[0].auto_model.encoder.layer[1].attention.self.query.weight for entry in (start, merged)]
    used = [token.id for token in graft.tokens if token.text in ("nephrolith", "->")]
    moved = (rows[0] != rows[1]).any(dim=1).nonzero().flatten().tolist()
    assert moved == ([] if part == "adapter" else used)
    # Merging a DoRA that was not trained scales its weight by a norm over the same norm.
    assert bool((queries[0] - queries[1]).abs().max() > 1e-4) == (part != "rows")


def test_two_trainings_give_one_adapter(graft: Graft, tmp_path: Path) -> None:
    peft = PeftParams(config="ShiraConfig", arguments=R)
    files = []
    for name in ("one", "two"):
        model = trained(graft, peft)
        with saved(model, graft, tmp_path / name) as folder:
            files.append(
                [(folder / file).read_bytes() for file in ("adapter_model.safetensors", "adapter_config.json")]
            )
    assert files[0] == files[1]


def test_an_adapter_that_does_not_come_back_is_refused(graft: Graft, tmp_path: Path) -> None:
    # Its start takes a random part of the base away, which loading draws anew; params.yaml refuses it.
    peft = PeftParams.model_construct(config="LoraConfig", arguments={**R, "init_lora_weights": "pissa_niter_4"})
    model = trained(graft, peft)
    with (
        saved(model, graft, tmp_path / "adapter") as folder,
        pytest.raises(VocabgraftError, match=r"then differ by 0\.\d+ \(allowed: 1e-05\), .* change train_adapter.peft"),
    ):
        require_reload(model, folder, TEXTS)


def test_an_adapter_whose_weights_are_not_found_is_refused(graft: Graft, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = trained(graft, PeftParams(config="LoHaConfig", arguments=R))
    with saved(model, graft, tmp_path / "adapter") as folder:
        weights = load_file(folder / "adapter_model.safetensors")
        renamed = {f"other.{name}": value for name, value in weights.items()}
        save_file(renamed, folder / "adapter_model.safetensors", {"format": "pt"})
        with pytest.raises(VocabgraftError, match="embeddings then differ by"):
            require_reload(model, folder, TEXTS)


# The library's own classes.


def library_fields(name: str) -> set[str]:
    import peft

    return {field.name for field in dataclasses.fields(getattr(peft, name))}


def test_the_tables_have_every_method_of_the_library() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    classes = {found.__name__ for found in PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    assert set(METHODS) | set(REFUSED) == classes
    assert not set(METHODS) & set(REFUSED)


@pytest.mark.parametrize("name", METHODS)
def test_what_cannot_be_set_are_fields_of_the_class(name: str) -> None:
    refused = {*REFUSED_FIELDS.get(name, {}), *FIXED.get(name, {}), *OWNED}
    assert refused <= library_fields(name)
    assert set(fields_of(name)) == library_fields(name) - refused


def test_rows_are_of_the_classes_that_have_them() -> None:
    assert {name for name in METHODS if "trainable_token_indices" in library_fields(name)} == set(ROW_CLASSES)


# What a class needs to be made at all; adding it to a model, encoding with it or saving it is what fails.
MAKE_REFUSED: dict[str, dict[str, Any]] = {
    "AdaptionPromptConfig": {"adapter_len": 2, "adapter_layers": 1},
    "CartridgeConfig": {"num_virtual_tokens": 2},
    "FrodConfig": {"target_modules": TARGETS},
    "LilyConfig": {**R, "stride_A": 1, "num_B": 2},
    "MultitaskPromptTuningConfig": {"num_virtual_tokens": 2},
    "PolyConfig": R,
    "PrefixTuningConfig": {"num_virtual_tokens": 2},
    "PromptEncoderConfig": {"num_virtual_tokens": 2},
    "PromptTuningConfig": {"num_virtual_tokens": 2},
    "PveraConfig": R,
    "ShadowConfig": R,
    "TinyLoraConfig": R,
    "UniLoraConfig": R,
    "VBLoRAConfig": {**R, "num_vectors": 10, "vector_length": 4},
    "VeraConfig": R,
}
SEEN = {
    "PolyConfig": "task_ids should not be None",
    "LilyConfig": "contained shared tensors",
    **dict.fromkeys(("FrodConfig", "PveraConfig", "TinyLoraConfig", "UniLoraConfig"), "uses shared state"),
    **dict.fromkeys(("VBLoRAConfig", "VeraConfig"), "uses shared state"),
}


@pytest.mark.parametrize("name", MAKE_REFUSED)
def test_a_refused_method_is_refused_by_the_libraries_too(graft: Graft, tmp_path: Path, name: str) -> None:
    import peft

    model = load(graft.resized)

    def add_and_save() -> None:
        model.add_adapter(getattr(peft, name)(**MAKE_REFUSED[name], task_type="FEATURE_EXTRACTION"))
        model.encode(TEXTS)
        model.save(str(tmp_path / "adapter"), create_model_card=False)

    told = SEEN.get(name, "does not support prompt learning, adaption prompt and shadow")
    with pytest.raises((ValueError, RuntimeError), match=told):
        add_and_save()


def test_the_steps_that_refused_methods_need_are_not_there_for_an_adapter_that_is_injected(graft: Graft) -> None:
    import peft

    made = {"total_step": 10, "init_r": 4, "target_r": 2, "target_modules": TARGETS}
    model = load(graft.resized)
    model.add_adapter(peft.AdaLoraConfig(**made, task_type="FEATURE_EXTRACTION"))
    assert hasattr(peft.AdaLoraModel, "update_and_allocate")
    assert hasattr(peft.AdamssModel, "update_and_allocate")
    assert not [module for module in model.modules() if hasattr(module, "update_and_allocate")]


@pytest.mark.parametrize("field", ["kasa_config", "monteclora_config"])
def test_the_terms_of_a_loss_that_refused_fields_need_are_of_pefts_own_model(field: str) -> None:
    import peft

    assert hasattr(peft.LoraModel, f"_get_{field.removesuffix('_config')}_loss")


# What params.yaml refuses.


def complaint(config: str, **arguments: Any) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        check_peft(config, arguments)
    return str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_method_is_reported_with_its_reason_and_those_allowed(name: str) -> None:
    assert complaint(name) == f"{name} does not work here: {REFUSED[name]}; allowed: {', '.join(METHODS)}"


@pytest.mark.parametrize(
    ("config", "arguments", "told"),
    [
        (
            "LohaConfig",
            {},
            "no method with the class LohaConfig (do you mean LoHaConfig?); allowed: AdamssConfig, BOFT",
        ),
        ("EvaConfig", {}, "no method with the class EvaConfig"),
        ("SentenceTransformer", {}, "no method with the class SentenceTransformer; allowed"),
        ("LoHaConfig", {"rank": 8}, "LoHaConfig has no field rank; allowed: rank_pattern, "),
        ("LoHaConfig", {"lora_alpha": 8}, "LoHaConfig has no field lora_alpha (do you mean alpha"),
        ("LoHaConfig", {"task_type": "SEQ_CLS"}, "task_type cannot be set: it is FEATURE_EXTRACTION"),
        ("LoHaConfig", {"peft_type": "LORA"}, "peft_type cannot be set"),
        ("LoHaConfig", {"inference_mode": True}, "inference_mode cannot be set"),
        ("LoHaConfig", {"base_model_name_or_path": "x"}, "base_model_name_or_path cannot be set: the adapter names"),
        ("LoraConfig", {"trainable_token_indices": [1]}, "cannot be set: train_adapter.method: peft_and_tokens sets"),
        ("LoraConfig", {"eva_config": {}}, "eva_config cannot be set: its start is computed from examples"),
        ("LoraConfig", {"layer_replication": [[0, 1]]}, "layers that share weights"),
        ("LoraConfig", {"alora_invocation_tokens": [1]}, "cannot be merged"),
        ("LoraConfig", {"init_lora_weights": "eva"}, "'eva', which does not work here: its start is computed from"),
        ("LoraConfig", {"init_lora_weights": "pissa_niter_16"}, "a random part of the base"),
        ("LoraConfig", {"init_lora_weights": "kaiming"}, "is 'kaiming'; allowed: true, false, gaussian, orthogonal"),
        ("LoraConfig", {"init_lora_weights": 1}, "init_lora_weights is 1; allowed: true"),
        ("RandLoraConfig", {"save_projection": True}, "save_projection cannot be set: the pipeline sets it"),
        ("AdamssConfig", {"use_asa": True}, "use_asa cannot be set: it needs a call after each step"),
        ("HRAConfig", {"apply_GS": True}, "apply_GS cannot be set: its initialization"),
    ],
)
def test_what_does_not_work_is_reported_with_the_reason(config: str, arguments: dict[str, Any], told: str) -> None:
    assert told in complaint(config, **arguments)


def test_it_is_reported_when_params_yaml_is_read() -> None:
    with pytest.raises(ValidationError, match="VeraConfig does not work here"):
        train_params(method="peft", peft={"config": "VeraConfig"})


@pytest.mark.parametrize(
    ("config", "arguments", "told"),
    [
        (
            "LoHaConfig",
            {"target_modules": ["query", "q_proj"]},
            "train_adapter.peft.arguments.target_modules names q_proj, which the base does not have; allowed: ",
        ),
        ("LoHaConfig", {"r": 0, "target_modules": TARGETS}, "peft refuses LoHaConfig with the arguments r: 0, "),
        ("LoHaConfig", {"r": "8", "target_modules": TARGETS}, "peft refuses LoHaConfig with the arguments r: '8'"),
        ("C3AConfig", {"block_size": 7, "target_modules": TARGETS}, "peft refuses C3AConfig"),
        ("LoraConfig", {"r": 2, "target_modules": ".*nowhere"}, "peft refuses LoraConfig .*Target modules .*nowhere"),
        ("ShiraConfig", {"r": 2, "target_modules": ["LayerNorm"]}, "peft refuses ShiraConfig .*not supported"),
        ("LoraConfig", {"target_modules": ["query", "word_embeddings"]}, "would wrap word_embeddings, the input"),
        ("LoraConfig", {"target_modules": TARGETS, "modules_to_save": ["word_embeddings"]}, "would wrap word_embedd"),
    ],
)
def test_what_the_base_or_peft_refuses_is_reported(
    graft: Graft, config: str, arguments: dict[str, Any], told: str
) -> None:
    peft = PeftParams(config=config, arguments=arguments)
    with pytest.raises(VocabgraftError, match=told):
        add_adapter(load(graft.resized), "peft", graft.new_ids, lora_params(), peft)


def test_what_would_be_trained_and_not_saved_is_refused(graft: Graft, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(graft.resized)
    own = type(model).add_adapter

    def add(self: Any, config: Any) -> None:
        own(self, config)
        self[0].auto_model.encoder.layer[0].output.dense.bias.requires_grad_(True)

    monkeypatch.setattr(type(model), "add_adapter", add)
    peft = PeftParams(config="LoHaConfig", arguments=R)
    with pytest.raises(VocabgraftError, match=r"trains \S*layer.0.output.dense.bias without saving it"):
        add_adapter(model, "peft", graft.new_ids, lora_params(), peft)
