"""Checks of a model in memory: a sound model passes, and a planted fault is named."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import vocabgraft as vg
from tests.vocabgraft.api.test_train import PAIRS, SENTENCES, SMALL, WORDS
from tests.vocabgraft.conftest import load
from vocabgraft.api.check import CheckReport
from vocabgraft.checks.runner import Check

pytestmark = pytest.mark.usefixtures("isolated_forks")

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# The tiny base's own rows lie so close together that any trained row leaves their range.
LIMITS: dict[str, Any] = {"max_norm_ratio": 4.0, "max_meaning_rank": 1.0, "waived": {"new_rows_apart": "tiny"}}


def trained(tiny_base: Path, method: Any) -> "SentenceTransformer":
    model = vg.extend(tiny_base, WORDS, texts=[*SENTENCES, "dog <|IsA|> animal"], initialization="subword_mean")
    vg.train(model, PAIRS * 2, method=method, lora={"r": 2}, learning_rate=0.05, **SMALL)
    return model


def names(checks: tuple[Check, ...]) -> set[str]:
    return {check.name for check in checks}


def test_a_model_with_trained_rows_passes(tiny_base: Path) -> None:
    report = vg.check(trained(tiny_base, "tokens"), base=tiny_base, params=LIMITS)
    assert names(report.failed) == set(), report
    assert {"old_rows_merged", "untouched_texts", "trained_differs", "adapter_moved", "fresh_process"} <= names(
        report.passed
    )
    report.raise_for_failures()


def test_a_changed_row_of_the_base_is_found_in_a_lora_model(tiny_base: Path) -> None:
    model = trained(tiny_base, "lora")
    with torch.no_grad():
        model[0].auto_model.get_input_embeddings().weight[20] += 0.1
    report = vg.check(model, base=load(tiny_base), params=LIMITS)
    assert "old_rows_merged" in names(report.failed)
    assert {"old_rows_resized", "old_rows_adapter", "adapter_moved", "adapter_switch"} <= names(report.passed)
    with pytest.raises(vg.FailedChecksError, match="old_rows_merged"):
        report.raise_for_failures()


def test_an_adapter_that_was_not_merged_is_refused(tiny_base: Path) -> None:
    model = vg.extend(tiny_base, WORDS, initialization="subword_mean")
    vg.train(model, PAIRS, merge=False, **SMALL)
    with pytest.raises(vg.VocabgraftError, match="merge"):
        vg.check(model, base=tiny_base)


def test_a_report_says_what_failed() -> None:
    passed = Check(
        name="sizes_agree",
        group="rows",
        protects="sizes agree",
        setting=None,
        remedy="Resize again.",
        figure=0.0,
        noise=None,
        limit="at most 0",
        verdict="passed",
        reason="",
        details=(),
        warnings=(),
    )
    failed = replace(passed, name="reload", figure=0.5, limit="at most 1e-06", verdict="failed", details=("a text",))
    waived = replace(passed, name="onnx_export", figure=None, verdict="waived", reason="no export")
    few = replace(passed, name="swapped_tokens", figure=None, verdict="too few to judge", reason="1 token")
    report = CheckReport((passed, failed, waived, few))
    assert names(report.failed) == {"reload"} and names(report.not_applied) == {"onnx_export"}
    assert names(report.too_few_to_judge) == {"swapped_tokens"}
    assert all(text in repr(report) for text in ("1 of 4 checks passed", "reload", "0.5", "at most 1e-06", "a text"))
