"""What the control says: planted gains of the vocabulary, of the adapter, and of neither."""

from typing import Any

import numpy as np
import pytest

from vocabgraft.evaluation.control import judge_control
from vocabgraft.evaluation.metrics import Measurement

COST: dict[str, float | None] = {"merged": 40.0, "control": 100.0}


def measured(merged: float, control: float, count: int = 300) -> Measurement:
    """Base at about 50 percent, and two models that gain so much over it, with noise."""
    generator = np.random.default_rng(0)
    base = generator.uniform(0, 100, count)
    gains = {"base": 0.0, "merged": merged, "control": control}
    values = {name: base + gain + generator.normal(0, 5, count) * (name != "base") for name, gain in gains.items()}
    names = [str(number) for number in range(count)]
    return Measurement("terms", "mrr", names, names, np.arange(count) < 100, values, main=True)


def said(merged: float, control: float, count: int = 300) -> dict[str, Any]:
    """The verdict on planted gains."""
    return judge_control([measured(merged, control, count)], COST, 200, 17)


@pytest.mark.parametrize(
    ("merged", "control", "verdict", "advice"),
    [
        (10.0, 2.0, "better", "with the new words the model is better than"),
        (2.0, 10.0, "worse", "the control without new words is better on terms"),
        (5.0, 5.0, "could be chance", "these items show no difference"),
    ],
)
def test_a_planted_gain_is_given_to_whom_it_belongs(merged: float, control: float, verdict: str, advice: str) -> None:
    found = said(merged, control)
    whole = found["items"][0]
    assert (whole["subset"], whole["verdict"]) == ("all", verdict)
    assert whole["gain"] == pytest.approx(merged - control, abs=1.5)
    assert advice in " ".join(found["says"])
    assert "stored vectors to compute again: 40.0 % with the new words, 100.0 % with the control" in found["says"]


def test_few_items_tell_nothing_of_the_two(monkeypatch: pytest.MonkeyPatch) -> None:
    found = said(10.0, 2.0, count=150)
    assert {item["verdict"] for item in found["items"]} == {"smoke figure"}
    assert "these items show no difference" in found["says"][-1]


def test_vectors_that_stay_valid_speak_for_new_words_only_where_they_do() -> None:
    entry = measured(2.0, 10.0)
    assert "stored vectors that stay valid" in judge_control([entry], COST, 200, 17)["says"][-1]
    all_move: dict[str, float | None] = {"merged": 100.0, "control": 100.0}
    assert "stay valid" not in judge_control([entry], all_move, 200, 17)["says"][-1]
