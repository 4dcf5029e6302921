"""Parameters: every mistake is named with its key, the value seen and what is allowed."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from tests.conftest import ROOT
from vocabgraft.config.params import Params, load_params, parse_params
from vocabgraft.errors import VocabgraftError

PROJECT: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def put(path: str, value: Any) -> dict[str, Any]:
    """The project's parameters with one value changed or added; digits are places in a list."""
    changed = copy.deepcopy(PROJECT)
    changed["train_adapter"]["peft"] = {"config": "LoHaConfig", "arguments": {}}
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    section: Any = changed
    for part in parents:
        section = section[part]
    section[last] = value
    return changed


def complaint(loaded: Any) -> str:
    """What `parse_params` says of a loaded file."""
    with pytest.raises(VocabgraftError) as caught:
        parse_params(loaded, "params.yaml")
    return str(caught.value)


def test_the_projects_own_file_is_accepted() -> None:
    assert load_params(ROOT / "params.yaml").seed == PROJECT["seed"]


def test_parameters_cannot_be_changed_after_loading() -> None:
    params = parse_params(PROJECT, "params.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        params.train_adapter.epochs = 3


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("sed", "seed"),
        ("base.revison", "revision"),
        ("base.prompts.qery", "query, document"),
        ("validate_data.datasets.1.files.dev", "train, validation, test"),
        ("validate_data.datasets.0.held_out.tset", "validation, test"),
        ("train_adapter.lora.rank", "target_modules"),
        ("train_adapter.peft.fields", "config, arguments"),
        ("merge_adapter.scale", "name, licence, contexts_per_token"),
        ("register_model.gates.gain", "min_gain"),
    ],
)
def test_an_unknown_key_is_named_with_its_value_and_the_keys_allowed(path: str, allowed: str) -> None:
    message = complaint(put(path, "planted"))
    assert f"unknown key '{path}' (value 'planted'); allowed here:" in message
    assert allowed in message.split("allowed here:")[1]


def test_an_unknown_key_of_a_phase_is_named_by_its_place() -> None:
    message = complaint(put("train_adapter.phases", [{"train": "all"}, {"epoch": 2}]))
    assert "unknown key 'train_adapter.phases.1.epoch' (value 2); allowed here: train, epochs" in message


@pytest.mark.parametrize(
    ("path", "value", "shown", "allowed"),
    [
        ("seed", "17", "'17'", "valid integer"),
        ("seed", True, "True", "valid integer"),
        ("seed", 1.5, "1.5", "valid integer"),
        ("seed", -1, "-1", "greater than or equal to 0"),
        ("base.model", "", "''", "at least 1 character"),
        ("base.sha256", "abc", "'abc'", "[0-9a-f]{64}"),
        ("base.revision", 3, "3", "valid string"),
        ("validate_data.on_invalid", "ignore", "'ignore'", "'fail' or 'quarantine'"),
        ("validate_data.max_rejected_fraction", 1.2, "1.2", "less than or equal to 1"),
        ("validate_data.datasets.0.format", "csv", "'csv'", "'triples', 'pairs', 'triplets'"),
        ("validate_data.datasets.0.name", "a/b", "'a/b'", "A-Za-z0-9"),
        ("extend_tokenizer.max_token_characters", 0, "0", "greater than or equal to 1"),
        ("train_adapter.method", "prompt", "'prompt'", "'lora_and_tokens', 'peft', 'peft_and_tokens' or 'full'"),
        ("train_adapter.batch_size", 1, "1", "greater than or equal to 2"),
        ("train_adapter.learning_rate", 0, "0", "greater than 0"),
        ("train_adapter.learning_rate", "5e-4", "'5e-4'", "valid number"),
        ("train_adapter.learning_rate", float("inf"), "inf", "finite number"),
        ("register_model.gates.min_gain", float("nan"), "nan", "finite number"),
        ("register_model.gates.benefit", 3, "3", "valid string"),
        ("register_model.gates.first_champion", "all", "'all'", "'evidence' or 'any'"),
        ("register_model.gates.min_fidelity", 1.1, "1.1", "less than or equal to 1"),
        ("merge_adapter", None, "None", "dictionary"),
    ],
)
def test_a_bad_value_is_named_with_its_key_and_what_is_allowed(path: str, value: Any, shown: str, allowed: str) -> None:
    message = complaint(put(path, value))
    assert message.startswith("params.yaml: ")
    assert f"key '{path}' is {shown}; " in message
    assert allowed in message


