"""The tables at the end of a run."""

from pathlib import Path

import pytest
from rich.console import Console

from flows.dag import Stage
from flows.summary import model_summary
from vocabgraft.artifacts import write_json

FIGURES = {"terms": {"all": {"mrr": 50.0, "queries": 3}}, "tokens_per_text": 4.0}
DISTILLATION = {
    "contexts": {"held_out": 30},
    "after": {name: {"mean": 0.95, "p10": 0.9, "texts": 15} for name in ("all", "words", "special_tokens")},
    "under_limit": ["renal"],
}


def summary(root: Path, distillation: dict[str, object]) -> str:
    """The summary of a run whose new rows came with this report."""
    reports = {
        "evaluate_model/metrics.json": dict.fromkeys(("base", "resized", "merged"), FIGURES),
        "validate_data/report.json": {"new_tokens": {"word": 2}},
        "resize_base/report.json": {"distillation": distillation},
    }
    stages = []
    for name, content in reports.items():
        (root / name).parent.mkdir()
        write_json(root / name, content)
        stages.append(Stage(Path(name).parent.name, (), (root / Path(name).parent,)))
    console = Console(width=400, record=True)
    console.print(model_summary(stages, root / "absent.json"))
    return console.export_text()


def test_fidelity_of_distilled_rows_is_told_by_group(tmp_path: Path) -> None:
    told = summary(tmp_path, DISTILLATION)
    assert "on 30 texts kept out: " in told
    assert "words 0.950 (10th percentile 0.900)" in told and "special tokens 0.950" in told
    assert "tokens under the limit: 1" in told


@pytest.mark.parametrize("distillation", [{}, {**DISTILLATION, "after": {}}])
def test_rows_that_were_not_distilled_have_no_fidelity(tmp_path: Path, distillation: dict[str, object]) -> None:
    assert "fidelity" not in summary(tmp_path, distillation)
