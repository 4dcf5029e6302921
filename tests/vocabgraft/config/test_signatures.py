"""Arguments that are read from the source are those of the imported classes."""

import dataclasses
import importlib
import inspect
import subprocess
import sys

import pytest

from vocabgraft.config.evaluators import EVALUATORS
from vocabgraft.config.losses import LIBRARY, LOSSES, WRAPPERS
from vocabgraft.config.peft_methods import METHODS
from vocabgraft.config.signatures import arguments_of

CLASSES = [
    *((entry.module, name) for name, entry in LOSSES.items()),
    *((LIBRARY, name) for name in WRAPPERS),
    *((entry.module, name) for name, entry in EVALUATORS.items()),
    *(("peft", name) for name in METHODS),
    ("sentence_transformers", "SentenceTransformerTrainingArguments"),
]


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_the_arguments_are_those_of_the_class(module: str, name: str) -> None:
    found = getattr(importlib.import_module(module), name)
    fields = dataclasses.fields(found) if dataclasses.is_dataclass(found) else ()
    expected = [field.name for field in fields] or list(inspect.signature(found.__init__).parameters)[1:]
    assert list(arguments_of(module, name)) == expected


def test_a_class_that_is_not_there_has_none() -> None:
    assert arguments_of("peft", "NoSuchConfig") == ()
    assert arguments_of("no_such_package", "Anything") == ()


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys\n"
        "from vocabgraft.config.training import PeftParams\n"
        "from vocabgraft.config.training_arguments import check_training_arguments\n"
        "PeftParams(config='LoHaConfig', arguments={'r': 8})\n"
        "check_training_arguments({'max_grad_norm': 1.0})\n"
        "assert not {'torch', 'peft', 'transformers', 'sentence_transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