@pytest.mark.parametrize(
    "path", ["seed", "base.model", "validate_data.vocabulary", "register_model.gates", "merge_adapter"]
)
def test_a_missing_key_is_named(path: str) -> None:
    changed = copy.deepcopy(PROJECT)
    *parents, last = path.split(".")
    section = changed
    for part in parents:
        section = section[part]
    del section[last]
    assert complaint(changed) == f"params.yaml: key '{path}' is missing; add it"


@pytest.mark.parametrize("name", ["a/b", "a:b", ".", "../models", "..", " ", "", "a\0b", "a\nb", "x" * 257])
def test_a_name_that_the_registry_would_refuse_is_refused_before_anything_runs(name: str) -> None:
    assert f"register_model.name: MLflow refuses the name {name!r}" in complaint(put("register_model.name", name))


@pytest.mark.parametrize("name", ["", "/etc/passwd", "~/terms.csv", "../terms.csv", "a/../../b.csv", "a\0b.csv"])
@pytest.mark.parametrize("path", ["validate_data.vocabulary", "validate_data.datasets.0.files.train"])
def test_a_raw_file_outside_the_raw_folder_is_refused(path: str, name: str) -> None:
    message = complaint(put(path, name))
    assert path in message
    assert f"{name!r} does not name a file inside data/raw/" in message


def test_a_split_is_a_name_or_several() -> None:
    for given, names in (("a.csv", ["a.csv"]), (["a.csv", "b-*.csv"], ["a.csv", "b-*.csv"])):
        files = parse_params(put("validate_data.datasets.0.files.train", given), "x").validate_data.datasets[0].files
        assert files is not None
        assert files.train == names
        assert files.model_dump(exclude_none=True) == {"train": given}
    for given in (3, [], ["a.csv", 3], {"a": "b"}):
        assert "validate_data.datasets.0.files.train" in complaint(put("validate_data.datasets.0.files.train", given))


def test_rows_are_read_from_files_or_made_from_descriptions() -> None:
    made = {"name": "terms", "format": "pairs", "from": "descriptions", "held_out": {"test": 0.2}}
    dataset = parse_params(put("validate_data.datasets.1", made), "x").validate_data.datasets[1]
    assert (dataset.source, dataset.files, dataset.files_of("train")) == ("descriptions", None, ())
    # The run record and the sweep write the name that the user writes.
    assert dataset.model_dump(exclude_none=True)["from"] == "descriptions"
    for changed, reason in (
        (made | {"files": {"train": "a.csv"}}, "this one has both"),
        ({"name": "terms", "format": "pairs"}, "this one has neither"),
        (made | {"format": "triplets"}, "set format to pairs"),
        (made | {"from": "contexts"}, "validate_data.datasets.1.from"),
        (made | {"source": "descriptions"}, "allowed here: name, format, from, files, held_out, loss, weight"),
    ):
        assert reason in complaint(put("validate_data.datasets.1", changed))


