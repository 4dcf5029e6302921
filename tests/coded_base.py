"""The tiny base with code of its own, which a stock BERT cannot stand in for."""

import json
import shutil
from pathlib import Path

CONFIGURATION, MODEL, HELPER = "configuration_shift.py", "modeling_shift.py", "shifting.py"
# Set to a file's name, it gets a line for each time that code of the base is run.
RAN = "VOCABGRAFT_TEST_CODE_RAN"
TOLD = f"""
import os

if os.environ.get("{RAN}"):
    with open(os.environ["{RAN}"], "a") as told:
        told.write(__name__ + "\\n")
"""
SOURCES = {
    CONFIGURATION: f"""{TOLD}
from transformers import BertConfig


class ShiftConfig(BertConfig):
    model_type = "shift"

    def __init__(self, shift=5, **kwargs):
        super().__init__(**kwargs)
        self.shift = shift
""",
    HELPER: f"""{TOLD}
import torch


def shifted(hidden, by):
    return torch.roll(hidden, by, dims=-1) + hidden.square()
""",
    MODEL: f"""{TOLD}
from transformers import BertModel

from .configuration_shift import ShiftConfig
from .shifting import shifted


class ShiftModel(BertModel):
    config_class = ShiftConfig

    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        found.last_hidden_state = shifted(found.last_hidden_state, self.config.shift)
        return found
""",
}
NAMED = {"AutoConfig": "configuration_shift.ShiftConfig", "AutoModel": "modeling_shift.ShiftModel"}


def build_coded_base(folder: Path, plain: Path) -> Path:
    """Copy the tiny base and give it an architecture that its own files alone know."""
    shutil.copytree(plain, folder)
    for name, source in SOURCES.items():
        (folder / name).write_text(source, encoding="utf-8")
    change_config(folder, model_type="shift", architectures=["ShiftModel"], auto_map=NAMED, shift=3)
    return folder


def change_config(folder: Path, **values: object) -> None:
    """Set keys of a model's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
