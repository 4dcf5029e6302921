"""Decides whether a gain is more than chance: paired bootstrap intervals and permutation tests.

Items of one group (paraphrases of one concept, triples of one head) are not independent, so whole groups are drawn and
flipped.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata

Array = np.ndarray[Any, np.dtype[np.float64]]
Ids = np.ndarray[Any, np.dtype[np.int64]]
Verdict = Literal["better", "worse", "could be chance", "smoke figure"]
# With this number, the bounds of an interval vary between seeds by a few hundredths of its width.
RESAMPLES = 2000
CONFIDENCE = 0.95
POWER = 0.8
# A paired sign test over 5 groups has a p-value of 2 / 2^5 = 0.0625 at best; over 6 it can reach 0.031.
LEAST_GROUPS = 6
# 32 MB of numbers at once.
NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Comparison:
    """A paired gain with its 95 % interval.

    Attributes:
        gain: gain of the second model over the first.
        low, high: bounds of the interval.
        p_value: probability of an effect at least this large, in either direction, if the two models were equal.
        standard_error: standard error of the gain, from the bootstrap.
    """

    gain: float
    low: float
    high: float
    p_value: float
    standard_error: float


def compare_means(before: Array, after: Array, groups: Sequence[str], seed: int) -> Comparison:
    """The gain of a mean over items, by a paired bootstrap (Efron, 1979) and a sign-flip permutation test.

    Args:
        before: (items,) values of one model.
        after: (items,) values of the other model for the same items.
        groups: group of each item.
        seed: seed of the resampling.
    """
    codes = _codes(groups)
    sums, counts = np.bincount(codes, after - before), np.bincount(codes).astype(np.float64)
    gains = _resampled(len(sums), seed, lambda drawn: sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    flipped = _flipped(len(sums), seed, lambda flips: (1 - 2 * flips) @ sums / counts.sum())
    return _comparison(float(sums.sum() / counts.sum()), gains, flipped)


def compare_correlations(before: Array, after: Array, scores: Array, groups: Sequence[str], seed: int) -> Comparison:
    """The gain of Spearman's rho with `scores`, in percent, by a paired bootstrap and a permutation test.

    The test swaps the two models' ranks of a group, which would be interchangeable if the models were equal.

    Args:
        before: (items,) similarities by one model.
        after: (items,) similarities by the other model for the same items.
        scores: (items,) the scores to correlate with.
        groups: group of each item.
        seed: seed of the resampling.

    Returns:
        The comparison, with NaN if one of the three arrays is constant.
    """
    codes = _codes(groups)
    size = int(codes.max()) + 1
    ranked = [_Ranked(values) for values in (before, after, scores)]

    def gains_of(drawn: Ids) -> Array:
        weights = np.stack([np.bincount(row, minlength=size) for row in drawn]).astype(np.float64)[:, codes]
        old, new, right = (values.midranks(weights) for values in ranked)
        return 100 * (_correlations(new, right, weights) - _correlations(old, right, weights))

    old, new, right = (rankdata(values) for values in (before, after, scores))
    flipped = _flipped(size, seed, lambda flips: 100 * _swapped_gains(old, new, right, codes, flips))
    whole = np.ones((1, len(codes)))
    gain = 100 * float((_correlations(new[None], right, whole) - _correlations(old[None], right, whole))[0])
    return _comparison(gain, _resampled(size, seed, gains_of, len(codes)), flipped)


def verdict_of(comparison: Comparison, items: int, smoke_under: int) -> Verdict:
    """The verdict on a gain: interval and test must agree, and few items support no claim."""
    if items < smoke_under:
        return "smoke figure"
    if comparison.p_value > 1 - CONFIDENCE or comparison.low <= 0 <= comparison.high:
        return "could be chance"
    return "better" if comparison.gain > 0 else "worse"


def is_shown_above(comparison: Comparison, groups: int, limit: float) -> bool:
    """Whether the held-out items show that the gain is above a limit.

    The whole interval must be above the limit. The bootstrap interval of few items is too narrow (for one item its
    width is 0), so at least `LEAST_GROUPS` groups are required, and the permutation test must agree. That test is
    against a gain of 0, so it is not used for limits below 0.
    """
    agrees = limit < 0 or comparison.p_value <= 1 - CONFIDENCE
    return groups >= LEAST_GROUPS and comparison.low > limit and agrees


def items_needed(comparison: Comparison, items: int, groups: int, limit: float) -> int | None:
    """The number of items that would show a gain of this size with 95 % confidence and a power of 80 %.

    The sample size of a paired test of a mean,

        n = (z(1 - 0.05 / 2) + z(0.8))^2 * variance / (gain - limit)^2

    (Chow, Shao and Wang, Sample Size Calculations in Clinical Research, 2008, section 3.1.1). The variance of the
    paired differences is items * standard_error^2; because the bootstrap draws whole groups, it holds for groups of
    this size.

    Args:
        comparison: the measured gain, taken for the true one.
        items: number of items.
        groups: number of groups.
        limit: the limit to be exceeded.

    Returns:
        The number of items; None if the gain is not above the limit, since then more items cannot show it.
    """
    effect = comparison.gain - limit
    if effect <= 0 or not groups:
        return None
    quantiles = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) + NormalDist().inv_cdf(POWER)
    by_power = math.ceil(items * (quantiles * comparison.standard_error / effect) ** 2)
    return max(by_power, math.ceil(LEAST_GROUPS * items / groups))


class _Ranked:
    """Values that are sorted once, to compute midranks for any weights (items drawn more than once)."""

    def __init__(self, values: Array) -> None:
        distinct, self.codes = np.unique(values, return_inverse=True)
        self.order = np.argsort(self.codes, kind="stable")
        self.starts = np.searchsorted(self.codes[self.order], np.arange(len(distinct)))

    def midranks(self, weights: Array) -> Array:
        """Mean ranks of items that each occur as often as `weights` says: (resamples, items)."""
        tied = np.add.reduceat(weights[:, self.order], self.starts, axis=1)
        found: Array = (np.cumsum(tied, axis=1) - tied + (tied + 1) / 2)[:, self.codes]
        return found


def _correlations(left: Array, right: Array, weights: Array) -> Array:
    """Weighted Pearson correlations by row; NaN for a constant row: (rows,)."""
    total = weights.sum(axis=1)
    left, right = (
        values - ((weights * values).sum(axis=1) / total)[:, None] for values in np.broadcast_arrays(left, right)
    )
    spread = (weights * left * left).sum(axis=1) * (weights * right * right).sum(axis=1)
    found: Array = np.full(len(total), np.nan)
    np.divide((weights * left * right).sum(axis=1), np.sqrt(spread), out=found, where=spread > 0)
    return found


def _swapped_gains(old: Array, new: Array, right: Array, codes: Ids, flips: Array) -> Array:
    """The gains after swapping the ranks of some groups, computed only from sums over groups: (flips,)."""
    centred = right - right.mean()

    def swapped(kept: Array, other: Array) -> Array:
        """The sum over items for each row of `flips`, with the other model's values in flipped groups."""
        found: Array = kept.sum() + flips @ np.bincount(codes, other - kept)
        return found

    def correlations(kept: Array, other: Array) -> Array:
        spread = swapped(kept**2, other**2) - swapped(kept, other) ** 2 / len(codes)
        # A swap can make all ranks equal; their correlation is then 0.
        spread = np.maximum(spread, 1e-12) * (centred**2).sum()
        found: Array = swapped(kept * centred, other * centred) / np.sqrt(spread)
        return found

    return correlations(new, old) - correlations(old, new)


