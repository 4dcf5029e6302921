"""Arguments of the trainer: the lists are the library's, and what is not to be set is refused with the way out."""

import dataclasses

import pytest

from vocabgraft.config.training_arguments import ALLOWED, OWNED, SETTINGS, check_training_arguments


def test_every_argument_of_the_library_is_in_one_list() -> None:
    from sentence_transformers import SentenceTransformerTrainingArguments

    fields = [field.name for field in dataclasses.fields(SentenceTransformerTrainingArguments)]
    assert sorted([*ALLOWED, *OWNED, *SETTINGS]) == sorted(fields)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("learning_rate", 1e-3, "learning_rate repeats the setting train_adapter.learning_rate"),
        ("num_train_epochs", 3, "repeats the setting train_adapter.epochs"),
        ("seed", 3, "repeats the setting seed"),
        ("output_dir", "x", "output_dir is not yours to set: the stage writes"),
        ("push_to_hub", True, "nothing leaves the machine"),
        ("resume_from_checkpoint", "x", "checkpoints are the pipeline's"),
        ("max_grad_nrm", 1.0, "do you mean max_grad_norm?); allowed: max_steps"),
        ("report_to", ["wandb"], "report_to names wandb; allowed: none, mlflow"),
    ],
)
def test_an_argument_that_is_not_to_be_set_is_refused(name: str, value: object, told: str) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        check_training_arguments({name: value})
    assert told in str(caught.value)


def test_what_is_allowed_passes() -> None:
    check_training_arguments(
        {"max_grad_norm": 0.5, "report_to": ["mlflow"], "multi_dataset_batch_sampler": "round_robin"}
    )
