"""Every check passes on a sound chain and catches, by its name, the fault that it is there for."""

import contextlib
import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.vocabgraft.conftest import METHODS, NEW_TOKENS, Graft, load, rows_of, save_merged, save_random_adapter
from vocabgraft.artifacts import read_json, write_json
from vocabgraft.consistency import CHECKS, Check, Evidence, check_all, gather_evidence
from vocabgraft.errors import VocabgraftError
from vocabgraft.model_folder import save_model
from vocabgraft.params import CheckConsistencyParams, Method
from vocabgraft.tokenizer import extend_tokenizer, load_raw_tokenizer, load_tokenizer
from vocabgraft.vocabulary import NewToken

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
NAMES = {check.__name__ for check in CHECKS}


def gather(graft: Graft, method: Method, texts: tuple[str, ...] = TEXTS, **folders: Path) -> Evidence:
    """The evidence of a chain, with some of its folders exchanged."""
    given: dict[str, Path] = {
        "base": graft.base,
        "resized": graft.resized,
        "adapter": graft.adapters[method],
        "merged": graft.merged[method],
    }
    with contextlib.chdir(graft.root):
        return gather_evidence(
            **(given | folders), tokens=graft.tokens, method=method, texts=texts, params=CheckConsistencyParams()
        )


@pytest.fixture(scope="module")
def sound(graft: Graft) -> dict[Method, Evidence]:
    """Evidence of sound chains; never changed."""
    return {method: gather(graft, method) for method in METHODS}


def failures(evidence: Evidence) -> set[str]:
    """The names of the checks that fail."""
    return {check.name for check in check_all(evidence) if check.verdict == "failed"}


def changed(model: "SentenceTransformer") -> "SentenceTransformer":
    """A copy that may be damaged."""
    return copy.deepcopy(model)


