"""Every check passes on a sound chain and catches, by its name, the fault that it is there for."""

import contextlib
import copy
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
import torch

from tests.vocabgraft.conftest import (
    METHODS,
    NEW_TOKENS,
    Graft,
    load,
    rows_of,
    save_merged,
    save_random_adapter,
)
from tests.vocabgraft.stored_encodings import StoredEncodings, stored
from vocabgraft.checks import conditions, encodings
from vocabgraft.checks.context import Artifact, Evidence, Folders, gather_evidence
from vocabgraft.checks.encodings import MOST_ROUNDINGS
from vocabgraft.checks.isolated import Place
from vocabgraft.checks.result import NOISE_MULTIPLE
from vocabgraft.checks.runner import CHECKS, Check, check_all, run_check
from vocabgraft.config.params import Params
from vocabgraft.config.stages import CheckConsistencyParams, CheckName
from vocabgraft.config.training import Method
from vocabgraft.errors import VocabgraftError
from vocabgraft.models.saving import save_model
from vocabgraft.storage.artifacts import read_json, write_json
from vocabgraft.tokens.new_token import NewToken
from vocabgraft.tokens.tokenizer import extend_tokenizer, load_raw_tokenizer, load_tokenizer
from vocabgraft.training.adapters import adapter_parameters

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import PreTrainedTokenizerFast

TEXTS = (
    "a nephrolith in the kidney",
    "dog <|IsA|> animal",
    "the thrombopenia of the patient",
    "wood -> house",
    "a dog and a cat",
    "nephroliths",
    "pain in the liver",
)
NAMES = {entry.name for entry in CHECKS}
# Tests against chance need more tokens and triples than the tiny chain has; tests/vocabgraft/checks/test_meaning.py.
TOO_FEW = {"description_cosine", "descriptions_told_apart", "swapped_tokens"}
RELATIONS = {"relations_told_apart", "swapped_relations"}
# Random weights make no sink and mean nothing; tests/vocabgraft/checks/test_destroyed_tokens.py has the shipped base.
DESTROYED = {"attention_sinks", "meaning_kept"}
NO_ONNX = "the export is not installed here"


def params_of(**changes: Any) -> CheckConsistencyParams:
    """The default limits, but where random rows have others; ONNX waived."""
    # A mean of random rows is shorter than each of them, and random rows are near no meaning.
    small = {"waived": {"onnx_export": NO_ONNX}, "max_norm_ratio": 2.0, "max_meaning_rank": 1.0}
    return CheckConsistencyParams.model_validate(small | changes)


def gather(graft: Graft, method: Method, texts: Sequence[str] = TEXTS, **changed: Path) -> Evidence:
    """The evidence of a chain, with some of its folders exchanged."""
    given = {
        "base": graft.base,
        "tokenizer": graft.tokenizer,
        "resized": graft.resized,
        "adapter": graft.adapters[method],
        "merged": graft.merged[method],
    }
    with contextlib.chdir(graft.root):
        folders = Folders(**(given | changed))
        return gather_evidence(folders, graft.tokens, method, texts, (), (), params_of())


@pytest.fixture(scope="module")
def sound(graft: Graft) -> dict[Method, Evidence]:
    """Evidence of sound chains; never changed."""
    return {method: stored(gather(graft, method)) for method in METHODS}


def result(name: str, evidence: Evidence) -> Check:
    """One check's result, by its name."""
    return run_check(next(entry for entry in CHECKS if entry.name == name), evidence)


def failures(evidence: Evidence) -> set[str]:
    """The names of the checks that fail."""
    return {check.name for check in check_all(evidence) if check.verdict == "failed"}


def put(evidence: Evidence, **models: Any) -> Evidence:
    """With other models (or errors of loading) in place of some artifacts."""
    named = {name.replace("_", " "): model for name, model in models.items()}
    return replace(evidence, models={**evidence.models, **named})


def changed(evidence: Evidence, artifact: Artifact = "merged") -> "SentenceTransformer":
    """A copy of an artifact's model that may be damaged."""
    return copy.deepcopy(evidence.model(artifact))


def test_every_check_has_a_name_that_params_yaml_can_waive() -> None:
    assert set(get_args(CheckName)) == NAMES
    assert len(CHECKS) == len(NAMES)


def test_every_check_names_a_setting_that_exists_and_a_remedy() -> None:
    for entry in CHECKS:
        assert entry.remedy.endswith(".") and len(entry.remedy) < 160, entry.name
        if entry.setting is not None:
            section, key = entry.setting.split(".")
            owner: Any = Params.model_fields[section].annotation
            assert key in owner.model_fields, entry.name


