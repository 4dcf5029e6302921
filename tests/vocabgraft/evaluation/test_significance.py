"""Gains and chance: intervals and tests against other ways to compute them, and planted gains, losses and noise."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from vocabgraft.evaluation import significance
from vocabgraft.evaluation.significance import (
    Comparison,
    _Ranked,
    compare_correlations,
    compare_means,
    is_shown_above,
    items_needed,
    verdict_of,
)

Array = np.ndarray[Any, np.dtype[np.float64]]
# The number of resamples is the same for every example.
QUICK = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough where the gain itself, or what holds of any resample, is looked at."""
    monkeypatch.setattr(significance, "RESAMPLES", 50)


def each(count: int) -> list[str]:
    """A group for each item."""
    return [str(number) for number in range(count)]


def planted(count: int, gain: float, seed: int = 0) -> tuple[Array, Array]:
    """Reciprocal ranks in percent, and such of a model that differs by noise and by a gain."""
    generator = np.random.default_rng(seed)
    before = generator.uniform(0, 100, count)
    return before, before + generator.normal(gain, 20, count)


@pytest.mark.parametrize(("gain", "verdict"), [(8.0, "better"), (-8.0, "worse"), (0.0, "could be chance")])
def test_a_planted_gain_is_called_one_and_a_gain_of_chance_is_not(gain: float, verdict: str) -> None:
    before, after = planted(400, gain)
    found = compare_means(before, after, each(400), 17)
    assert found.gain == round(float((after - before).mean()), 4)
    assert found.low < found.gain < found.high
    assert verdict_of(found, 400, 200) == verdict


def test_a_model_that_got_worse_on_every_pair_is_called_worse() -> None:
    generator = np.random.default_rng(1)
    scores = generator.uniform(0, 1, 300)
    before, after = scores + generator.normal(0, 0.05, 300), scores + generator.normal(0, 0.4, 300)
    found = compare_correlations(before, after, scores, each(300), 17)
    assert verdict_of(found, 300, 200) == "worse"
    back = compare_correlations(after, before, scores, each(300), 17)
    assert verdict_of(back, 300, 200) == "better"
    assert found.high < 0 < back.low


def test_two_correlations_that_differ_by_noise_could_be_chance() -> None:
    generator = np.random.default_rng(2)
    scores = generator.uniform(0, 1, 300)
    before, after = (scores + generator.normal(0, 0.3, 300) for _ in range(2))
    assert verdict_of(compare_correlations(before, after, scores, each(300), 17), 300, 200) == "could be chance"


def test_few_items_carry_no_claim_however_large_the_gain() -> None:
    before, after = planted(199, 50)
    assert verdict_of(compare_means(before, after, each(199), 17), 199, 200) == "smoke figure"
    assert verdict_of(compare_means(before, after, each(199), 17), 199, 199) == "better"


@pytest.mark.parametrize("found", [Comparison(2.0, -0.1, 4.0, 0.01, 1.0), Comparison(2.0, 0.1, 4.0, 0.2, 1.0)])
def test_an_interval_and_a_test_that_disagree_make_no_claim(found: Comparison) -> None:
    assert verdict_of(found, 1000, 200) == "could be chance"


def test_models_that_are_alike_are_called_different_about_as_often_as_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "RESAMPLES", 500)
    called = 0
    for seed in range(150):
        before, after = planted(60, 0.0, seed)
        called += verdict_of(compare_means(before, after, each(60), seed), 60, 0) != "could be chance"
    # 7.5 are expected at 5 %; more than 17 have a chance of one in a thousand.
    assert called <= 17


