"""The stages over a base stored in float16: trained in float32, merged in float16."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import build_tiny_project
from tests.tasks.test_growth import run
from tests.vocabgraft.conftest import load
from vocabgraft.training.adapters import merged_model

pytestmark = pytest.mark.usefixtures("isolated_forks")

DORA = {"config": "LoraConfig", "arguments": {"r": 2, "use_dora": True, "target_modules": ["query", "dense"]}}
CHANGES: dict[str, dict[str, Any]] = {
    "resize_base": {"modules": [{"type": "Dense", "place": "after_pooling", "arguments": {"use_residual": True}}]},
    # Autocast on float16 weights raises, and loading rounds the adapter's weights.
    "train_adapter": {"method": "peft_and_tokens", "peft": DORA, "precision": "bfloat16"},
}
STAGES = ("validate_data", "extend_tokenizer", "resize_base", "train_adapter", "merge_adapter")


def test_the_merged_model_is_finite_and_of_the_type_of_the_base(
    in_folder: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tiny_base).half().save(str(in_folder / "half"), create_model_card=False)
    build_tiny_project(in_folder, in_folder / "half")
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    for section, changes in CHANGES.items():
        params[section] |= changes
    params["resize_base"]["distillation"]["precision"] = "bfloat16"
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    assert run(*STAGES) == 0
    (custom,) = Path("data/merge_adapter").glob("*_Dense")
    files = [folder / "model.safetensors" for folder in (Path("data/merge_adapter"), custom)]
    merged = [tensor for file in files for tensor in load_file(file).values()]
    assert {tensor.dtype for tensor in merged} == {torch.float16}
    assert all(bool(tensor.isfinite().all()) for tensor in merged)
    texts = ["a nephrolith", "the dog <|IsA|> animal", "a dog"]
    again = merged_model(Path("data/resize_base"), Path("data/train_adapter")).encode(texts)
    np.testing.assert_array_equal(load(Path("data/merge_adapter")).encode(texts), again)