@pytest.mark.parametrize("method", METHODS)
def test_a_sound_chain_passes_every_check_that_applies(sound: dict[Method, Evidence], method: Method) -> None:
    checks = check_all(sound[method])
    assert [check.name for check in checks] == [entry.name for entry in CHECKS]
    assert [check for check in checks if check.verdict == "failed"] == []
    skipped = {check.name for check in checks if check.verdict == "does not apply"}
    assert (
        skipped
        == RELATIONS
        | {"attention_sinks"}
        | {
            "tokens": set(),
            "gated": {"other_weights", "onnx_export"},
            "lora": {"new_rows_trained", "other_weights", "untouched_texts"},
            "lora_and_tokens": {"other_weights", "untouched_texts"},
            "peft": {"new_rows_trained", "other_weights", "untouched_texts"},
            "peft_and_tokens": {"other_weights", "untouched_texts"},
            "full": {
                "old_rows_adapter",
                "old_rows_merged",
                "other_weights",
                "untouched_texts",
                "adapter_switch",
                "adapter_names_base",
                "adapter_moved",
            },
        }[method]
    )
    assert all(check.reason for check in checks if check.verdict in ("does not apply", "waived", "too few to judge"))
    waived = [check.name for check in checks if check.verdict == "waived"]
    # A graph cannot hold a gate, so there is nothing to waive.
    assert waived == ([] if method == "gated" else ["onnx_export"])
    assert {check.name for check in checks if check.verdict == "too few to judge"} == TOO_FEW


def test_a_gate_that_is_always_open_and_one_that_is_always_shut_are_found(sound: dict[Method, Evidence]) -> None:
    evidence = sound["gated"]
    ids = len(evidence.tokenizer)
    faults = {"open": [[0, ids]], "shut": [[ids, ids]]}
    found = {}
    for name, gates in faults.items():
        merged = changed(evidence)
        merged[0].gates = gates
        broken = put(evidence, merged=merged)
        found[name] = {
            check
            for check in ("untouched_texts", "merged_as_adapter", "reload")
            if result(check, broken).verdict == "failed"
        }
    assert found == {"open": {"untouched_texts", "reload"}, "shut": {"merged_as_adapter", "reload"}}


Plant = Callable[[Evidence, Graft], Evidence]


def _weights_of(model: "SentenceTransformer") -> torch.Tensor:
    """The old rows, below an adapter where there is one."""
    embeddings = model[0].auto_model.get_input_embeddings()
    weight: torch.Tensor = getattr(embeddings, "base_layer", embeddings).weight
    return weight.detach()


def _shift_old_row(artifact: Artifact) -> Plant:
    def plant(evidence: Evidence, _: Graft) -> Evidence:
        model = changed(evidence, artifact)
        # The last old row: a range that stops one short would miss it.
        _weights_of(model)[min(evidence.new_ids) - 1] += 1e-6
        return put(evidence, **{artifact: model})

    return plant


def _leak_weight_decay(evidence: Evidence, _: Graft) -> Evidence:
    # AdamW shrinks every row of the matrix, whatever its gradient is masked to.
    model = changed(evidence)
    rows_of(model)[: min(evidence.new_ids)] *= 1 - 5e-3 * 0.01
    return put(evidence, merged=model)


def _shift_rows_by_one(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence)
    rows = rows_of(model)
    rows.copy_(rows.roll(1, dims=0))
    return put(evidence, merged=model)


def _change_new_row(change: Callable[[torch.Tensor], Any]) -> Plant:
    def plant(evidence: Evidence, _: Graft) -> Evidence:
        model = changed(evidence)
        change(rows_of(model)[evidence.new_ids])
        return put(evidence, merged=model)

    return plant


def _put_into_new_row(number: float) -> Plant:
    def plant(evidence: Evidence, _: Graft) -> Evidence:
        model = changed(evidence)
        rows_of(model)[evidence.new_ids[-1], 3] = number
        return put(evidence, merged=model)

    return plant


def _scale_new_row(factor: float) -> Plant:
    def plant(evidence: Evidence, _: Graft) -> Evidence:
        model = changed(evidence)
        rows_of(model)[evidence.new_ids[1]] *= factor
        return put(evidence, merged=model)

    return plant


def _repeat_new_row(noise: float) -> Plant:
    def plant(evidence: Evidence, _: Graft) -> Evidence:
        # The library's default resize draws all new rows like this.
        model = changed(evidence)
        first, *_, last = evidence.new_ids
        generator = torch.Generator().manual_seed(0)
        rows_of(model)[last] = rows_of(model)[first] * 1.1 + noise * torch.randn(32, generator=generator)
        return put(evidence, merged=model)

    return plant


def _reset_adapter(evidence: Evidence, _: Graft) -> Evidence:
    # An adapter whose saved weights are not found loads without error and acts as the resized base.
    resized = changed(evidence, "resized")
    adapter = changed(evidence, "adapter")
    start = rows_of(resized)[evidence.new_ids]
    with torch.no_grad():
        for name, parameter in adapter_parameters(adapter).items():
            if "trainable_tokens" in name:
                parameter.copy_(start)
            elif "lora_B" in name:
                parameter.zero_()
    return put(evidence, adapter=adapter, merged=resized, merged_in_memory=evidence.model("resized"))


def _reset_one_row(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence)
    rows_of(model)[evidence.new_ids[2]] = rows_of(evidence.model("resized"))[evidence.new_ids[2]]
    return put(evidence, merged=model)


def _reset_one_row_of_the_adapter(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence, "adapter")
    (rows,) = adapter_parameters(model).values()
    rows.data[2] = rows_of(evidence.model("resized"))[evidence.new_ids[2]]
    return put(evidence, adapter=model)


def _change_other_weight(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence)
    with torch.no_grad():
        model[0].auto_model.encoder.layer[1].output.dense.bias[0] += 1e-3
    return put(evidence, merged=model)


def _add_other_weight(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence)
    model[0].auto_model.register_parameter("planted", torch.nn.Parameter(torch.zeros(2)))
    return put(evidence, merged=model)