def test_all_mistakes_are_reported_at_once() -> None:
    changed = put("seed", "x") | {"sed": 1}
    del changed["base"]
    message = complaint(changed)
    assert all(part in message for part in ("key 'seed' is 'x'", "unknown key 'sed'", "key 'base' is missing"))


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("validate_data.datasets.0.held_out", {"validation": 0.5, "test": 0.5}, "validation + test is 1.0"),
        ("validate_data.datasets.0.files", {"train": "a.csv", "test": "b.csv"}, "'test' is given as a file and as"),
        ("validate_data.datasets.1.name", "relations", "datasets share the name relations"),
        ("validate_data.datasets.0.name", "retention", "a dataset is named retention"),
        ("validate_data.datasets.0.name", "tokens_per_text", "a dataset is named tokens_per_text"),
        ("validate_data.datasets.0.name", "fidelity", "a dataset is named fidelity"),
        ("train_adapter.phases", [{"train": "adapter"}], "phase 1 trains 'adapter', which method 'tokens' does not"),
        (
            "validate_data.datasets.1.loss",
            "TripletLoss",
            "TripletLoss does not fit the format pairs (it reads triplets)",
        ),
        ("validate_data.datasets.1.loss", {"name": "GISTEmbedLoss"}, "GISTEmbedLoss needs the argument guide"),
        ("train_adapter.arguments", {"push_to_hub": True}, "push_to_hub cannot be set"),
        ("train_adapter.arguments", {"learning_rate": 1.0}, "repeats the setting train_adapter.learning_rate"),
        (
            "train_adapter.evaluators",
            [{"dataset": "term"}],
            "evaluators.0: there is no dataset term; allowed: relations",
        ),
        (
            "train_adapter.evaluators",
            [{"dataset": "terms", "name": "TripletEvaluator"}],
            "evaluators.0: TripletEvaluator does not fit the format pairs",
        ),
        (
            "train_adapter.peft",
            {"config": "VeraConfig"},
            "train_adapter.peft: VeraConfig does not work here: its layers",
        ),
        ("train_adapter.peft", {"config": "LoHaConfig", "arguments": {"rank": 8}}, "LoHaConfig has no field rank"),
        ("train_adapter.early_stopping", {"patience": 2}, "early_stopping watches best_metric, which is not set"),
        ("register_model.gates.benefit", "terms.mrr", "'terms.mrr' names no metric; allowed: null, fidelity,"),
        ("register_model.gates.benefit", "terms.test.mrr", "SUBSET one of all, new_word, no_new_word"),
        ("register_model.gates.benefit", "terms.all.mrr.", "'terms.all.mrr.' names no metric"),
        ("register_model.gates.benefit", "fidelity.all.cosine", "'fidelity.all.cosine' names no metric"),
        ("register_model.gates.benefit", "term.all.mrr", "terms.{all,new_word,no_new_word}.{mrr,recall@10}"),
    ],
)
def test_values_that_do_not_fit_each_other_are_reported(path: str, value: Any, told: str) -> None:
    assert told in complaint(put(path, value))


def test_what_is_measured_on_a_validation_split_needs_one() -> None:
    changed = put("train_adapter.evaluators", [{"dataset": "terms"}])
    changed["train_adapter"]["best_metric"] = "eval_loss"
    assert parse_params(changed, "params.yaml").train_adapter.evaluators[0].dataset == "terms"
    for dataset in changed["validate_data"]["datasets"]:
        dataset["held_out"] = {"test": 0.1}
    assert "the dataset terms has no validation split to evaluate on" in complaint(changed)
    changed["train_adapter"]["evaluators"] = []
    assert "train_adapter.best_metric is measured on validation splits, but no dataset has one" in complaint(changed)


def with_benefit(benefit: Any, **changes: Any) -> dict[str, Any]:
    """The project's parameters with this benefit, and with other values at other paths."""
    changed = put("register_model.gates.benefit", benefit)
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = changed
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        place[last] = value
    return changed


@pytest.mark.parametrize(
    "benefit",
    [
        None,
        "fidelity",
        "tokens_per_text",
        "retention",
        "retention.new_word.spearman",
        "terms.new_word.mrr",
        "terms.no_new_word.recall@10",
        "relations.all.mrr",
        "relations.all.link_mrr",
        "relations.new_word.link_hits@1",
        "relations.all.link_hits@10",
    ],
)
def test_every_figure_that_is_measured_item_by_item_may_be_the_benefit(benefit: str | None) -> None:
    assert parse_params(with_benefit(benefit), "params.yaml").register_model.gates.benefit == benefit