def _codes(groups: Sequence[str]) -> Ids:
    return np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)[1].astype(np.int64)


def _resampled(groups: int, seed: int, gains_of: Callable[[Ids], Array], items: int | None = None) -> Array:
    generator = np.random.default_rng([seed, 0])
    draws = (generator.integers(0, groups, (rows, groups)) for rows in _blocks(items or groups))
    return np.concatenate([gains_of(drawn) for drawn in draws])


def _flipped(groups: int, seed: int, gains_of: Callable[[Array], Array]) -> Array:
    generator = np.random.default_rng([seed, 1])
    draws = (generator.integers(0, 2, (rows, groups)).astype(np.float64) for rows in _blocks(groups))
    return np.concatenate([gains_of(flips) for flips in draws])


def _blocks(width: int) -> Iterator[int]:
    at_once = max(1, NUMBERS_AT_ONCE // max(1, width))
    for start in range(0, RESAMPLES, at_once):
        yield min(at_once, RESAMPLES - start)


def _comparison(gain: float, resampled: Array, flipped: Array) -> Comparison:
    # A resample with only one item, drawn repeatedly, has no correlation.
    low, high = np.nanquantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    # The observed gain is one of the permutations; the tolerance is for sums in another order.
    as_large = int((np.abs(flipped) >= abs(gain) - 1e-9).sum())
    error = float(np.nanstd(resampled))
    return Comparison(round(gain, 4), round(float(low), 4), round(float(high), 4), _rounded(as_large), round(error, 6))


def _rounded(as_large: int) -> float:
    return round((1 + as_large) / (1 + RESAMPLES), 4)