def _change_position_row(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence)
    with torch.no_grad():
        model[0].auto_model.embeddings.position_embeddings.weight[1] += 0.1
    return put(evidence, merged=model)


def _with_tokenizer(
    evidence: Evidence, tokenizer: "PreTrainedTokenizerFast", artifact: Artifact = "merged"
) -> Evidence:
    model = changed(evidence, artifact)
    model[0].processor = tokenizer
    return put(evidence, **{artifact: model})


def _extended(graft: Graft, tokens: Sequence[NewToken]) -> "PreTrainedTokenizerFast":
    tokenizer = load_tokenizer(graft.base)
    extend_tokenizer(tokenizer, load_raw_tokenizer(graft.base / "tokenizer.json"), tokens, 64)
    return tokenizer


def _match_inside_words(evidence: Evidence, graft: Graft) -> Evidence:
    everywhere = [
        NewToken(token.text, "special" if token.kind == "special" else "symbol", "is") for token in NEW_TOKENS
    ]
    return _with_tokenizer(evidence, _extended(graft, everywhere))


def _lose_token(artifact: Artifact) -> Plant:
    def plant(evidence: Evidence, graft: Graft) -> Evidence:
        return _with_tokenizer(evidence, _extended(graft, NEW_TOKENS[:-1]), artifact)

    return plant


def _swap_ids(evidence: Evidence, graft: Graft) -> Evidence:
    return _with_tokenizer(evidence, _extended(graft, NEW_TOKENS[::-1]))


def _swap_ids_of_the_list(evidence: Evidence, _: Graft) -> Evidence:
    first, second, *rest = evidence.tokens
    return replace(evidence, tokens=(replace(first, id=second.id), replace(second, id=first.id), *rest))


def _decode(spoil: Callable[..., str]) -> Plant:
    def plant(evidence: Evidence, graft: Graft) -> Evidence:
        tokenizer = load_tokenizer(graft.tokenizer)
        own = tokenizer.decode
        tokenizer.decode = lambda ids, **options: spoil(own, ids, **options)
        return _with_tokenizer(evidence, tokenizer)

    return plant


def _add_as_special(evidence: Evidence, graft: Graft) -> Evidence:
    # The flag by which a relation's token would vanish from every text decoded with skip_special_tokens.
    from tokenizers import AddedToken

    tokenizer = load_tokenizer(graft.base)
    for token in NEW_TOKENS:
        tokenizer.add_tokens([AddedToken(token.text, special=token.kind == "special", normalized=False)])
    return _with_tokenizer(evidence, tokenizer)


