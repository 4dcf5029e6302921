"""Tests against chance for tokens and relations, each with a stated false alarm rate.

`matching` asks of a whole vocabulary: do tokens find their own text better than if the rows had been dealt out at
random? `find_swaps` asks of each token: does it score the texts of another token higher than its own?
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from scipy.stats import norm, t

Floats = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.intp]]
# 7! is 5,040 ways to deal rows out. Above, the normal approximation is used: at a level of 0.001 and 8 to 30 rows its
# false alarm rate is 0.0004 to 0.0009 in the mean over matrices, and 0.0020 where some columns are near to every row.
EXACT_UP_TO = 7
DIGITS = 9
# Half-way between first (0) and chance (0.5).
PLAUSIBLE_RANK = 0.25


def relative_ranks(scores: Floats) -> Floats:
    """Where each column stands in its row: 0 for the highest score, 1 for the lowest, ties at their mean.

    Args:
        scores: (rows, columns); NaN where a column takes no part.

    Returns:
        (rows, columns); NaN where the score is, and in a row with fewer than two scores.
    """
    ranks = np.full(scores.shape, np.nan)
    for row, values in enumerate(scores):
        ordered = np.sort(values[~np.isnan(values)])
        if len(ordered) > 1:
            below, up_to = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
            ranks[row] = (len(ordered) - up_to + 0.5 * (up_to - below - 1)) / (len(ordered) - 1)
    return np.where(np.isnan(scores), np.nan, ranks)


@dataclass(frozen=True)
class Matching:
    """Whether rows find their own columns, as a whole.

    Attributes:
        mean_rank: of the own columns, from 0 (all first) over 0.5 (chance) to 1 (all last).
        p_value: the probability of a mean rank as low if own columns were dealt out at random.
        low: the highest mean rank that is better than chance at the level asked for; minus infinity where none is.
        high: the lowest mean rank that is worse than chance; infinity where none is.
    """

    mean_rank: float
    p_value: float
    low: float
    high: float


def matching(ranks: Floats, own: Indices, alpha: float) -> Matching:
    """Test the mean rank of each row's own column against all ways to deal the own columns out to the rows.

    Exact up to 7 rows; above by the normal approximation with the exact mean and variance (Hoeffding, 1951).

    Args:
        ranks: (rows, columns) of `relative_ranks`.
        own: (rows,) the column of each row.
        alpha: the false alarm rate.

    Returns:
        With a mean rank of NaN where a rank is.
    """
    dealt = ranks[:, own]
    # The same ranks added in another order differ in the last digits.
    seen = round(float(np.diag(dealt).mean()), DIGITS) if np.isfinite(dealt).all() else float("nan")
    if np.isnan(seen):
        return Matching(seen, seen, -np.inf, np.inf)
    if len(dealt) <= EXACT_UP_TO:
        rows = np.arange(len(dealt))
        means = np.sort(dealt[rows, np.array(list(permutations(rows)))].mean(axis=1).round(DIGITS))
        return Matching(seen, float(np.mean(means <= seen)), _low(means, alpha), -_low(-means[::-1], alpha))
    expected, deviation = _mean_and_deviation(dealt)
    reach = deviation * norm.isf(alpha)
    p_value = float(norm.cdf((seen - expected) / deviation)) if deviation else 1.0
    return Matching(seen, p_value, expected - reach, expected + reach)


def _low(ordered: Floats, alpha: float) -> float:
    """The largest value that at most a share of alpha of all values do not exceed."""
    shares = np.searchsorted(ordered, ordered, side="right") / len(ordered)
    return float(ordered[shares <= alpha].max(initial=-np.inf))


def _mean_and_deviation(dealt: Floats) -> tuple[float, float]:
    """Mean and standard deviation of the mean of one number a row, each from another column, over all permutations."""
    centred = dealt - dealt.mean(axis=0) - dealt.mean(axis=1, keepdims=True) + dealt.mean()
    count = len(dealt)
    return float(dealt.mean()), float(np.sqrt((centred**2).sum() / (count - 1)) / count)


@dataclass(frozen=True)
class Swaps:
    """How far tokens score another token's texts higher than their own.

    Attributes:
        excess: (tokens,) by how many standard errors they score the texts of the worst other token higher.
        others: (tokens,) that other token.
        p_values: (tokens,) of `excess`, corrected for all pairs.
        critical: the excess that is significant.
        own_p_values: (tokens,) of scoring the own texts higher than the others' on average, corrected.
        power: with another token's row in its place, how often a token would be found.
    """

    excess: Floats
    others: Indices
    p_values: Floats
    critical: float
    own_p_values: Floats
    power: float


def find_swaps(blocks: Sequence[Floats], alpha: float) -> Swaps | None:
    """Compare each token's scores of every other token's texts with those of its own, by t-tests with pooled variance.

    A text that every token scores high is no evidence, so the mean over tokens is taken off each text. The variance is
    that of texts of one token, pooled over all tokens. Holm's correction holds the probability of any false alarm at
    alpha: a single one stops the release of a model.

    Args:
        blocks: for each token its texts' scores by every token, (texts, tokens); NaN where a token takes no part.
        alpha: the false alarm rate.

    Returns:
        None where no token has a second text, or there is one token alone.
    """
    tokens, freedom = len(blocks), sum(len(block) - 1 for block in blocks)
    if tokens < 2 or freedom < 1:
        return None
    means, counts, squares = (np.stack(values) for values in zip(*map(_summary, blocks), strict=True))
    own, own_counts = np.diag(means), np.diag(counts)
    # A token's scores of its own texts vary more than those of others; the larger variance is taken.
    variance = max(squares.sum() / np.maximum(counts - 1, 0).sum(), np.diag(squares).sum() / freedom)
    # By token and other token: of the other's texts.
    errors = np.sqrt(variance * (1 / own_counts[:, None] + 1 / np.maximum(counts.T, 1)))
    others = ~np.eye(tokens, dtype=bool)
    excess = np.where(others & (counts.T > 0), _ratio(means.T - own[:, None], errors), -np.inf)
    critical = float(t.isf(alpha / (tokens * (tokens - 1)), freedom))
    elsewhere = (means.sum(axis=0) - own) / (tokens - 1)
    return Swaps(
        excess=excess.max(axis=1),
        others=excess.argmax(axis=1),
        p_values=holm(t.sf(excess.max(axis=1), freedom) * (tokens - 1)),
        critical=critical,
        own_p_values=holm(t.sf(_ratio(own - elsewhere, np.sqrt(variance / own_counts)), freedom)),
        power=float(np.mean(_ratio(own[None, :] - means, errors)[others] >= critical)),
    )


def holm(p_values: Floats) -> Floats:
    """P-values corrected for their number, so that the chance of any false alarm is alpha (Holm, 1979)."""
    order = np.argsort(p_values)
    steps = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(steps, 1.0)
    return corrected


def _summary(scores: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean, number and sum of squared deviations of each token's scores of one token's texts: (tokens,) each."""
    counts = (~np.isnan(scores)).sum(axis=0).astype(np.float64)
    centred = scores - np.nanmean(scores, axis=1, keepdims=True)
    means = np.nansum(centred, axis=0) / np.maximum(counts, 1)
    return means, counts, np.nansum((centred - means) ** 2, axis=0)


def _ratio(difference: Floats, error: Floats) -> Floats:
    """Difference over its standard error; 0 where both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(difference / error, nan=0.0, posinf=np.inf, neginf=-np.inf)
