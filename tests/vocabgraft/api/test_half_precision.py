"""Bases stored in 16 bits: extended, trained and checked; new rows stay finite and the type stays what it was."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import vocabgraft as vg
from tests.vocabgraft.api.test_check import LIMITS, names
from tests.vocabgraft.api.test_train import NEW, OLD, PAIRS, SENTENCES, WORDS, encode
from tests.vocabgraft.conftest import load, rows_of

pytestmark = pytest.mark.usefixtures("isolated_forks")

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TEXTS = [*SENTENCES, "dog <|IsA|> animal"]
HALVES = [torch.float16, torch.bfloat16]
STEPS: dict[str, Any] = {"per_device_train_batch_size": 3, "num_train_epochs": 1}


def stored_as(dtype: torch.dtype, tiny_base: Path, folder: Path) -> Path:
    """The tiny base, saved in another type."""
    load(tiny_base).to(dtype).save(str(folder), create_model_card=False)
    return folder


def types(model: "SentenceTransformer") -> set[torch.dtype]:
    return {value.dtype for value in model.state_dict().values() if value.is_floating_point()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_base_in_16_bits_is_extended_trained_and_passes(
    tiny_base: Path, tmp_path: Path, dtype: torch.dtype, precision: str
) -> None:
    base = stored_as(dtype, tiny_base, tmp_path / "base")
    model = vg.extend(base, WORDS, texts=TEXTS, distillation={"least_steps": 20, "precision": precision})
    fidelity = model.vocabulary_report.fidelity
    assert fidelity is not None and fidelity["mean"] > 0.5
    vg.train(model, PAIRS * 2, method="tokens", precision=precision, **STEPS)
    assert types(model) == {dtype}
    report = vg.check(model, base=base, params=LIMITS)
    assert names(report.failed) == set(), report
    assert {"new_rows_finite", "untouched_texts", "padding", "one_at_a_time", "bfloat16"} <= names(report.passed)


@pytest.mark.parametrize("method", ["lora_and_tokens", "full"])
def test_every_kind_of_training_keeps_the_type_and_trains(tiny_base: Path, tmp_path: Path, method: Any) -> None:
    base = stored_as(torch.float16, tiny_base, tmp_path / "base")
    model = vg.extend(base, WORDS, initialization="subword_mean")
    before = encode(model, [*OLD, *NEW])
    vg.train(model, PAIRS * 2, method=method, lora={"r": 2}, learning_rate=0.01, precision="bfloat16", **STEPS)
    assert types(model) == {torch.float16}
    after = encode(model, [*OLD, *NEW])
    assert np.isfinite(after).all() and not np.allclose(before, after, atol=1e-3)


def test_the_librarys_own_trainer_trains_a_float16_model_in_float32(tiny_base: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    base = stored_as(torch.float16, tiny_base, tmp_path / "base")
    model = vg.extend(base, WORDS, initialization="subword_mean")
    start = rows_of(model).clone()
    rows = Dataset.from_dict({"anchor": [pair[0] for pair in PAIRS], "positive": [pair[1] for pair in PAIRS]})
    arguments = vg.VocabularyTrainingArguments(output_dir=str(tmp_path), use_cpu=True, bf16=True, **STEPS)
    vg.VocabularyTrainer(model, arguments, train_dataset=rows).train()
    vg.merge(model)
    assert types(model) == {torch.float16} and bool(rows_of(model).isfinite().all())
    moved = (rows_of(model) != start).any(dim=1)
    assert moved[-2:].all() and not moved[:-2].any()


def test_rows_stay_within_what_the_base_can_hold_at_any_learning_rate(tiny_base: Path, tmp_path: Path) -> None:
    base = stored_as(torch.float16, tiny_base, tmp_path / "base")
    rate = {"learning_rate": 1e5, "least_steps": 20, "precision": "float32"}
    model = vg.extend(base, WORDS, texts=TEXTS, distillation=rate)
    lengths = model[0].auto_model.get_input_embeddings().weight.detach().float().norm(dim=1)
    assert bool(lengths.isfinite().all())
    assert float(lengths[-len(WORDS) :].max()) <= float(lengths[: -len(WORDS)].max()) * 1.001