def test_the_items_of_one_group_are_one_witness() -> None:
    # Twelve groups that gain or lose as wholes: thirty times the items say nothing more.
    shift = np.array([-12.0, -8, -4, 0, 2, 4, 6, 8, 10, 12, 14, 16])
    before, after = np.zeros(360), np.repeat(shift, 30)
    groups = [str(number // 30) for number in range(360)]
    apart, together = compare_means(before, after, each(360), 17), compare_means(before, after, groups, 17)
    assert together.high - together.low > 4 * (apart.high - apart.low)
    assert verdict_of(apart, 360, 200) == "better"
    assert verdict_of(together, 360, 200) == "could be chance"


def test_one_group_alone_makes_no_claim() -> None:
    before, after = planted(300, 50)
    found = compare_means(before, after, ["one"] * 300, 17)
    assert found.p_value == 1.0
    assert verdict_of(found, 300, 200) == "could be chance"


def test_a_sign_flip_test_agrees_with_all_flips() -> None:
    differences = np.array([3.0, 1.0, 2.0, -1.0, 4.0, 0.5, 2.5, 1.5])
    flips = np.array(list(product([1, -1], repeat=len(differences))))
    exact = float((np.abs(flips @ differences) >= abs(differences.sum()) - 1e-9).mean())
    found = compare_means(np.zeros(8), differences, each(8), 17)
    assert found.p_value == pytest.approx(exact, abs=0.015)


def test_a_swap_test_of_correlations_agrees_with_all_swaps() -> None:
    generator = np.random.default_rng(5)
    scores = generator.uniform(0, 1, 9)
    before, after = generator.uniform(0, 1, 9), scores + generator.normal(0, 0.3, 9)
    old, new = rankdata(before), rankdata(after)

    def gain(swapped: Array) -> float:
        kept = [np.where(swapped, other, own) for own, other in ((new, old), (old, new))]
        return float(np.subtract(*(np.corrcoef(ranks, rankdata(scores))[0, 1] for ranks in kept)))

    gains = [gain(np.array(swapped)) for swapped in product([False, True], repeat=9)]
    exact = float((np.abs(gains) >= abs(gains[0]) - 1e-9).mean())
    found = compare_correlations(before, after, scores, each(9), 17)
    assert found.p_value == pytest.approx(exact, abs=0.035)
    assert found.gain == pytest.approx(100 * gains[0], abs=1e-3)


@given(values=st.lists(st.integers(0, 4), min_size=3, max_size=8), data=st.data())
def test_ranks_with_weights_are_those_of_the_items_repeated(values: list[int], data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values)))
    found = _Ranked(np.array(values, dtype=np.float64)).midranks(np.array([weights], dtype=np.float64))[0]
    repeated = [value for value, weight in zip(values, weights, strict=True) for _ in range(weight)]
    expected = dict(zip(repeated, rankdata(repeated), strict=True)) if repeated else {}
    for value, weight, rank in zip(values, weights, found, strict=True):
        assert weight == 0 or rank == expected[value]


@QUICK
@given(data=st.data())
def test_the_gain_of_a_correlation_is_that_of_scipy(few_resamples: None, data: st.DataObject) -> None:
    count = data.draw(st.integers(3, 12))
    columns = st.lists(st.integers(0, 6), min_size=count, max_size=count).filter(lambda drawn: len(set(drawn)) > 1)
    before, after, scores = (np.array(data.draw(columns), dtype=np.float64) for _ in range(3))
    found = compare_correlations(before, after, scores, each(count), 17)
    expected = spearmanr(after, scores).statistic - spearmanr(before, scores).statistic
    assert found.gain == pytest.approx(100 * expected, abs=1e-3)


@QUICK
@given(
    differences=st.lists(st.floats(-50, 50), min_size=1, max_size=20),
    groups=st.data(),
    seed=st.integers(0, 2**32 - 1),
)
def test_swapping_the_models_turns_the_gain_round(
    few_resamples: None, differences: list[float], groups: st.DataObject, seed: int
) -> None:
    named = groups.draw(st.lists(st.sampled_from("abc"), min_size=len(differences), max_size=len(differences)))
    before = np.linspace(0, 100, len(differences))
    after = before + np.array(differences)
    there, back = compare_means(before, after, named, seed), compare_means(after, before, named, seed)
    assert there.low <= there.high
    assert 0 < there.p_value <= 1
    assert (back.gain, back.low, back.high) == pytest.approx((-there.gain, -there.high, -there.low), abs=2e-4)
    assert back.p_value == pytest.approx(there.p_value, abs=1e-3)