@pytest.mark.parametrize("method", METHODS)
def test_a_sound_chain_passes_every_check_that_applies(sound: dict[Method, Evidence], method: Method) -> None:
    checks = check_all(sound[method])
    assert [check.name for check in checks] == [check.__name__ for check in CHECKS]
    assert [check for check in checks if check.verdict == "failed"] == []
    skipped = {check.name for check in checks if check.verdict == "does not apply"}
    assert (
        skipped
        == {
            "tokens": set(),
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


Plant = Callable[[Evidence, Graft], Evidence]


def _shift_old_row_of_resized(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence.resized)
    rows_of(model)[40] += 1e-6
    return replace(evidence, resized=model)


def _lose_rows_of_merged(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence.merged)
    embeddings = model[0].auto_model.get_input_embeddings()
    embeddings.weight = torch.nn.Parameter(embeddings.weight.detach()[:100])
    return replace(evidence, merged=model, tokens=tuple(replace(token, id=token.id - 40) for token in evidence.tokens))


def _shift_old_row_of_merged(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence.merged)
    # The last old row: a range that stops one short would miss it.
    rows_of(model)[min(evidence.new_ids) - 1] += 1e-6
    return replace(evidence, merged=model)


def _put_into_new_row(number: float) -> Plant:
    def plant(evidence: Evidence, _: Graft) -> Evidence:
        model = changed(evidence.merged)
        rows_of(model)[evidence.new_ids[-1], 3] = number
        return replace(evidence, merged=model)

    return plant


def _reset_adapter(evidence: Evidence, _: Graft) -> Evidence:
    # An adapter whose saved weights are not found loads without error and acts as the resized base.
    return replace(
        evidence, adapter=evidence.resized, merged=changed(evidence.resized), merged_in_memory=evidence.resized
    )


def _reset_one_row(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence.merged)
    rows_of(model)[evidence.new_ids[2]] = rows_of(evidence.resized)[evidence.new_ids[2]]
    return replace(evidence, merged=model)


def _change_other_weight(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence.merged)
    with torch.no_grad():
        model[0].auto_model.encoder.layer[1].output.dense.bias[0] += 1e-3
    return replace(evidence, merged=model)


def _add_other_weight(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence.merged)
    model[0].auto_model.register_parameter("planted", torch.nn.Parameter(torch.zeros(2)))
    return replace(evidence, merged=model)


def _change_position_row(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence.merged)
    with torch.no_grad():
        model[0].auto_model.embeddings.position_embeddings.weight[1] += 0.1
    return replace(evidence, merged=model)


def _with_tokenizer(evidence: Evidence, tokenizer: "PreTrainedTokenizerFast") -> Evidence:
    model = changed(evidence.merged)
    model[0].processor = tokenizer
    return replace(evidence, merged=model)


def _match_inside_words(evidence: Evidence, graft: Graft) -> Evidence:
    tokenizer = load_tokenizer(graft.base)
    everywhere = [
        NewToken(token.text, "special" if token.kind == "special" else "symbol", "is") for token in NEW_TOKENS
    ]
    extend_tokenizer(tokenizer, load_raw_tokenizer(graft.base / "tokenizer.json"), everywhere, 64)
    return _with_tokenizer(evidence, tokenizer)


def _lose_token(evidence: Evidence, graft: Graft) -> Evidence:
    tokenizer = load_tokenizer(graft.base)
    extend_tokenizer(tokenizer, load_raw_tokenizer(graft.base / "tokenizer.json"), NEW_TOKENS[:-1], 64)
    return _with_tokenizer(evidence, tokenizer)


def _swap_ids(evidence: Evidence, graft: Graft) -> Evidence:
    tokenizer = load_tokenizer(graft.base)
    extend_tokenizer(tokenizer, load_raw_tokenizer(graft.base / "tokenizer.json"), NEW_TOKENS[::-1], 64)
    return _with_tokenizer(evidence, tokenizer)


def _swap_ids_of_the_list(evidence: Evidence, _: Graft) -> Evidence:
    first, second, *rest = evidence.tokens
    return replace(evidence, tokens=(replace(first, id=second.id), replace(second, id=first.id), *rest))


def _decode_to_something_else(evidence: Evidence, graft: Graft) -> Evidence:
    tokenizer = load_tokenizer(graft.tokenizer)
    tokenizer.decode = lambda *_, **__: "planted"
    return _with_tokenizer(evidence, tokenizer)


def _forget_size(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence.merged)
    model[0].auto_model.config.vocab_size = len(rows_of(evidence.base))
    return replace(evidence, merged=model)


def _do_not_resize(evidence: Evidence, graft: Graft) -> Evidence:
    model = load(graft.base)
    model[0].processor = evidence.resized.tokenizer
    return replace(evidence, resized=model)


def _leave_id_out_of_matrix(evidence: Evidence, _: Graft) -> Evidence:
    *rest, last = evidence.tokens
    return replace(evidence, tokens=(*rest, replace(last, id=len(rows_of(evidence.merged)))))


def _absolute_base(path: str | None) -> Plant:
    def plant(evidence: Evidence, _: Graft) -> Evidence:
        return replace(evidence, adapter_config=evidence.adapter_config | {"base_model_name_or_path": path})

    return plant


def _no_base(evidence: Evidence, _: Graft) -> Evidence:
    config = {key: value for key, value in evidence.adapter_config.items() if key != "base_model_name_or_path"}
    return replace(evidence, adapter_config=config)


def _other_adapter(evidence: Evidence, graft: Graft) -> Evidence:
    folder = save_random_adapter(graft.root, "tokens", graft.tokens, seed=2)
    with contextlib.chdir(graft.root):
        return replace(evidence, adapter=load(folder))


def _save_wrongly(evidence: Evidence, _: Graft) -> Evidence:
    model = changed(evidence.merged)
    with torch.no_grad():
        model[0].auto_model.get_input_embeddings().weight.copy_(rows_of(evidence.merged).half().float())
    return replace(evidence, merged=model)


PLANTED: list[tuple[str, Plant]] = [
    ("old_rows_resized", _shift_old_row_of_resized),
    ("old_rows_merged", _shift_old_row_of_merged),
    ("new_rows_finite", _put_into_new_row(float("nan"))),
    ("new_rows_finite", _put_into_new_row(float("-inf"))),
    ("new_rows_trained", _reset_adapter),
    ("new_rows_trained", _reset_one_row),
    ("other_weights", _change_other_weight),
    ("other_weights", _add_other_weight),
    ("other_weights", _change_position_row),
    ("untouched_texts", _change_other_weight),
    ("segmentation", _match_inside_words),
    ("one_id_each", _lose_token),
    ("one_id_each", _swap_ids),
    ("one_id_each", _swap_ids_of_the_list),
    ("one_id_each", _decode_to_something_else),
    ("sizes_agree", _forget_size),
    ("sizes_agree", _do_not_resize),
    ("sizes_agree", _leave_id_out_of_matrix),
    ("reload", _save_wrongly),
    ("merged_as_adapter", _other_adapter),
    ("trained_differs", _reset_adapter),
    ("adapter_names_base", _absolute_base("/home/me/data/resize_base")),
    ("adapter_names_base", _absolute_base("~/data/resize_base")),
    ("adapter_names_base", _absolute_base("C:\\data\\resize_base")),
    ("adapter_names_base", _absolute_base("")),
    ("adapter_names_base", _absolute_base(None)),
    ("adapter_names_base", _no_base),
]


def test_a_fault_is_planted_for_every_check() -> None:
    assert {name for name, _ in PLANTED} == NAMES


def run_check(name: str, evidence: Evidence) -> Check:
    """One check, by its name."""
    return next(check for check in CHECKS if check.__name__ == name)(evidence)


@pytest.mark.parametrize(("name", "plant"), PLANTED)
def test_a_planted_fault_is_caught_by_the_check_for_it(
    sound: dict[Method, Evidence], graft: Graft, name: str, plant: Plant
) -> None:
    assert run_check(name, sound["tokens"]).verdict == "passed"
    found = run_check(name, plant(sound["tokens"], graft))
    assert (found.name, found.verdict) == (name, "failed")


def test_a_kept_row_between_those_that_train_is_an_old_one(sound: dict[Method, Evidence]) -> None:
    # As after a second run: the base has all rows, the first and the last trained, those between were kept.
    grown, model = changed(sound["tokens"].base), changed(sound["tokens"].merged)
    embeddings = grown[0].auto_model.get_input_embeddings()
    embeddings.weight = torch.nn.Parameter(rows_of(model).clone())
    first, kept, *_, last = sound["tokens"].tokens
    second = replace(sound["tokens"], base=grown, merged=model, tokens=(first, last))
    rows_of(model)[[first.id, last.id]] += 1
    assert run_check("old_rows_merged", second).figure == 0
    rows_of(model)[kept.id] += 1e-6
    assert run_check("old_rows_merged", second).figure == 1


@pytest.mark.parametrize(
    ("plant", "caught"),
    [
        (_shift_old_row_of_resized, {"old_rows_resized"}),
        (_absolute_base("/x"), {"adapter_names_base"}),
        (_forget_size, {"sizes_agree"}),
        (_other_adapter, {"merged_as_adapter"}),
        (_change_other_weight, {"other_weights", "untouched_texts", "reload", "merged_as_adapter"}),
        (_reset_adapter, {"new_rows_trained", "trained_differs"}),
    ],
)
def test_a_fault_fails_no_check_that_it_does_not_touch(
    sound: dict[Method, Evidence], graft: Graft, plant: Plant, caught: set[str]
) -> None:
    assert failures(plant(sound["tokens"], graft)) == caught


@pytest.mark.parametrize("name", ["untouched_texts", "reload", "merged_as_adapter", "trained_differs"])
def test_an_embedding_that_is_no_number_never_passes(sound: dict[Method, Evidence], name: str) -> None:
    model = changed(sound["tokens"].merged)
    with torch.no_grad():
        model[0].auto_model.encoder.layer[1].output.dense.bias[0] = float("nan")
    assert run_check(name, replace(sound["tokens"], merged=model)).verdict == "failed"


@pytest.mark.parametrize("method", METHODS)
def test_a_lost_adapter_is_caught_whatever_the_method(
    sound: dict[Method, Evidence], graft: Graft, method: Method
) -> None:
    assert "trained_differs" in failures(_reset_adapter(sound[method], graft))


def test_figures_count_what_is_wrong(sound: dict[Method, Evidence], graft: Graft) -> None:
    model = changed(sound["tokens"].merged)
    rows_of(model)[[3, 9]] += 1
    assert run_check("old_rows_merged", replace(sound["tokens"], merged=model)).figure == 2
    assert run_check("new_rows_trained", _reset_adapter(sound["tokens"], graft)).figure == len(graft.tokens)
    assert run_check("one_id_each", _swap_ids_of_the_list(sound["tokens"], graft)).figure == 2


def test_a_row_without_a_training_text_may_stay_and_another_may_not(
    sound: dict[Method, Evidence], graft: Graft
) -> None:
    reset = _reset_adapter(sound["tokens"], graft)
    excused = replace(reset, without_training_text=frozenset(token.text for token in graft.tokens[1:]))
    assert run_check("new_rows_trained", excused).figure == 1


def test_the_limits_are_those_of_the_parameters(sound: dict[Method, Evidence]) -> None:
    tight = CheckConsistencyParams(merged_tolerance=1e-12, min_change=100.0)
    evidence = replace(sound["lora_and_tokens"], params=tight)
    assert failures(evidence) >= {"trained_differs"}
    assert run_check("trained_differs", evidence).limit == "at least 100"
    assert run_check("merged_as_adapter", evidence).limit == "at most 1e-12"


def test_a_matrix_that_lost_old_rows_is_caught(sound: dict[Method, Evidence], graft: Graft) -> None:
    cut = _lose_rows_of_merged(sound["tokens"], graft)
    shorter = replace(cut, tokens=sound["tokens"].tokens)
    assert run_check("old_rows_merged", shorter).verdict == "failed"
    assert run_check("sizes_agree", cut).verdict == "failed"


def stale_copy(graft: Graft, folder: Path, damage: Callable[[Path], Any]) -> Path:
    """A copy of the merged folder, damaged on disk."""
    shutil.copytree(graft.merged["tokens"], folder)
    damage(folder)
    return folder


def test_a_merged_folder_of_an_earlier_adapter_is_caught(graft: Graft, tmp_path: Path) -> None:
    other = save_random_adapter(graft.root, "tokens", graft.tokens, seed=3)
    stale = gather(graft, "tokens", adapter=other)
    assert failures(stale) == {"reload", "merged_as_adapter"}


def test_a_merged_folder_of_another_resize_is_caught(graft: Graft, tmp_path: Path) -> None:
    model = load(graft.merged["tokens"])
    rows_of(model)[7] += 0.5
    (tmp_path / "merged").mkdir()
    save_model(model, tmp_path / "merged")
    assert "old_rows_merged" in failures(gather(graft, "tokens", merged=tmp_path / "merged"))


def test_an_adapter_whose_saved_weights_are_not_found_is_caught(graft: Graft, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "adapter"
    shutil.copytree(graft.adapters["tokens"], folder)
    weights = load_file(folder / "adapter_model.safetensors")
    # Under another name the weights are ignored, and PEFT goes on with fresh ones.
    save_file({f"renamed.{name}": tensor for name, tensor in weights.items()}, folder / "adapter_model.safetensors")
    reset = Graft(
        graft.base, graft.tokenizer, graft.tokens, graft.root, graft.resized, {"tokens": folder}, graft.merged
    )
    shutil.copytree(graft.root / "data", tmp_path / "chain" / "data")
    merged = save_merged(tmp_path / "chain", "tokens", folder)
    assert {"new_rows_trained", "trained_differs"} <= failures(gather(reset, "tokens", merged=merged))


def test_an_absolute_base_is_read_from_the_adapters_own_file(graft: Graft, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(graft.adapters["tokens"], folder)
    config = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", config | {"base_model_name_or_path": str(graft.resized)})
    assert failures(gather(graft, "tokens", adapter=folder)) == {"adapter_names_base"}


@pytest.mark.parametrize(
    ("texts", "told"),
    [(("a dog",), "0 with a new word and 1 without"), (("a nephrolith", "a nephrolith"), "1 with a new word and 0")],
)
def test_probes_of_one_kind_only_are_refused(graft: Graft, texts: tuple[str, ...], told: str) -> None:
    with pytest.raises(VocabgraftError, match=told):
        gather(graft, "tokens", texts)


def test_a_merged_folder_with_the_bases_tokenizer_is_refused(graft: Graft, tmp_path: Path) -> None:
    def damage(folder: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(graft.base / name, folder / name)

    folder = stale_copy(graft, tmp_path / "merged", damage)
    with pytest.raises(VocabgraftError, match="0 with a new word"):
        gather(graft, "tokens", merged=folder)


def test_probes_are_distinct_and_parted_as_the_merged_model_reads(sound: dict[Method, Evidence], graft: Graft) -> None:
    evidence = gather(graft, "tokens", (*TEXTS, *TEXTS))
    assert evidence.with_new == TEXTS[:4]
    assert evidence.without_new == TEXTS[4:]


def test_a_check_can_be_written_as_json(sound: dict[Method, Evidence]) -> None:
    for check in check_all(sound["lora"]):
        assert json.loads(json.dumps(check.as_json(), allow_nan=False))["name"] in NAMES
