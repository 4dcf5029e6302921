"""Tests against chance keep the false alarm rate that they state, and find what they are for."""

import numpy as np
import pytest

from vocabgraft.checks.chance import EXACT_UP_TO, Floats, find_swaps, holm, matching, relative_ranks

DRAWS = 1000


def test_ranks_are_from_0_to_1_with_ties_at_their_mean() -> None:
    scores = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [2.0, 2.0, 1.0], [1.0, np.nan, 2.0], [1.0, np.nan, np.nan]])
    expected = [[0, 1, 0.5], [0.5, 0.5, 0.5], [0.25, 0.25, 1], [1, np.nan, 0], [np.nan] * 3]
    assert np.array_equal(relative_ranks(scores), expected, equal_nan=True)


@pytest.mark.parametrize("size", [5, EXACT_UP_TO, EXACT_UP_TO + 1, 30])
def test_random_rows_match_no_more_often_than_stated(size: int) -> None:
    draw, alpha = np.random.default_rng(size), 0.05
    better = worse = 0
    for _ in range(DRAWS):
        # Some columns are near to every row, as some descriptions are.
        scores = draw.normal(size=(size, size)) + draw.normal(size=size)
        found = matching(relative_ranks(scores), np.arange(size), alpha)
        better += found.mean_rank <= found.low
        worse += found.mean_rank >= found.high
        assert (found.p_value <= alpha) == (found.mean_rank <= found.low)
    # Three standard errors of a share of 5 %.
    for share in (better / DRAWS, worse / DRAWS):
        assert share <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / DRAWS)


def test_the_approximation_goes_on_where_the_exact_test_ends() -> None:
    scores = np.random.default_rng(0).normal(size=(EXACT_UP_TO, EXACT_UP_TO)) + np.eye(EXACT_UP_TO)
    ranks, own = relative_ranks(scores), np.arange(EXACT_UP_TO)
    exact = matching(ranks, own, 0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vocabgraft.checks.chance.EXACT_UP_TO", 0)
        near = matching(ranks, own, 0.05)
    assert near.mean_rank == exact.mean_rank
    assert near.p_value == pytest.approx(exact.p_value, abs=0.01)
    # A mean rank of 7 rows comes in steps of 1 / 42.
    assert (near.low, near.high) == (pytest.approx(exact.low, abs=2 / 42), pytest.approx(exact.high, abs=2 / 42))


def test_few_rows_reach_no_low_level() -> None:
    ranks = relative_ranks(np.eye(5))
    found = matching(ranks, np.arange(5), 0.001)
    assert found.p_value == pytest.approx(1 / 120)
    assert (found.low, found.high) == (-np.inf, np.inf)


def test_a_rank_that_is_nan_matches_nothing() -> None:
    ranks = relative_ranks(np.eye(10))
    ranks[3, 4] = np.nan
    assert np.isnan(matching(ranks, np.arange(10), 0.05).mean_rank)


def scored(size: int, texts: int, gap: float, seed: int, rows: list[int] | None = None) -> list[Floats]:
    """Scores of each token's texts by every token, higher by `gap` for the own; token i with the row of rows[i]."""
    draw = np.random.default_rng(seed)
    blocks = []
    for number in range(size):
        scores = draw.normal(size=(texts, size)) + draw.normal(size=(texts, 1))
        scores[:, number] += gap
        blocks.append(scores[:, rows] if rows else scores)
    return blocks


@pytest.mark.parametrize(("size", "texts"), [(3, 8), (30, 3), (30, 8)])
def test_tokens_that_score_all_texts_alike_are_called_swapped_no_more_often_than_stated(size: int, texts: int) -> None:
    # The worst sound case: no token is nearer to its own texts than to any other's.
    alpha, alarms = 0.05, 0
    for seed in range(DRAWS // 2):
        found = find_swaps(scored(size, texts, 0.0, seed), alpha)
        assert found is not None
        assert ((found.p_values <= alpha).any()) == (found.excess.max() >= found.critical)
        alarms += bool((found.p_values <= alpha).any())
    assert alarms / (DRAWS // 2) <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / (DRAWS // 2))


@pytest.mark.parametrize("size", [3, 30, 300])
def test_the_stated_power_is_that_of_swaps(size: int) -> None:
    rows = [1, 0, *range(2, size)]
    for gap, strong in ((6.0, True), (0.5, False)):
        sound, swapped = (find_swaps(scored(size, 8, gap, 1, order), 0.001) for order in (None, rows))
        assert sound is not None and swapped is not None
        assert (sound.power > 0.5) == strong
        assert not (sound.p_values <= 0.001).any()
        assert (set(np.flatnonzero(swapped.p_values <= 0.001)) == {0, 1}) == strong
        if strong:
            assert swapped.others[:2].tolist() == [1, 0]
            assert (sound.own_p_values <= 0.001).all()


def test_a_masked_score_takes_no_part() -> None:
    blocks = scored(4, 8, 6.0, 2, [1, 0, 2, 3])
    blocks[1][:, 0] = np.nan
    found = find_swaps(blocks, 0.001)
    assert found is not None
    assert set(np.flatnonzero(found.p_values <= 0.001)) == {1}


@pytest.mark.parametrize("blocks", [[], [np.ones((3, 1))], [np.ones((1, 2)), np.ones((1, 2))]])
def test_one_token_or_one_text_each_says_nothing(blocks: list[Floats]) -> None:
    assert find_swaps(blocks, 0.001) is None


def test_scores_without_any_noise_have_a_verdict() -> None:
    eye = np.eye(3)
    sound = find_swaps([np.repeat(eye[[number]], 4, axis=0) for number in range(3)], 0.001)
    swapped = find_swaps([np.repeat(eye[[number]][:, [1, 0, 2]], 4, axis=0) for number in range(3)], 0.001)
    assert sound is not None and swapped is not None
    assert (sound.p_values == 1).all()
    assert swapped.p_values.tolist() == [0, 0, 1]


def test_holm_corrects_the_smallest_most() -> None:
    assert holm(np.array([0.04, 0.01, 0.03])).tolist() == pytest.approx([0.06, 0.03, 0.06])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]
