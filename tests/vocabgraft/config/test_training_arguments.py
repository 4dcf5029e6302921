"""Arguments of the trainer: the lists are the library's, and what is not to be set is refused with the way out."""

import dataclasses

import pytest

from vocabgraft.config.training_arguments import (
    OWNED,
    SETTINGS,
    check_training_arguments,
    library_values,
    report_targets,
    require_reports,
)
from vocabgraft.errors import VocabgraftError


def fields() -> set[str]:
    from sentence_transformers import SentenceTransformerTrainingArguments

    return {field.name for field in dataclasses.fields(SentenceTransformerTrainingArguments)}


def test_what_is_not_to_be_set_are_arguments_of_the_library() -> None:
    assert {*OWNED, *SETTINGS} < fields()
    assert not set(OWNED) & set(SETTINGS)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("learning_rate", 1e-3, "learning_rate repeats the setting train_adapter.learning_rate"),
        ("num_train_epochs", 3, "repeats the setting train_adapter.epochs"),
        ("seed", 3, "repeats the setting seed"),
        ("output_dir", "x", "output_dir cannot be set: the stage writes"),
        ("push_to_hub", True, "nothing leaves the machine"),
        ("resume_from_checkpoint", "x", "the pipeline manages checkpoints"),
        ("max_grad_nrm", 1.0, "do you mean max_grad_norm?); allowed: "),
        ("report_to", ["comet"], "report_to names comet; allowed: none, mlflow, tensorboard, wandb"),
    ],
)
def test_an_argument_that_is_not_to_be_set_is_refused(name: str, value: object, told: str) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        check_training_arguments({name: value})
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"batch_sampler": "NO_DUPLICATES"}, "no_duplicates"),
        ({"batch_sampler": "BatchSamplers.NO_DUPLICATES"}, "no_duplicates"),
        ({"batch_sampler": "no_duplicates"}, "no_duplicates"),
        ({"multi_dataset_batch_sampler": "ROUND_ROBIN"}, "round_robin"),
        ({"lr_scheduler_type": "REDUCE_ON_PLATEAU"}, "reduce_lr_on_plateau"),
        ({"optim": "adafactor"}, "adafactor"),
        ({"max_grad_norm": 1}, 1),
        ({"eval_steps": None}, None),
        ({"train_sampling_strategy": "sequential"}, "sequential"),
    ],
)
def test_a_value_is_taken_as_the_library_has_it_or_its_documentation_writes_it(
    given: dict[str, object], taken: object
) -> None:
    from sentence_transformers import SentenceTransformerTrainingArguments

    (name,) = given
    found = library_values(given)
    assert found == {name: taken}
    SentenceTransformerTrainingArguments(**{"output_dir": "unused", "use_cpu": True, "eval_strategy": "epoch"} | found)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("optim", "adamm", "(do you mean adamw_torch?)"),
        ("batch_sampler", "NO_DUPLICATE", "(do you mean no_duplicates?); allowed: batch_sampler, no_duplicates"),
        ("eval_strategy", "sometimes", "allowed: no, steps, epoch"),
        ("train_sampling_strategy", "random_", "(do you mean random?)"),
        ("weight_decay", "much", "allowed: a number"),
        ("max_steps", 1.5, "allowed: a whole number"),
        ("fp16", "yes", "allowed: true or false"),
        ("lr_scheduler_kwargs", 3, "allowed: a mapping or a text or null"),
    ],
)
def test_a_value_that_the_library_does_not_take_is_refused(name: str, value: object, told: str) -> None:
    with pytest.raises(VocabgraftError) as caught:
        library_values({name: value, "max_grad_norm": 1.0})
    assert f"{name} is {value!r}" in str(caught.value) and told in str(caught.value)


def test_every_wrong_value_is_named_at_once() -> None:
    with pytest.raises(VocabgraftError, match=r"optim .*; max_steps "):
        library_values({"optim": "adamm", "max_steps": "many"})


def test_the_type_of_every_argument_that_may_be_set_can_be_asked() -> None:
    for name in fields() - {*OWNED, *SETTINGS}:
        with pytest.raises(VocabgraftError, match=name):
            library_values({name: object()})


def test_what_is_allowed_passes() -> None:
    check_training_arguments(
        {
            "max_grad_norm": 0.5,
            "report_to": ["tensorboard", "wandb", "mlflow"],
            "multi_dataset_batch_sampler": "round_robin",
        }
    )


def test_the_places_of_live_figures_are_named_once_each_and_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert report_targets({}) == report_targets({"report_to": "none"}) == report_targets({"report_to": []}) == []
    assert report_targets({"report_to": "mlflow"}) == ["mlflow"]
    assert report_targets({"report_to": ["wandb", "mlflow", "wandb", "none"]}) == ["wandb", "mlflow"]
    there = {"mlflow"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in there else None)
    require_reports({"report_to": ["mlflow"]})
    with pytest.raises(VocabgraftError, match="names tensorboard, wandb, not installed here; pip install tensorboard"):
        require_reports({"report_to": ["mlflow", "tensorboard", "wandb"]})