@pytest.mark.parametrize(
    ("benefit", "changes", "allowed", "absent"),
    [
        ("terms.all.recall@5", {}, "terms.{all,new_word,no_new_word}.{mrr,recall@10}", "recall@5}"),
        ("terms.all.link_mrr", {}, "link_mrr,link_hits@1,link_hits@3,link_hits@10", None),
        ("relations.all.link_hits@5", {}, "fidelity; tokens_per_text; retention", None),
        ("retention.all.mrr", {}, "retention.{all,new_word,no_new_word}.{spearman}", None),
        # Nobody scores rows of this format one by one.
        ("terms.all.mrr", {"validate_data__datasets__1__format": "labelled_pairs"}, "relations.{", "terms.{"),
        # Nothing of this dataset is held out.
        ("terms.all.mrr", {"validate_data__datasets__1__held_out": {"validation": 0.1}}, "relations.{", "terms.{"),
        # MTEB gives one score of all queries.
        ("NFCorpus.all.main_score", {"evaluate_model__mteb_tasks": ["NFCorpus"]}, "terms.{", "NFCorpus.{"),
    ],
)
def test_a_benefit_that_these_datasets_never_measure_is_refused_with_those_that_they_do(
    benefit: str, changes: dict[str, Any], allowed: str, absent: str | None
) -> None:
    message = complaint(with_benefit(benefit, **changes))
    assert benefit in message
    listed = message.partition("allowed:")[2]
    assert allowed in listed
    assert absent is None or absent not in listed


def test_a_benchmark_of_the_users_may_be_the_benefit() -> None:
    benchmarks = [{"name": "cases", "folder": "cases", "format": "beir"}]
    changed = with_benefit("cases.all.ndcg@10", evaluate_model__benchmarks=benchmarks)
    assert parse_params(changed, "params.yaml").register_model.gates.benefit == "cases.all.ndcg@10"
    changed["evaluate_model"]["benchmarks"] = []
    assert "cases.all.ndcg@10" in complaint(changed)


def test_scored_pairs_have_a_correlation_and_no_rank() -> None:
    scored = put("validate_data.datasets.1.format", "scored_pairs")
    assert "terms.{all,new_word,no_new_word}.{spearman}" in complaint(scored)
    scored["register_model"]["gates"]["benefit"] = "terms.all.spearman"
    assert parse_params(scored, "params.yaml").register_model.gates.benefit == "terms.all.spearman"


@pytest.mark.parametrize("benefit", ["fidelity", "tokens_per_text"])
def test_what_is_measured_on_held_out_texts_needs_some(benefit: str) -> None:
    changed = with_benefit(benefit)
    for dataset in changed["validate_data"]["datasets"]:
        dataset["held_out"] = {}
    assert parse_params(changed, "params.yaml"), "the contexts that distillation held out"
    nothing = copy.deepcopy(changed)
    nothing["resize_base"]["distillation"]["held_out"] = 0.0
    assert benefit not in complaint(nothing).partition("allowed:")[2]
    # Without distillation every context is held out.
    nothing["resize_base"]["initialisation"] = "subword_mean"
    assert parse_params(nothing, "params.yaml")
    nothing["validate_data"]["contexts"] = []
    assert benefit in complaint(nothing)


def test_a_loss_is_given_by_name_or_with_its_arguments() -> None:
    by_name, whole = (
        parse_params(put("validate_data.datasets.1.loss", loss), "params.yaml").validate_data.datasets[1]
        for loss in ("MegaBatchMarginLoss", {"name": "MegaBatchMarginLoss", "arguments": {}, "wrappers": []})
    )
    assert by_name == whole
    assert parse_params(PROJECT, "params.yaml").validate_data.datasets[1].chosen_loss.name.startswith("MultipleNeg")


def test_reading_the_file_imports_nothing_heavy() -> None:
    heavy = ("torch", "datasets", "transformers")
    code = f"import sys, vocabgraft.config.params; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("method", "config", "phase", "told"),
    [
        (
            "peft",
            None,
            {},
            "method is peft, but peft is not set; give a configuration class of peft, such as {config: ",
        ),
        ("peft_and_tokens", None, {}, "method is peft_and_tokens, but peft is not set"),
        ("peft_and_tokens", "LoHaConfig", {}, "LoHaConfig cannot train rows of new tokens; only LoraConfig"),
        ("peft", "LoHaConfig", {"train": "rows"}, "'rows', which method 'peft' does not have; only LoraConfig"),
        ("peft", "LoraConfig", {"train": "rows"}, "which method 'peft' does not have; method peft_and_tokens has them"),
        ("full", None, {"train": "rows"}, "phase 1 trains 'rows', but method 'full' trains every weight in each phase"),
        ("full", None, {"train": "adapter"}, "phase 1 trains 'adapter', but method 'full' trains every weight"),
        ("full", None, {"rows_learning_rate": 0.1}, "sets rows_learning_rate, but method 'full' does not train rows"),
        ("peft", "LoHaConfig", {"rows_learning_rate": 0.1}, "sets rows_learning_rate, but method 'peft' does not"),
    ],
)
def test_a_method_and_its_phases_fit(method: str, config: str | None, phase: dict[str, Any], told: str) -> None:
    changed = put("train_adapter.phases", [phase])
    changed["train_adapter"] |= {"method": method, "peft": config and {"config": config}}
    assert told in complaint(changed)


