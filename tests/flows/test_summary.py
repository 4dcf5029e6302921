"""The tables at the end of a run."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.engine.dag import Stage
from flows.summary import model_summary
from tasks.registry.gate_results import GateResult, told
from tests.flows.reporting.report_samples import CHAMPION, GAIN, NOT_SHOWN, RETENTION
from vocabgraft.storage.artifacts import write_json

FIGURES = {"terms": {"all": {"mrr": 50.0, "queries": 3}}, "tokens_per_text": 4.0}
DISTILLATION = {
    "contexts": {"held_out": 30},
    "after": {name: {"mean": 0.95, "p10": 0.9, "texts": 15} for name in ("all", "words", "special_tokens")},
    "under_limit": ["renal"],
    "least_fidelity": 0.9,
}


CHANCE = {"gain": 2.5, "low": -1.0, "high": 6.0, "p_value": 0.2, "queries": 300, "verdict": "could be chance"}
COMPARISON: dict[str, Any] = {
    "items": [{"dataset": "terms", "subset": "all", "metric": "mrr", **CHANCE}],
    "problems": [],
    "control": {"trained": False},
}
DRIFT = {"no_new_word": {"mean": 0.0}, "new_word": {"mean": 0.1234}}
KEPT = {"corpus": 40, "drift": DRIFT, "neighbours_kept": 91.25, "valid_share": 60.0, "problems": []}


def summary(root: Path, distillation: dict[str, object], styles: bool = False, **evaluation: Any) -> str:
    """The summary of a run whose new rows came with this report, and whose evaluation has these files."""
    files = {"metrics": dict.fromkeys(("base", "resized", "merged"), FIGURES), "comparison": COMPARISON}
    files |= {"retention": KEPT, **evaluation}
    reports = {
        **{f"evaluate_model/{name}.json": content for name, content in files.items()},
        "validate_data/report.json": {"new_tokens": {"word": 2}},
        "resize_base/report.json": {"distillation": distillation},
    }
    stages = []
    for name, content in reports.items():
        (root / name).parent.mkdir(exist_ok=True)
        write_json(root / name, content)
        stages.append(Stage(Path(name).parent.name, (), (root / Path(name).parent,)))
    console = Console(width=400, record=True)
    console.print(model_summary(stages, root / "registration.json"))
    return console.export_text(styles=styles)


def test_fidelity_of_distilled_rows_is_reported_by_group(tmp_path: Path) -> None:
    told = summary(tmp_path, DISTILLATION)
    assert "30 held-out texts" in told
    assert "words 0.950 (10th percentile 0.900)" in told and "special tokens 0.950" in told
    assert "tokens below 0.9: 1" in told


def test_a_report_of_an_earlier_version_names_no_limit(tmp_path: Path) -> None:
    earlier = {key: value for key, value in DISTILLATION.items() if key != "least_fidelity"}
    assert "tokens below the limit: 1" in summary(tmp_path, earlier)


@pytest.mark.parametrize("distillation", [{}, {**DISTILLATION, "after": {}}])
def test_rows_that_were_not_distilled_have_no_fidelity(tmp_path: Path, distillation: dict[str, object]) -> None:
    assert "fidelity" not in summary(tmp_path, distillation)


def test_a_gain_is_reported_with_its_interval_and_what_may_be_said_of_it(tmp_path: Path) -> None:
    told = summary(tmp_path, {})
    assert "+2.50 (-1.00 to +6.00): could be chance" in told
    assert "60.0 % of 40 texts" in told and "91.2 % of the ten nearest neighbors" in told
    assert "without a new word 0.0000, with one 0.1234" in told


def test_what_was_not_measured_is_said_and_a_figure_that_one_model_lacks_is_a_dash(tmp_path: Path) -> None:
    figures = {"base": FIGURES | {"terms": {"all": {"queries": 3}}}, "resized": FIGURES, "merged": FIGURES}
    retention = KEPT | {"neighbours_kept": None, "problems": ["the reference corpus has 7 texts"]}
    told = summary(tmp_path, {}, metrics=figures, retention=retention)
    assert "not measured: the reference corpus has 7 texts" in told
    assert "nearest neighbors" not in told
    row = next(line for line in told.splitlines() if "terms, all: mrr" in line)
    assert row.split("\u2502")[2].strip() == "-"


def test_a_control_has_a_column_and_its_sentences(tmp_path: Path) -> None:
    figures = dict.fromkeys(("base", "resized", "merged", "control"), FIGURES)
    comparison = COMPARISON | {"control": {"trained": True, "says": ["without new words a user does better on terms"]}}
    told = summary(tmp_path, {}, metrics=figures, comparison=comparison)
    assert "control" in told and "without new words a user does better on terms" in told


def register(root: Path, champion: bool, *gates: GateResult, evidence: str = "") -> None:
    """Write the record of a registration."""
    record = {"name": "sample", "version": 3, "champion": champion, "evidence": evidence}
    write_json(root / "registration.json", record | {"gates": [gate.as_json() for gate in gates]})


def test_a_benefit_that_is_not_shown_is_yellow_and_a_gate_that_is_not_met_red(tmp_path: Path) -> None:
    register(tmp_path, False, NOT_SHOWN, CHAMPION, RETENTION)
    told_of = summary(tmp_path, {}, styles=True).splitlines()
    yellow, red = (
        next(line for line in told_of if text in line) for text in ("not shown to be better", "-0.50 points")
    )
    assert yellow.startswith("\x1b[33m") and "32 items, interval -4.20 to +4.30" in yellow
    assert red.startswith("\x1b[31m")
    assert not any("retention drop" in line for line in told_of)
    assert any("alias challenger" in line for line in told_of)


def test_a_champion_is_reported_with_what_is_known_of_its_benefit(tmp_path: Path) -> None:
    register(tmp_path, True, GAIN, evidence=told(GAIN))
    told_of = summary(tmp_path, {})
    assert "alias champion" in told_of and "gain over the base: +6.60 points (95 % interval +2.50 to +10.90" in told_of


def test_the_fidelity_of_the_trained_model_is_reported(tmp_path: Path) -> None:
    fidelity = {"gain": 0.9466, "low": 0.94, "high": 0.95, "queries": 60}
    found = summary(tmp_path, {}, comparison=COMPARISON | {"without_labels": {"fidelity": fidelity}})
    assert "60 held-out texts" in found and "0.947 (0.940 to 0.950)" in found
