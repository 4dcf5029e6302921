"""Figures as a reader expects them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.reporting.numbers import counted, figure, listed, metric_name, moment, number, p_value, signed


@pytest.mark.parametrize(
    ("value", "shown"), [(6.5997, "+6.60"), (-0.5, "\u22120.50"), (0.0, "0.00"), (-0.0004, "0.00"), (None, "\u2013")]
)
def test_a_difference_has_its_sign_but_for_zero(value: float | None, shown: str) -> None:
    assert signed(value) == shown


@given(st.floats(-1000, 1000))
def test_a_difference_reads_as_the_rounded_number(value: float) -> None:
    assert float(signed(value).replace("\u2212", "-")) == pytest.approx(value, abs=0.00501)


@pytest.mark.parametrize(
    ("value", "shown"), [(1e-05, "1e-05"), (0.31660, "0.317"), (-2, "\u22122"), (1234.5, "1.23e+03"), (None, "\u2013")]
)
def test_a_figure_of_any_size_has_three_digits(value: float | None, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(("value", "shown"), [(0.0004, "< 0.001"), (0.001, "0.001"), (0.5, "0.500"), (None, "\u2013")])
def test_a_small_probability_is_only_bounded(value: float | None, shown: str) -> None:
    assert p_value(value) == shown


def test_names_are_those_that_readers_know() -> None:
    assert metric_name("mrr") == "MRR"
    assert metric_name("recall@10") == "Recall@10"
    assert metric_name("ndcg@10") == "nDCG@10"
    assert metric_name("link_hits@3") == "Hits@3 of link prediction"
    assert metric_name("own_metric") == "Own metric"
    assert [counted(1, "word"), counted(1117, "word")] == ["1 word", "1,117 words"]
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert moment("2026-01-02T03:04:05+00:00") == "2026-01-02 03:04 UTC"
    assert figure(None) == "\u2013" and figure(12.3456) == "12.35"