@pytest.mark.parametrize(
    ("method", "config", "phase"),
    [
        ("peft", "LoHaConfig", "adapter"),
        ("peft", "LoHaConfig", "all"),
        ("peft_and_tokens", "LoraConfig", "rows"),
        ("peft_and_tokens", "LoraConfig", "adapter"),
        ("full", None, "all"),
        # What another method reads may stay while methods are compared.
        ("tokens", "LoHaConfig", "rows"),
    ],
)
def test_a_phase_trains_what_the_method_has(method: str, config: str | None, phase: str) -> None:
    changed = put("train_adapter.phases", [{"train": phase}])
    changed["train_adapter"] |= {"method": method, "peft": config and {"config": config}}
    assert parse_params(changed, "params.yaml").train_adapter.phases[0].train == phase


def test_a_phase_of_rows_is_refused_where_the_method_has_none() -> None:
    changed = put("train_adapter.phases", [{"train": "all"}, {"train": "rows"}])
    changed["train_adapter"]["method"] = "lora"
    assert "phase 2 trains 'rows', which method 'lora' does not have" in complaint(changed)


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda path: None, "is missing; run from the project's root"),
        (lambda path: path.write_text("seed: [1", encoding="utf-8"), "is not YAML"),
        (lambda path: path.write_bytes(b"seed: \xff"), "is not UTF-8"),
        (lambda path: path.write_text("- 1\n", encoding="utf-8"), "holds list, not a mapping of sections"),
        (lambda path: path.write_text("", encoding="utf-8"), "holds NoneType, not a mapping of sections"),
    ],
)
def test_a_file_that_is_no_mapping_is_reported_by_its_name(
    tmp_path: Path, write: Callable[[Path], Any], told: str
) -> None:
    path = tmp_path / "params.yaml"
    write(path)
    with pytest.raises(VocabgraftError, match=r"params\.yaml") as caught:
        load_params(path)
    assert told in str(caught.value)


def test_a_key_that_is_no_text_is_refused() -> None:
    assert "key '1' is 1" in complaint({**PROJECT, 1: 2})


def test_what_was_parsed_can_be_parsed_again() -> None:
    params = parse_params(PROJECT, "params.yaml")
    assert Params.model_validate(params.model_dump()) == params


def test_what_is_tracked_is_computed_in_float32_unless_the_user_says_otherwise() -> None:
    # bfloat16 chosen by the CPU gave another model, and another verdict, on each kind of CPU.
    bare = copy.deepcopy(PROJECT)
    del bare["resize_base"]["distillation"]["precision"], bare["train_adapter"]["precision"]
    for given in (bare, PROJECT):
        params = parse_params(given, "params.yaml")
        assert params.resize_base.distillation.precision == "float32"
        assert params.train_adapter.precision == "float32"


def test_float16_is_asked_for_with_precision_auto() -> None:
    given = put("train_adapter.arguments", {"fp16": True})
    assert "set precision: auto" in complaint(given)
    given["train_adapter"]["precision"] = "auto"
    assert parse_params(given, "params.yaml").train_adapter.arguments == {"fp16": True}


@pytest.mark.parametrize("section", ["extend_tokenizer", "resize_base", "train_adapter", "check_consistency"])
def test_the_defaults_are_those_of_the_shipped_file(section: str) -> None:
    """The Python API trains and checks with the defaults, the pipeline with the file."""
    shipped = getattr(parse_params(PROJECT, "params.yaml"), section)
    # A check that is waived has a reason of the project's own.
    apart = {"waived"}
    assert type(shipped)().model_dump(exclude=apart) == shipped.model_dump(exclude=apart)