@QUICK
@given(differences=st.lists(st.floats(-50, 50), min_size=2, max_size=30), seed=st.integers(0, 1000))
def test_an_interval_lies_between_the_smallest_and_the_largest_gain(
    few_resamples: None, differences: list[float], seed: int
) -> None:
    after = np.array(differences)
    found = compare_means(np.zeros(len(after)), after, each(len(after)), seed)
    assert after.min() - 1e-3 <= found.low <= found.high <= after.max() + 1e-3


def test_a_seed_gives_one_result_whatever_is_drawn_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = planted(50, 3)
    first = compare_means(before, after, each(50), 17)
    np.random.default_rng().random()
    np.random.seed(0)  # the global generator is what is disturbed
    assert compare_means(before, after, each(50), 17) == first
    assert compare_means(before, after, each(50), 18) != first
    # How much is held at once is no part of the result.
    monkeypatch.setattr(significance, "NUMBERS_AT_ONCE", 700)
    assert compare_means(before, after, each(50), 17) == first


def test_one_item_shows_nothing_though_its_interval_has_no_width() -> None:
    for count, shown in ((1, False), (5, False), (6, True)):
        found = compare_means(np.zeros(count), np.full(count, 5.0), each(count), 17)
        assert (found.low, found.high) == (5.0, 5.0)
        assert is_shown_above(found, count, 0.0) is shown


def test_the_standard_error_is_that_of_a_paired_mean() -> None:
    before, after = planted(400, 3.0)
    found = compare_means(before, after, each(400), 17)
    assert found.standard_error == pytest.approx((after - before).std(ddof=1) / 20, rel=0.05)


def test_the_items_that_are_needed_show_the_gain_in_four_of_five_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    pilot = generator.normal(0, 20, 400)
    pilot = 8.0 + 20 * (pilot - pilot.mean()) / pilot.std()
    needed = items_needed(compare_means(np.zeros(400), pilot, each(400), 17), 400, 400, 0.0)
    assert needed is not None
    # 20 points of spread over 8 of gain: (2.8016 * 2.5)^2, by a bootstrap whose error is off by 1.6 % itself.
    assert needed == pytest.approx(49, abs=5)
    monkeypatch.setattr(significance, "RESAMPLES", 500)
    shown = 0
    for seed in range(200):
        after = generator.normal(8.0, 20, needed)
        shown += is_shown_above(compare_means(np.zeros(needed), after, each(needed), seed), needed, 0.0)
    # 160 are expected, give or take 6.
    assert 140 <= shown <= 180


def test_items_in_large_groups_are_needed_in_larger_numbers() -> None:
    shift = np.array([-12.0, -8, -4, 0, 2, 4, 6, 8, 10, 12, 14, 16])
    before, after = np.zeros(360), np.repeat(shift, 30)
    groups = [str(number // 30) for number in range(360)]
    apart = items_needed(compare_means(before, after, each(360), 17), 360, 360, 0.0)
    together = items_needed(compare_means(before, after, groups, 17), 360, 12, 0.0)
    assert apart is not None and together is not None and together > 20 * apart


@pytest.mark.parametrize(("gain", "limit", "needed"), [(0.0, 0.0, None), (-1.0, 0.0, None), (1.0, 1.0, None)])
def test_no_number_of_items_shows_a_gain_that_is_not_above_its_limit(
    gain: float, limit: float, needed: int | None
) -> None:
    assert items_needed(Comparison(gain, gain - 1, gain + 1, 0.5, 0.5), 100, 100, limit) is needed


def test_a_gain_without_spread_still_needs_six_groups() -> None:
    assert items_needed(Comparison(5.0, 5.0, 5.0, 1.0, 0.0), 30, 3, 0.0) == 60
    assert items_needed(Comparison(5.0, 5.0, 5.0, 1.0, 0.0), 0, 0, 0.0) is None
