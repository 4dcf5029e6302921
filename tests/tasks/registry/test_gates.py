"""Every gate's verdict on made-up figures, what stands in the way of promotion, and the one text that tells it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tasks.registry.champion import Rival
from tasks.registry.gate_results import (
    NO_EVIDENCE_ASKED,
    GateResult,
    Kind,
    Verdict,
    blocking,
    decision_of,
    evidence_of,
    told,
    told_figure,
)
from tasks.registry.gates import Measured, champion_gate, gates_of
from tests.registered_models import GATES, evaluated, figures, gains, retention
from vocabgraft.config.benefits import FIDELITY, TOKENS_PER_TEXT, Benefit, parse_benefit
from vocabgraft.config.stages import GateParams
from vocabgraft.evaluation.significance import Comparison

TERMS = parse_benefit("terms.new_word.mrr")


def judged(measured: Measured, kind: Kind, params: GateParams = GATES, speed: Any = None) -> GateResult:
    """The gate of a kind."""
    return next(gate for gate in gates_of(measured, True, speed or {}, None, params) if gate.kind == kind)


def measured_gain(differences: Sequence[float]) -> Measured:
    """What was measured of a model that gains so many points on each question over a base at 50 percent."""
    values = [(50 + difference) / 100 for difference in differences]
    return evaluated(5.0, comparison={"items": gains([0.5] * len(values), values), "problems": []})


def compared(**found: float) -> Measured:
    """What was measured where the comparison with the base has these figures."""
    item = {"dataset": "terms", "subset": "new_word", "metric": "mrr", "standard_error": 1.0, "p_value": 0.001}
    items = [item | {"queries": 100, "groups": 100} | found]
    return evaluated(5.0, comparison={"items": items, "problems": []})


def without_labels(name: str, **found: Any) -> Measured:
    """What was measured where a figure without labels has these values."""
    entry = {"p_value": 0.0005, "standard_error": 0.01, "queries": 80, "groups": 80} | found
    return evaluated(5.0, comparison={"items": [], "without_labels": {name: entry}, "problems": []})


def asks(benefit: str | None, **settings: Any) -> GateParams:
    """Gates that ask for a benefit."""
    return GATES.model_copy(update={"benefit": benefit, **settings})


def test_a_gain_of_a_hundredth_of_a_point_by_chance_over_32_items_is_not_promoted() -> None:
    measured = measured_gain([*[9.01, -8.99] * 16])
    (item, _) = measured.comparison["items"]
    assert (item["queries"], item["gain"]) == (32, pytest.approx(0.01)) and item["p_value"] > 0.8
    gate = judged(measured, "benefit")
    assert gate.verdict == "not shown"
    assert blocking([gate]) == [gate]
    said = told(gate)
    assert said.startswith(f"not shown to be better: 32 items, interval {gate.low:+.2f} to {gate.high:+.2f}")
    assert gate.needed is not None and gate.needed > 100_000 and f"about {gate.needed:,} items would be needed" in said


@pytest.mark.parametrize(
    ("found", "min_gain", "verdict"),
    [
        ({"gain": 5.0, "low": 1.0, "high": 9.0}, 0.0, "holds"),
        ({"gain": 5.0, "low": 0.0, "high": 9.0}, 0.0, "not shown"),
        ({"gain": 5.0, "low": -1.0, "high": 9.0, "p_value": 0.1}, 0.0, "not shown"),
        # The interval and the test disagree.
        ({"gain": 5.0, "low": 1.0, "high": 9.0, "p_value": 0.051}, 0.0, "not shown"),
        # However large, five independent groups tell nothing.
        ({"gain": 5.0, "low": 5.0, "high": 5.0, "groups": 5}, 0.0, "not shown"),
        ({"gain": 5.0, "low": 5.0, "high": 5.0, "groups": 6}, 0.0, "holds"),
        ({"gain": 5.0, "low": 1.0, "high": 9.0}, 1.0, "not shown"),
        ({"gain": 5.0, "low": 1.1, "high": 9.0}, 1.0, "holds"),
        ({"gain": -5.0, "low": -9.0, "high": -1.0}, 0.0, "not met"),
        ({"gain": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}, 0.0, "not met"),
        ({"gain": -5.0, "low": -5.0, "high": -5.0, "groups": 1}, 0.0, "not shown"),
        # A loss that stays within what is allowed: the test against 0 has no say.
        ({"gain": 0.0, "low": -0.4, "high": 0.4, "p_value": 1.0}, -0.5, "holds"),
    ],
)
def test_a_gain_is_judged_by_its_interval_its_test_and_its_groups(
    found: dict[str, float], min_gain: float, verdict: Verdict
) -> None:
    gate = judged(compared(**found), "benefit", asks("terms.new_word.mrr", min_gain=min_gain))
    assert (gate.verdict, gate.figure, gate.items) == (verdict, found["gain"], 100)
    assert gate.limit == f"more than {min_gain:g}"


def test_more_items_are_requested_only_if_they_could_show_a_gain() -> None:
    above = judged(compared(gain=2.0, low=-0.1, high=4.1, p_value=0.06, standard_error=1.07), "benefit")
    # (1.95996 + 0.84162)^2 = 7.8489 times the squared ratio of error and gain, times the items.
    assert above.needed == 225
    assert "about 225 items" in told(above)
    below = judged(compared(gain=-0.5, low=-2.0, high=1.0, p_value=0.5), "benefit")
    assert below.needed is None
    assert "more items cannot show it" in told(below)


def test_a_benefit_without_an_item_is_not_shown_and_the_evaluation_says_why() -> None:
    problem = "sts has no test row, so it is not measured; raise its held_out.test"
    measured = evaluated(5.0, comparison={"items": [], "problems": ["stsb: no spearman", problem]})
    gate = judged(measured, "benefit", asks("sts.all.spearman"))
    assert (gate.verdict, gate.figure, gate.items, gate.note) == ("not shown", None, 0, problem)
    assert told(gate) == f"not shown to be better: 0 items; {problem}"


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.91, 0.95, "holds"), (0.89, 0.95, "not shown"), (0.8, 0.9, "not met")]
)
def test_fidelity_is_judged_against_its_own_limit(low: float, high: float, verdict: Verdict) -> None:
    measured = without_labels(FIDELITY.dataset, gain=(low + high) / 2, low=low, high=high)
    gate = judged(measured, "benefit", asks("fidelity", min_fidelity=0.9, min_gain=5.0))
    assert (gate.verdict, gate.limit, gate.unit) == (verdict, "more than 0.9", "cosine")
    assert f"{low:.3f} to {high:.3f}" in told(gate) and "80 items" in told(gate)


@pytest.mark.parametrize(("low", "verdict"), [(1.2, "holds"), (-0.2, "not shown")])
def test_tokens_saved_are_judged_as_a_gain(low: float, verdict: Verdict) -> None:
    measured = without_labels(TOKENS_PER_TEXT.dataset, gain=2.0, low=low, high=2.8)
    gate = judged(measured, "benefit", asks("tokens_per_text"))
    assert (gate.verdict, gate.unit) == (verdict, "tokens")
    assert "+2.00 tokens per text" in told(gate)


@pytest.mark.parametrize(
    ("drop", "width", "verdict"), [(0.0, 0.005, "holds"), (0.0, 0.02, "not shown"), (0.03, 0.01, "not met")]
)
def test_retention_as_a_benefit_has_to_be_shown(drop: float, width: float, verdict: Verdict) -> None:
    measured = evaluated(5.0, retention=retention(drop, width))
    gate = judged(measured, "benefit", asks("retention", max_retention_drop=0.01))
    assert (gate.verdict, gate.limit) == (verdict, "more than -1")
    assert (gate in blocking([gate])) is (verdict != "holds")


def test_a_gain_on_retention_pairs_is_a_gain_like_others() -> None:
    gate = judged(evaluated(5.0, retention=retention(-0.02, 0.005)), "benefit", asks("retention.all.spearman"))
    # The made-up p-value is 0.5.
    assert (gate.verdict, gate.name, gate.figure) == ("not shown", "gain over the base", 2.0)


def test_without_a_benefit_there_is_nothing_to_show_and_that_is_said() -> None:
    gates = gates_of(evaluated(-5.0), True, {}, None, asks(None))
    assert blocking(gates) == []
    assert "register_model.gates.benefit is null" in evidence_of(gates, True)
    assert [gate.kind for gate in blocking(gates_of(evaluated(-5.0, 0.02), True, {}, None, asks(None)))] == [
        "retention"
    ]


@pytest.mark.parametrize(
    ("drop", "width", "verdict", "blocks"),
    [
        (0.0, 0.0, "holds", False),
        (0.004, 0.005, "holds", False),
        # Shown to fall, and by less than is allowed.
        (0.006, 0.003, "holds", False),
        (0.004, 0.02, "not shown", False),
        (0.011, 0.02, "not met", True),
        (0.02, 0.001, "not met", True),
    ],
)
def test_a_drop_of_retention_fails_by_its_point_and_is_reported_with_its_interval(
    drop: float, width: float, verdict: Verdict, blocks: bool
) -> None:
    gate = judged(evaluated(5.0, retention=retention(drop, width, pairs=155)), "retention")
    assert (gate.verdict, gate.figure, gate.items) == (verdict, drop, 155)
    assert (gate.low, gate.high) == pytest.approx((drop - width, drop + width))
    assert bool(blocking([gate])) is blocks
    assert f"{drop:.4f} in Spearman's rho" in told(gate) and "155 items" in told(gate)


def test_a_retention_that_cannot_be_measured_blocks_promotion() -> None:
    problem = "retention without a new word: no spearman, since there are no pairs"
    measured = evaluated(5.0, retention={"spearman": {}, "problems": [problem]})
    gate = judged(measured, "retention")
    assert (gate.verdict, gate.figure) == ("not shown", None)
    assert problem in told(gate)
    assert blocking([gate]) == [gate]


def test_the_cost_is_that_which_was_timed_else_that_of_the_tokens() -> None:
    measured = evaluated(5.0)
    timed = judged(measured, "cost", speed={"ratio": 0.5})
    assert (timed.verdict, timed.figure, timed.note) == ("not met", 2.0, "as timed")
    by_tokens = judged(measured, "cost")
    assert (by_tokens.verdict, by_tokens.figure) == ("holds", 1.0)
    nothing = {model: found | {"tokens_per_text": None} for model, found in figures(5.0, 0.0).items()}
    unknown = judged(evaluated(5.0, metrics=nothing), "cost")
    assert (unknown.verdict, unknown.figure) == ("not shown", None)
    assert blocking([unknown]) == [unknown]


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.0, 3.0, "holds"), (-3.0, 1.0, "holds"), (-3.0, 0.0, "holds"), (-3.0, -0.1, "not met")],
)
def test_a_champion_is_replaced_by_what_is_not_shown_to_be_worse(low: float, high: float, verdict: Verdict) -> None:
    gain = Comparison((low + high) / 2, low, high, 0.5, 1.0)
    gate = champion_gate(Rival(7, TERMS, gain, "recorded on the same items", 64))
    assert (gate.verdict, gate.items, gate.name) == (verdict, 64, "gain over the champion, version 7")


def test_not_being_worse_than_the_champion_is_no_gain_over_the_base() -> None:
    alike = Rival(7, TERMS, Comparison(0.0, -1.0, 1.0, 1.0, 0.5), "recorded on the same items", 64)
    no_gain = gates_of(measured_gain([9, -9] * 16), True, {}, alike, GATES)
    assert [(gate.kind, gate.verdict) for gate in blocking(no_gain)] == [("benefit", "not shown")]
    assert blocking(gates_of(evaluated(5.0), True, {}, alike, GATES)) == []


def test_a_champion_that_cannot_be_compared_blocks_promotion() -> None:
    gate = champion_gate(Rival(7, TERMS, None, "could not be compared: its files are gone"))
    assert (gate.verdict, blocking([gate])) == ("not shown", [gate])
    assert told(gate) == (
        "not shown to be no worse than the champion, version 7: could not be compared: its files are gone"
    )


def test_a_first_champion_may_go_without_evidence_but_not_with_a_loss() -> None:
    unclear = gates_of(measured_gain([9.01, -8.99] * 16), True, {}, None, GATES)
    assert [gate.kind for gate in blocking(unclear)] == ["benefit"]
    assert blocking(unclear, evidence_asked=False) == []
    assert decision_of(unclear, evidence_asked=False) == f"promoted; {NO_EVIDENCE_ASKED}"
    said = evidence_of(unclear, evidence_asked=False)
    assert NO_EVIDENCE_ASKED in said and "not shown to be better: 32 items" in said
    worse = gates_of(measured_gain([-5] * 32), True, {}, None, GATES)
    assert [gate.verdict for gate in blocking(worse, evidence_asked=False)] == ["not met"]
    assert decision_of(worse, evidence_asked=False).startswith("not promoted: gain over the base: -5.00 points")


def test_existing_evidence_is_not_called_unrequested() -> None:
    gates = gates_of(evaluated(5.0), True, {}, None, GATES)
    for asked in (True, False):
        assert decision_of(gates, asked).startswith("promoted") and NO_EVIDENCE_ASKED not in decision_of(gates, asked)
        assert evidence_of(gates, asked).startswith("gain over the base: +5.00 points (95 % interval +5.00 to +5.00")


def test_a_failed_check_blocks_promotion() -> None:
    gates = gates_of(evaluated(5.0), False, {}, None, GATES)
    assert [gate.kind for gate in blocking(gates)] == ["consistency"]


def test_a_result_survives_its_tag() -> None:
    for gate in gates_of(measured_gain([9, -9] * 16), True, {}, None, GATES):
        assert GateResult.from_json(gate.as_json()) == gate


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("consistency", "consistency"),
        ("gain over the base", "benefit"),
        ("retention drop", "retention"),
        ("cost ratio", "cost"),
        ("gain over the champion, version 2", "champion"),
        ("own modules", "own modules"),
    ],
)
def test_a_tag_of_before_verdicts_is_read(name: str, kind: Kind) -> None:
    old = {"name": name, "figure": 1.5, "limit": "more than 0"}
    held, unmet = (GateResult.from_json(old | {"holds": holds}) for holds in (True, False))
    assert (held.kind, held.verdict, unmet.verdict) == (kind, "holds", "not met")
    assert blocking([held, unmet]) == [unmet]
    assert told(unmet) == f"{name}: 1.5; needed: more than 0"


@pytest.mark.parametrize(
    ("benefit", "shown"),
    [(TERMS, "+2.00 points"), (FIDELITY, "2.000"), (TOKENS_PER_TEXT, "+2.00 tokens per text")],
)
def test_a_figure_has_the_unit_of_its_benefit(benefit: Benefit, shown: str) -> None:
    assert told_figure(champion_gate(Rival(1, benefit, Comparison(2.0, 1.0, 3.0, 0.01, 0.5), "", 9))) == shown


def test_noise_is_promoted_no_more_often_than_said() -> None:
    # Models without any true gain; by the point alone half of them would be promoted.
    promoted = 0
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(0, 20, 40)
        promoted += judged(measured_gain([float(value) for value in noise]), "benefit").verdict == "holds"
    # 1.5 are expected; more than 6 have a chance of one in a thousand.
    assert promoted <= 6
