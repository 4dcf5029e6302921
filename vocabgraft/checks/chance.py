"""Tests against chance for tokens and relations, each with a stated false alarm rate.

`matching` tests a whole vocabulary: do tokens match their own texts better than if the rows were assigned at random?
`find_swaps` tests each token: does it score the texts of another token higher than its own, as high as that token does?
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from scipy.stats import norm, t

Floats = np.ndarray[Any, np.dtype[np.float64]]
Booleans = np.ndarray[Any, np.dtype[np.bool_]]
Indices = np.ndarray[Any, np.dtype[np.intp]]
# 7! = 5,040 assignments. Above that, the normal approximation is used. At a level of 0.001 and 8 to 30 rows its false
# alarm rate is 0.0004 to 0.0009 on average over matrices, and 0.0020 if some columns are near to every row.
EXACT_UP_TO = 7
DIGITS = 9
# Halfway between first (0) and chance (0.5).
PLAUSIBLE_RANK = 0.25
# Level of the test that a token scores its own texts higher than another does. A copy of its row fails it this often.
KEPT_LEVEL = 0.05


def relative_ranks(scores: Floats) -> Floats:
    """The rank of each column in its row: 0 for the highest score, 1 for the lowest, ties at their mean.

    Args:
        scores: (rows, columns); NaN leaves a column out.

    Returns:
        (rows, columns); NaN for a NaN score, and in a row with fewer than two scores.
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
    """Whether rows as a whole match their own columns.

    Attributes:
        mean_rank: mean rank of the own columns: 0 all first, 0.5 chance, 1 all last.
        p_value: probability of a mean rank this low if own columns were assigned at random.
        low: the highest mean rank that is significantly better than chance; minus infinity if there is none.
        high: the lowest mean rank that is significantly worse than chance; infinity if there is none.
    """

    mean_rank: float
    p_value: float
    low: float
    high: float


def matching(ranks: Floats, own: Indices, alpha: float) -> Matching:
    """Test the mean rank of the rows' own columns against all assignments of the own columns to the rows.

    Exact up to 7 rows; above that by the normal approximation with the exact mean and variance (Hoeffding, 1951).

    Args:
        ranks: (rows, columns) of `relative_ranks`.
        own: (rows,) the own column of each row.
        alpha: the false alarm rate.

    Returns:
        The result; its mean rank is NaN if any rank is.
    """
    dealt = ranks[:, own]
    # Rounded, because adding in another order changes the last digits.
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
    """The largest value v such that at most a share alpha of all values are at most v."""
    shares = np.searchsorted(ordered, ordered, side="right") / len(ordered)
    return float(ordered[shares <= alpha].max(initial=-np.inf))


def _mean_and_deviation(dealt: Floats) -> tuple[float, float]:
    """Mean and standard deviation, over all permutations, of the mean of one entry per row and column."""
    centred = dealt - dealt.mean(axis=0) - dealt.mean(axis=1, keepdims=True) + dealt.mean()
    count = len(dealt)
    return float(dealt.mean()), float(np.sqrt((centred**2).sum() / (count - 1)) / count)


@dataclass(frozen=True)
class Swaps:
    """How far tokens score another token's texts higher than their own.

    Attributes:
        excess: (tokens,) standard errors by which a token scores the worst other token's texts higher than its own; at
            most 0 for others that kept their texts.
        others: (tokens,) that other token.
        p_values: (tokens,) p-values of `excess`, corrected for all pairs.
        critical: the smallest significant excess.
        own_p_values: (tokens,) corrected p-values for scoring the own texts higher than the others' on average.
        power: share of tokens that would be found if they had another token's row.
    """

    excess: Floats
    others: Indices
    p_values: Floats
    critical: float
    own_p_values: Floats
    power: float


def find_swaps(blocks: Sequence[Floats], alpha: float, taught: Booleans | None = None) -> Swaps | None:
    """Compare each token's scores on every other token's texts with those on its own, by t-tests with pooled variance.

    A token with another's row scores that token's texts as high as that token does, or higher if the other has a wrong
    row too. So another token that scores its own texts significantly higher kept them, and no swap is reported.

    A text that all tokens score high shows nothing, so the mean over tokens is subtracted from each text. The
    variance is that of the texts of one token, pooled over all tokens. Holm's correction keeps the probability of any
    false alarm at alpha, because a single one stops the release of a model.

    Args:
        blocks: for each token the scores of its texts by every token, (texts, tokens); NaN leaves a token out.
        alpha: the false alarm rate.
        taught: (tokens, tokens) whether training rows of one group hold both tokens, which teaches them to be near;
            such a pair is not reported.

    Returns:
        None if no token has a second text, or there is only one token.
    """
    tokens, freedom = len(blocks), sum(len(block) - 1 for block in blocks)
    if tokens < 2 or freedom < 1:
        return None
    means, counts, squares = (np.stack(values) for values in zip(*map(_summary, blocks), strict=True))
    own, own_counts = np.diag(means), np.diag(counts)
    # Scores of own texts vary more than those of others' texts; take the larger variance.
    variance = max(squares.sum() / np.maximum(counts - 1, 0).sum(), np.diag(squares).sum() / freedom)
    # (tokens, other tokens): for the other token's texts.
    errors = np.sqrt(variance * (1 / own_counts[:, None] + 1 / np.maximum(counts.T, 1)))
    others = ~np.eye(tokens, dtype=bool)
    excess = np.where(others & (counts.T > 0), _ratio(means.T - own[:, None], errors), -np.inf)
    # (tokens, other tokens): the other token scores its own texts higher than the token does.
    kept_errors = np.sqrt(2 * variance / np.maximum(counts.T, 1))
    kept = _ratio(own[None, :] - means.T, kept_errors) > float(t.isf(KEPT_LEVEL, freedom))
    excess = np.where(kept if taught is None else kept | taught, np.minimum(excess, 0.0), excess)
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
    """P-values corrected for their number, so that the probability of any false alarm is alpha (Holm, 1979)."""
    order = np.argsort(p_values)
    steps = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(steps, 1.0)
    return corrected


def _summary(scores: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean, number and sum of squared deviations of every token's scores on one token's texts: (tokens,) each."""
    counts = (~np.isnan(scores)).sum(axis=0).astype(np.float64)
    centred = scores - np.nanmean(scores, axis=1, keepdims=True)
    means = np.nansum(centred, axis=0) / np.maximum(counts, 1)
    return means, counts, np.nansum((centred - means) ** 2, axis=0)


def _ratio(difference: Floats, error: Floats) -> Floats:
    """Difference divided by its standard error; 0 if both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(difference / error, nan=0.0, posinf=np.inf, neginf=-np.inf)