def _keep_case(evidence: Evidence, graft: Graft) -> Evidence:
    from tokenizers import normalizers

    tokenizer = load_tokenizer(graft.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    return _with_tokenizer(evidence, tokenizer, "adapter")


def _save_another_tokenizer(evidence: Evidence, graft: Graft) -> Evidence:
    tokenizer, other = load_tokenizer(graft.tokenizer), _extended(graft, NEW_TOKENS[:-1])
    tokenizer.save_pretrained = other.save_pretrained
    return _with_tokenizer(evidence, tokenizer)


def _forget_size(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence)
    model[0].auto_model.config.vocab_size = len(rows_of(evidence.model("base")))
    return put(evidence, merged=model)


def _do_not_resize(evidence: Evidence, graft: Graft) -> Evidence:
    model = load(graft.base)
    model[0].processor = evidence.model("resized").tokenizer
    return put(evidence, resized=model)


def _leave_id_out_of_matrix(evidence: Evidence, _: Graft) -> Evidence:
    *rest, last = evidence.tokens
    return replace(evidence, tokens=(*rest, replace(last, id=len(rows_of(evidence.model("merged"))))))


def _do_not_load(evidence: Evidence, _: Graft) -> Evidence:
    return put(evidence, adapter=VocabgraftError("the adapter does not load: planted"))


def _name_base(path: str | None) -> Plant:
    def plant(evidence: Evidence, _: Graft) -> Evidence:
        return replace(evidence, adapter_config={**evidence.adapter_config, "base_model_name_or_path": path})

    return plant


def _no_base(evidence: Evidence, _: Graft) -> Evidence:
    config = {key: value for key, value in evidence.adapter_config.items() if key != "base_model_name_or_path"}
    return replace(evidence, adapter_config=config)


def _other_adapter(evidence: Evidence, graft: Graft) -> Evidence:
    folder = save_random_adapter(graft.root, "tokens", graft.tokens, seed=2)
    with contextlib.chdir(graft.root):
        return put(evidence, adapter=load(folder))


def _save_wrongly(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence)
    with torch.no_grad():
        model[0].auto_model.get_input_embeddings().weight.copy_(rows_of(evidence.model("merged")).half().float())
    return put(evidence, merged=model)


def _change_weight_below_the_adapter(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence, "adapter")
    with torch.no_grad():
        model[0].auto_model.encoder.layer[1].output.dense.bias[0] += 1e-3
    return put(evidence, adapter=model)


def _stay_disabled(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence, "adapter")
    model.enable_adapters = lambda: None
    return put(evidence, adapter=model)


def _find_elsewhere(place: Place) -> Plant:
    def plant(evidence: Evidence, _: Graft) -> Evidence:
        moved: dict[Place, list[Any]] = {name: evidence.fresh.encodings(name) for name in get_args(Place)}
        moved[place] = [values + np.float32(1e-5) for values in moved[place]]
        return replace(evidence, fresh=StoredEncodings(evidence.fresh.lists, moved))

    return plant


def _hooked(evidence: Evidence, place: int, hook: Callable[[dict[str, Any]], None]) -> Evidence:
    """The merged model with something done to what its module at a place gives on."""
    model = changed(evidence)
    own = model[place].forward

    def forward(features: dict[str, Any], **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = own(features, **options)
        hook(found)
        return found

    model[place].forward = forward
    return put(evidence, merged=model)


def _centre_each_batch(evidence: Evidence, _: Graft) -> Evidence:
    # As a batch norm does that was left in training.
    def centre(features: dict[str, Any]) -> None:
        features["sentence_embedding"] = features["sentence_embedding"] - features["sentence_embedding"].mean(0) / 100

    return _hooked(evidence, 1, centre)


def _shift_numbers_in_batches(evidence: Evidence, _: Graft) -> Evidence:
    # A fault that is large beside 3 decimal digits.
    def turn(features: dict[str, Any]) -> None:
        if len(features["sentence_embedding"]) > 1:
            features["sentence_embedding"] = features["sentence_embedding"].roll(1, dims=1)

    return _hooked(evidence, 1, turn)


def _pool_padding_too(evidence: Evidence, _: Graft) -> Evidence:
    def forget(features: dict[str, Any]) -> None:
        features["attention_mask"] = torch.ones_like(features["attention_mask"])

    return _hooked(evidence, 0, forget)


def _cancel_in_float32_alone(evidence: Evidence, _: Graft) -> Evidence:
    # The layer norm takes a shift of all numbers out again; bfloat16 has no digits left for what was shifted.
    model = changed(evidence)
    with torch.no_grad():
        dense = model[0].auto_model.encoder.layer[1].output.dense
        dense.weight *= 100
        dense.bias += 1e4
    return put(evidence, merged=model)


PLANTED: list[tuple[str, Plant]] = [
    ("old_rows_resized", _shift_old_row("resized")),
    ("old_rows_adapter", _shift_old_row("adapter")),
    ("old_rows_merged", _shift_old_row("merged")),
    ("old_rows_merged", _leak_weight_decay),
    ("old_rows_merged", _shift_rows_by_one),
    ("new_rows_finite", _put_into_new_row(float("nan"))),
    ("new_rows_finite", _put_into_new_row(float("-inf"))),
    ("new_row_norms", _scale_new_row(100)),
    ("new_row_norms", _scale_new_row(0.01)),
    ("new_row_norms", _scale_new_row(0)),
    ("new_row_norms", _put_into_new_row(float("nan"))),
    ("new_rows_apart", _repeat_new_row(0)),
    ("new_rows_apart", _repeat_new_row(1e-4)),
    ("new_rows_apart", _put_into_new_row(float("nan"))),
    ("new_rows_trained", _reset_adapter),
    ("new_rows_trained", _reset_one_row),
    ("other_weights", _change_other_weight),
    ("other_weights", _add_other_weight),
    ("other_weights", _change_position_row),
    ("untouched_texts", _change_other_weight),
    ("untouched_texts", _leak_weight_decay),
    ("segmentation", _match_inside_words),
    ("one_id_each", _lose_token("merged")),
    ("one_id_each", _swap_ids),
    ("one_id_each", _swap_ids_of_the_list),
    ("one_id_each", _decode(lambda *_, **__: "planted")),
    ("sizes_agree", _forget_size),
    ("sizes_agree", _do_not_resize),
    ("sizes_agree", _leave_id_out_of_matrix),
    ("sizes_agree", _swap_ids),
    ("sizes_agree", _swap_ids_of_the_list),
    ("sizes_agree", _lose_token("adapter")),
    ("tokenizers_equal", _lose_token("resized")),
    ("tokenizers_equal", _lose_token("adapter")),
    ("tokenizers_equal", _swap_ids),
    ("tokenizers_equal", _add_as_special),
    ("tokenizers_equal", _keep_case),
    ("tokenizer_reload", _save_another_tokenizer),
    ("special_tokens", _add_as_special),
    ("special_tokens", _decode(lambda own, ids, **_: own(ids))),
    ("artifacts_load", _do_not_load),
    ("reload", _save_wrongly),
    ("merged_as_adapter", _other_adapter),
    ("adapter_switch", _change_weight_below_the_adapter),
    ("adapter_switch", _stay_disabled),
    ("fresh_process", _find_elsewhere("folder")),
    ("moved_folder", _find_elsewhere("moved")),
    ("base_absent", _find_elsewhere("alone")),
    ("one_at_a_time", _centre_each_batch),
    ("padding", _pool_padding_too),
    ("bfloat16", _cancel_in_float32_alone),
    ("trained_differs", _reset_adapter),
    ("trained_differs", _reset_one_row),
    ("adapter_moved", _reset_adapter),
    ("adapter_moved", _reset_one_row_of_the_adapter),
    ("adapter_names_base", _name_base("/home/me/data/resize_base")),
    ("adapter_names_base", _name_base("~/data/resize_base")),
    ("adapter_names_base", _name_base("C:\\data\\resize_base")),
    ("adapter_names_base", _name_base("\\\\server\\data\\resize_base")),
    ("adapter_names_base", _name_base("")),
    ("adapter_names_base", _name_base(None)),
    ("adapter_names_base", _no_base),
]


def test_a_fault_is_planted_for_every_check() -> None:
    # What tokens mean and ONNX have tests of their own.
    assert {name for name, _ in PLANTED} == NAMES - TOO_FEW - RELATIONS - DESTROYED - {"onnx_export"}


@pytest.mark.parametrize(("name", "plant"), PLANTED)
def test_a_planted_fault_is_caught_by_the_check_for_it(
    sound: dict[Method, Evidence], graft: Graft, name: str, plant: Plant
) -> None:
    assert result(name, sound["tokens"]).verdict == "passed"
    found = result(name, plant(sound["tokens"], graft))
    assert (found.name, found.verdict) == (name, "failed")
    assert found.details
    assert not found.reason.startswith("could not run")


@pytest.mark.parametrize("method", ["lora", "lora_and_tokens"])
def test_an_adapter_of_lora_that_was_reset_is_caught(
    sound: dict[Method, Evidence], graft: Graft, method: Method
) -> None:
    assert {"trained_differs", "adapter_moved"} <= failures(_reset_adapter(sound[method], graft))


def test_one_weight_of_lora_at_its_start_is_named(sound: dict[Method, Evidence]) -> None:
    model = changed(sound["lora"], "adapter")
    name = next(name for name in adapter_parameters(model) if "layer.1" in name and "lora_B" in name)
    with torch.no_grad():
        adapter_parameters(model)[name].zero_()
    found = result("adapter_moved", put(sound["lora"], adapter=model))
    assert (found.figure, found.details) == (1, (f"{name}: not trained",))


def test_a_weight_that_no_embedding_depends_on_need_not_move(sound: dict[Method, Evidence]) -> None:
    # LoRA's `dense` is a pooler's too, which gets no gradient.
    model = changed(sound["lora"], "adapter")
    (pooler,) = [value for name, value in adapter_parameters(model).items() if "pooler" in name and "lora_B" in name]
    with torch.no_grad():
        pooler.zero_()
    assert result("adapter_moved", put(sound["lora"], adapter=model)).verdict == "passed"


def test_a_kept_row_between_those_that_train_is_an_old_one(sound: dict[Method, Evidence]) -> None:
    # As after a second run: the base has all rows, the first and the last trained, those between were kept.
    grown, model = changed(sound["tokens"], "base"), changed(sound["tokens"])
    embeddings = grown[0].auto_model.get_input_embeddings()
    embeddings.weight = torch.nn.Parameter(rows_of(model).clone())
    embeddings.num_embeddings = len(rows_of(model))
    first, kept, *_, last = sound["tokens"].tokens
    second = replace(put(sound["tokens"], base=grown, merged=model), tokens=(first, last))
    rows_of(model)[[first.id, last.id]] += 1
    assert result("old_rows_merged", second).figure == 0
    rows_of(model)[kept.id] += 1e-6
    assert result("old_rows_merged", second).figure == 1


@pytest.mark.parametrize(
    ("plant", "caught"),
    [
        (_shift_old_row("resized"), {"old_rows_resized"}),
        (_name_base("/x"), {"adapter_names_base"}),
        (_forget_size, {"sizes_agree"}),
        (_other_adapter, {"merged_as_adapter"}),
        (
            _change_other_weight,
            {"other_weights", "untouched_texts", "reload", "merged_as_adapter", "fresh_process", "moved_folder"}
            | {"base_absent"},
        ),
        (_stay_disabled, {"adapter_switch"}),
        (_save_another_tokenizer, {"tokenizer_reload"}),
    ],
)
def test_a_fault_fails_no_check_that_it_does_not_touch(
    sound: dict[Method, Evidence], graft: Graft, plant: Plant, caught: set[str]
) -> None:
    assert failures(plant(sound["tokens"], graft)) == caught


@pytest.mark.parametrize(
    "name",
    "untouched_texts reload merged_as_adapter fresh_process one_at_a_time padding bfloat16 trained_differs".split(),
)
def test_an_embedding_that_is_no_number_never_passes(sound: dict[Method, Evidence], name: str) -> None:
    model = changed(sound["tokens"])
    with torch.no_grad():
        model[0].auto_model.encoder.layer[1].output.dense.bias[0] = float("nan")
    found = result(name, put(sound["tokens"], merged=model))
    assert (found.verdict, found.figure, found.reason) == ("failed", None, "the value is NaN or infinite")
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["figure"] is None


def test_figures_count_what_is_wrong_and_details_name_it(sound: dict[Method, Evidence], graft: Graft) -> None:
    model = changed(sound["tokens"])
    rows_of(model)[[3, 9]] += 1
    found = result("old_rows_merged", put(sound["tokens"], merged=model))
    assert found.figure == 2
    assert found.details == ("[SEP] (3): by up to 1", f"{graft_piece(graft, 9)} (9): by up to 1")
    assert result("new_rows_trained", _reset_adapter(sound["tokens"], graft)).figure == len(graft.tokens)
    swapped = result("one_id_each", _swap_ids_of_the_list(sound["tokens"], graft))
    assert [detail.split()[0] for detail in swapped.details] == ["nephrolith", "Thrombopenia"]


def graft_piece(graft: Graft, token_id: int) -> str:
    return str(load_tokenizer(graft.base).convert_ids_to_tokens(token_id))


def test_details_are_ten_at_most_and_say_how_many_more_there_are(sound: dict[Method, Evidence]) -> None:
    model = changed(sound["tokens"])
    rows_of(model)[:30] += 1
    found = result("old_rows_merged", put(sound["tokens"], merged=model))
    assert (found.figure, len(found.details), found.details[-1]) == (30, 10, "and 21 more")


def test_a_row_without_a_training_text_may_stay_and_is_listed(sound: dict[Method, Evidence], graft: Graft) -> None:
    reset = _reset_adapter(sound["tokens"], graft)
    excused = replace(reset, without_training_text=frozenset(token.text for token in graft.tokens[1:]))
    for name in ("new_rows_trained", "adapter_moved"):
        found = result(name, excused)
        assert (found.verdict, found.figure) == ("failed", 1)
    assert "->, <|IsA|>, Thrombopenia" in result("new_rows_trained", excused).details[-1]
    all_excused = replace(reset, without_training_text=frozenset(token.text for token in graft.tokens))
    assert result("new_rows_trained", all_excused).verdict == "passed"
    assert "no probe text contains a trained token" in result("trained_differs", all_excused).reason


def test_a_row_that_was_set_back_as_a_sink_may_be_at_its_start_and_is_listed(
    sound: dict[Method, Evidence], graft: Graft
) -> None:
    reset = _reset_adapter(sound["tokens"], graft)
    excused = replace(reset, set_back=frozenset(token.text for token in graft.tokens[1:]))
    for name in ("new_rows_trained", "adapter_moved"):
        found = result(name, excused)
        assert (found.verdict, found.figure) == ("failed", 1)
    assert "reset as attention sinks" in result("new_rows_trained", excused).details[-1]
    assert "Thrombopenia" in result("new_rows_trained", excused).details[-1]


def test_the_limits_are_those_of_the_parameters(sound: dict[Method, Evidence]) -> None:
    tight = params_of(merged_tolerance=1e-2, min_change=100.0, max_row_cosine=0.01)
    evidence = replace(sound["lora_and_tokens"], params=tight)
    assert failures(evidence) >= {"trained_differs", "new_rows_apart"}
    assert result("trained_differs", evidence).limit == "at least 100"
    assert result("merged_as_adapter", evidence).limit == "at most 0.01"


# Numeric tolerances: the base's own noise, in the same run, is the measure.


def _in_type(evidence: Evidence, dtype: torch.dtype) -> Evidence:
    """With base and merged model computed in another number type."""
    base, merged = (changed(evidence, artifact).to(dtype) for artifact in ("base", "merged"))
    return put(evidence, base=base, merged=merged)


@pytest.mark.parametrize("name", ["one_at_a_time", "padding"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_rounds_as_its_base_does(
    sound: dict[Method, Evidence], graft: Graft, name: str, dtype: torch.dtype
) -> None:
    # These types have 3 decimal digits or fewer: batching alone costs far more than the tolerance of float32.
    evidence = _in_type(sound["tokens"], dtype)
    found = result(name, evidence)
    assert (found.verdict, found.details) == ("passed", ())
    assert found.figure is not None and found.noise is not None
    assert found.noise > 0
    assert found.limit == f"at most {NOISE_MULTIPLE * found.noise:.3g}"
    planted = {"one_at_a_time": _shift_numbers_in_batches, "padding": _pool_padding_too}[name]
    assert result(name, planted(evidence, graft)).verdict == "failed"


def test_the_tolerance_is_a_floor_where_the_base_has_no_noise(sound: dict[Method, Evidence]) -> None:
    found = result("adapter_switch", sound["lora"])
    assert (found.noise, found.limit) == (0, "at most 1e-06")


@pytest.mark.parametrize("name", ["one_at_a_time", "padding"])
def test_a_fault_of_the_base_is_no_noise(sound: dict[Method, Evidence], graft: Graft, name: str) -> None:
    plant = {"one_at_a_time": _centre_each_batch, "padding": _pool_padding_too}[name]
    faulty = plant(sound["tokens"], graft)
    both = put(faulty, base=plant(put(sound["tokens"], merged=changed(faulty, "base")), graft).model("merged"))
    found = result(name, both)
    assert found.verdict == "failed"
    assert found.noise == pytest.approx(MOST_ROUNDINGS * torch.finfo(torch.float32).eps)


def test_a_base_without_a_number_leaves_the_floor(sound: dict[Method, Evidence]) -> None:
    base = changed(sound["tokens"], "base")
    with torch.no_grad():
        base[0].auto_model.encoder.layer[1].output.dense.bias[0] = float("nan")
    found = result("one_at_a_time", put(sound["tokens"], base=base))
    assert (found.verdict, found.limit, found.noise) == ("passed", "at most 1e-06", None)


def test_a_difference_is_relative_to_the_length_of_the_embedding(sound: dict[Method, Evidence]) -> None:
    # Without a Normalize embeddings are longer, and so is their rounding.
    def lengthen(model: "SentenceTransformer") -> "SentenceTransformer":
        copied = copy.deepcopy(model)
        copied[2].forward = lambda features, **_: (
            features | {"sentence_embedding": 1000 * torch.nn.functional.normalize(features["sentence_embedding"])}
        )
        return copied

    longer = put(sound["tokens"], merged=lengthen(sound["tokens"].model("merged")))
    assert result("one_at_a_time", longer).verdict == "passed"
    assert result("padding", longer).verdict == "passed"


def test_a_matrix_that_lost_old_rows_is_caught(sound: dict[Method, Evidence]) -> None:
    model = changed(sound["tokens"])
    embeddings = model[0].auto_model.get_input_embeddings()
    embeddings.weight = torch.nn.Parameter(embeddings.weight.detach()[:100])
    evidence = put(sound["tokens"], merged=model)
    found = result("old_rows_merged", evidence)
    assert (found.verdict, found.figure) == ("failed", min(evidence.new_ids) - 100)
    assert result("sizes_agree", evidence).verdict == "failed"


# Faults on disk, through all of gather_evidence.


def test_a_merged_folder_of_an_earlier_adapter_is_caught(graft: Graft) -> None:
    other = save_random_adapter(graft.root, "tokens", graft.tokens, seed=3)
    assert failures(stored(gather(graft, "tokens", adapter=other))) == {"reload", "merged_as_adapter"}


def test_a_merged_folder_of_another_resize_is_caught(graft: Graft, tmp_path: Path) -> None:
    model = load(graft.merged["tokens"])
    rows_of(model)[7] += 0.5
    (tmp_path / "merged").mkdir()
    save_model(model, tmp_path / "merged")
    assert "old_rows_merged" in failures(stored(gather(graft, "tokens", merged=tmp_path / "merged")))


def test_an_adapter_whose_saved_weights_are_not_found_is_caught(graft: Graft, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "adapter"
    shutil.copytree(graft.adapters["tokens"], folder)
    weights = load_file(folder / "adapter_model.safetensors")
    # Under another name the weights are ignored, and PEFT goes on with fresh ones.
    save_file({f"renamed.{name}": tensor for name, tensor in weights.items()}, folder / "adapter_model.safetensors")
    shutil.copytree(graft.root / "data", tmp_path / "chain" / "data")
    merged = save_merged(tmp_path / "chain", "tokens", folder, graft.tokens)
    found = failures(stored(gather(graft, "tokens", adapter=folder, merged=merged)))
    assert {"new_rows_trained", "trained_differs", "adapter_moved"} <= found


def test_an_absolute_base_is_read_from_the_adapters_own_file(graft: Graft, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(graft.adapters["tokens"], folder)
    config = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", config | {"base_model_name_or_path": str(graft.resized)})
    assert failures(stored(gather(graft, "tokens", adapter=folder))) == {"adapter_names_base"}


def test_a_resize_that_was_not_saved_is_caught(graft: Graft, tmp_path: Path) -> None:
    # The adapter was trained over rows that no folder has: the saved one has the new tokenizer and the old matrix.
    unsaved = tmp_path / "resized"
    shutil.copytree(graft.resized, unsaved)
    shutil.copy(graft.base / "model.safetensors", unsaved)
    shutil.copy(graft.base / "config.json", unsaved)
    adapter = tmp_path / "adapter"
    shutil.copytree(graft.adapters["tokens"], adapter)
    config = read_json(adapter / "adapter_config.json")
    write_json(adapter / "adapter_config.json", config | {"base_model_name_or_path": str(unsaved)})
    evidence = gather(graft, "tokens", resized=unsaved, adapter=adapter)
    found = {check.name: check for check in check_all(stored(evidence))}
    assert {"sizes_agree", "artifacts_load", "reload", "merged_as_adapter"} <= {
        name for name, check in found.items() if check.verdict == "failed"
    }
    assert any("adapter" in detail for detail in found["artifacts_load"].details)


def test_a_merged_folder_with_the_bases_tokenizer_is_caught(graft: Graft, tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    shutil.copytree(graft.merged["tokens"], folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(graft.base / name, folder / name)
    found = failures(stored(gather(graft, "tokens", merged=folder)))
    assert {"one_id_each", "sizes_agree", "tokenizers_equal", "reload"} <= found


# Checks that cannot run, and those that are waived.


@pytest.mark.parametrize(
    ("texts", "told", "lost", "kept"),
    [
        (("a nephrolith", "a nephrolith"), "no probe text without a new word", "untouched_texts", "trained_differs"),
        ((), "no probe text without a new word", "reload", "old_rows_merged"),
    ],
)
def test_an_empty_probe_set_fails_what_it_was_for(
    graft: Graft, texts: tuple[str, ...], told: str, lost: str, kept: str
) -> None:
    evidence = gather(graft, "tokens", texts)
    found = {check.name: check for check in check_all(evidence)}
    assert (found[lost].verdict, found[lost].figure) == ("failed", None)
    assert told in found[lost].reason
    assert "add retention pairs" in found[lost].reason
    assert found[kept].verdict == "passed"
    assert found["fresh_process"].verdict == "failed"


@pytest.mark.usefixtures("isolated_forks")
def test_words_in_no_text_are_probed_in_templates(graft: Graft) -> None:
    evidence = gather(graft, "tokens", ("a dog",))
    assert all(any(token.text.lower() in text.lower() for token in graft.tokens) for text in evidence.probes.with_new)
    found = {check.name: check.verdict for check in check_all(evidence)}
    assert found["trained_differs"] == found["fresh_process"] == found["reload"] == "passed"


@pytest.mark.usefixtures("isolated_forks")
def test_checks_of_training_do_not_apply_to_an_untrained_model(graft: Graft) -> None:
    evidence = replace(gather(graft, "tokens", ("a dog", "a nephrolith")), trained=False)
    found = {check.name: check for check in check_all(evidence)}
    for name in ("new_rows_trained", "trained_differs", "adapter_moved", "relations_told_apart", "swapped_relations"):
        assert (found[name].verdict, found[name].reason[:20]) == ("does not apply", "nothing was trained:")
    assert found["other_weights"].verdict == found["untouched_texts"].verdict == "passed"


def test_a_check_that_cannot_run_has_failed_and_says_why(sound: dict[Method, Evidence]) -> None:
    broken = put(sound["tokens"], merged=VocabgraftError("data/merge_adapter does not load: planted"))
    found = {check.name: check for check in check_all(broken)}
    assert found["artifacts_load"].details == ("data/merge_adapter does not load: planted",)
    assert found["reload"].verdict == "failed"
    assert found["reload"].reason == "could not run: data/merge_adapter does not load: planted"
    assert found["old_rows_resized"].verdict == "passed"
    # That a condition cannot be looked at is no reason not to apply.
    assert found["untouched_texts"].verdict == "failed"


def test_an_error_of_a_library_is_reported_with_its_kind(sound: dict[Method, Evidence]) -> None:
    model = changed(sound["tokens"])
    model.encode = lambda *_, **__: 1 / 0  # type: ignore[method-assign]
    found = result("padding", put(sound["tokens"], merged=model))
    assert (found.verdict, found.reason) == ("failed", "could not run: ZeroDivisionError: division by zero")


def test_a_waived_check_that_fails_is_waived_with_its_reason_and_keeps_its_figure(
    sound: dict[Method, Evidence], graft: Graft
) -> None:
    waived = replace(sound["tokens"], params=params_of(waived={"other_weights": "known, see the ticket"}))
    found = result("other_weights", _change_other_weight(waived, graft))
    assert (found.verdict, found.reason, found.figure) == ("waived", "known, see the ticket", 1)
    assert found.details
    assert result("other_weights", waived).verdict == "passed"
    assert result("other_weights", waived).reason == ""


def test_a_waived_check_that_cannot_run_says_both(sound: dict[Method, Evidence]) -> None:
    broken = put(sound["tokens"], merged=VocabgraftError("planted"))
    found = result("padding", replace(broken, params=params_of(waived={"padding": "no time"})))
    assert (found.verdict, found.reason, found.details) == ("waived", "no time", ("could not run: planted",))


@pytest.mark.parametrize(
    ("waived", "told"),
    [({"paddings": "why"}, "paddings"), ({"padding": ""}, "at least 1"), ({"padding": "  "}, "at least 1")],
)
def test_a_waiver_of_no_check_or_without_a_reason_is_refused(waived: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CheckConsistencyParams(waived=waived)


def test_the_export_does_not_apply_where_its_packages_are_missing_and_does_not_run_where_it_is_waived(
    sound: dict[Method, Evidence], monkeypatch: pytest.MonkeyPatch
) -> None:
    waived = result("onnx_export", sound["tokens"])
    assert (waived.verdict, waived.reason, waived.figure) == ("waived", NO_ONNX, None)
    monkeypatch.setattr(conditions, "missing_packages", lambda: ["onnxruntime"])
    found = result("onnx_export", replace(sound["tokens"], params=params_of(waived={})))
    assert (found.verdict, found.figure) == ("does not apply", None)
    assert "onnxruntime is not installed" in found.reason and "vocabgraft[onnx]" in found.reason


def test_the_export_does_not_apply_to_a_model_that_no_graph_holds(
    sound: dict[Method, Evidence], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise VocabgraftError("the export to ONNX does not cover module custom_0, a Router")

    monkeypatch.setattr(conditions, "missing_packages", list)
    monkeypatch.setattr(conditions, "parts_of", refuse)
    found = result("onnx_export", replace(sound["tokens"], params=params_of(waived={})))
    assert (found.verdict, found.figure) == ("does not apply", None) and "a Router" in found.reason


@pytest.mark.parametrize("fault", ["none", "weights", "ranks"])
def test_an_export_that_differs_does_not_pass(
    sound: dict[Method, Evidence], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    own = encodings.write_onnx_folder

    def write(model: "SentenceTransformer", folder: Path) -> None:
        changed = copy.deepcopy(model)
        if fault != "none":
            generator = torch.Generator().manual_seed(0)
            rows_of(changed)[:] += torch.randn(rows_of(changed).shape, generator=generator)
        own(changed, folder)

    monkeypatch.setattr(encodings, "write_onnx_folder", write)
    # With any difference allowed, the order of results still tells.
    limits = params_of(waived={}, onnx_tolerance=10.0 if fault == "ranks" else 1e-5)
    found = result("onnx_export", replace(sound["tokens"], params=limits))
    assert found.figure is not None and found.figure > 0
    assert found.verdict == ("passed" if fault == "none" else "failed")
    assert any("of the ten nearest" in detail for detail in found.details) == (fault != "none")


def test_a_check_can_be_written_as_json(sound: dict[Method, Evidence]) -> None:
    for check in check_all(sound["lora"]):
        loaded = json.loads(json.dumps(check.as_json(), allow_nan=False))
        assert set(loaded) == {field.name for field in fields(Check)} - {"by_token"}
        assert loaded["name"] in NAMES
