"""Interval of an AUC, and comparison of two correlated AUCs (same cases).

Variance: E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson, Biometrics 44, 1988, computed from midranks as in X. Sun
and W. Xu, IEEE Signal Process. Lett. 21, 2014. Score interval: R. G. Newcombe, Stat. Med. 25, 2006 (method 5), here
with a binormal variance. Permutation test: A. I. Bandos, H. E. Rockette and D. Gur, Stat. Med. 24, 2005.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq
from scipy.special import ndtri, owens_t

from wsi_pipeline.metrics.intervals import no_interval_reason, paired_difference, too_few_slides
from wsi_pipeline.seeds import generator

Scores = NDArray[np.float64]
Labels = NDArray[np.bool_]

# The model of `auc_interval`, with which its coverage is nearest to the level in benchmarks/coverage.py: scores of
# tumour vary more than those of normal slides.
_VARIANCE_RATIO = 3.0
_PRIOR_CASES = 3
_ROUNDING = 1e-12
_CASES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Comparison:
    """Difference of two AUCs (first minus second), its standard error and interval, and two-sided p values."""

    difference: float
    difference_interval: tuple[float, float] | None
    difference_interval_reason: str | None
    standard_error: float
    p_delong: float | None
    p_permutation: float


def structural_components(scores: Scores, is_tumor: Labels) -> tuple[Scores, Scores]:
    """Structural components of the AUC: for each tumour and for each normal case.

    For a tumour case it is the fraction of normal cases with a lower score; for a normal case the fraction of
    tumour cases with a higher score. Ties count half. The mean of either is the AUC. `scores` is (..., cases);
    the results are (..., tumour cases) and (..., normal cases).
    """
    tumor = scores[..., is_tumor]
    normal = scores[..., ~is_tumor]
    m, n = tumor.shape[-1], normal.shape[-1]
    pooled_ranks = stats.rankdata(np.concatenate((tumor, normal), axis=-1), axis=-1)
    of_tumor = (pooled_ranks[..., :m] - stats.rankdata(tumor, axis=-1)) / n
    of_normal = 1 - (pooled_ranks[..., m:] - stats.rankdata(normal, axis=-1)) / m
    return of_tumor, of_normal


def auc_contributions(scores: Scores, is_tumor: Labels) -> Scores | None:
    """Contributions (..., cases) of the cases to the standard error of the AUC; None with fewer than 2 of a class.

    Products of the contributions to the AUCs of two models, summed over the cases, are DeLong's covariance of the AUCs.
    They are the deviations of the structural components from their mean, over the square root of k (k - 1) for the k
    cases of a class: nearly the change of the AUC without the case.
    """
    if min(np.count_nonzero(is_tumor), np.count_nonzero(~is_tumor)) < 2:
        return None
    contributions = np.empty(scores.shape)
    for of, cases in zip(structural_components(scores, is_tumor), (is_tumor, ~is_tumor), strict=True):
        k = of.shape[-1]
        contributions[..., cases] = (of - of.mean(axis=-1, keepdims=True)) / math.sqrt(k * (k - 1))
    return contributions


def auc_interval(scores: Scores, is_tumor: Labels, level: float) -> list[float]:
    """Score interval of the AUC of (cases,) scores with both classes: all areas A with |AUC - A| <= z sqrt(r V(A)).

    V is the variance of a binormal model. r is DeLong's variance over V(AUC), as far as it can be known: its weight is
    k / (k + 3), that of 1 is 3 / (k + 3), where k is the number of cases that are on the wrong side of a case of the
    other class (of the class, and the side, with fewer of them). DeLong's variance alone is far too small near an AUC
    of 1, and 0 at 1. There k is 0 too, and the interval is [A, 1] with A a one-sided bound at (1 + level) / 2.
    """
    of_tumor, of_normal = structural_components(scores, is_tumor)
    area, m, n = float(of_tumor.mean()), len(of_tumor), len(of_normal)
    wrong = min(np.count_nonzero(side) for of in (of_tumor, of_normal) for side in (of < 1, of > 0))
    contributions = auc_contributions(scores, is_tumor)
    ratio = 1.0
    if wrong and contributions is not None:
        variance = (contributions**2).sum()
        ratio = (wrong * variance / _binormal_variance(area, m, n) + _PRIOR_CASES) / (wrong + _PRIOR_CASES)
    scale = float(stats.norm.ppf((1 + level) / 2)) ** 2 * ratio

    def outside(true_area: float) -> float:
        return (area - true_area) ** 2 - scale * _binormal_variance(true_area, m, n)

    # The variance is 0 at 0 and at 1, which are roots without meaning there.
    return [
        float(brentq(outside, 0.0, min(area, 1 - _ROUNDING), xtol=_ROUNDING)) if area > 0 else 0.0,
        float(brentq(outside, max(area, _ROUNDING), 1.0, xtol=_ROUNDING)) if area < 1 else 1.0,
    ]


def _binormal_variance(area: float, m: int, n: int) -> float:
    """Variance of the AUC of m tumour and n normal cases with normal scores, tumour scores of 3 times the variance.

    Equation 2 of Bamber, J. Math. Psychol. 12, 1975. The two probabilities in it, that two cases of a class are both
    on the right side of one case of the other class, are bivariate normal ones (Owen, Ann. Math. Stat. 27, 1956).
    """
    deviate = ndtri(area)

    def both(correlation: float) -> float:
        return area - 2 * float(owens_t(deviate, math.sqrt((1 - correlation) / (1 + correlation))))

    share = 1 / (1 + _VARIANCE_RATIO)
    square = area * area
    pairs = area - square + (m - 1) * (both(share) - square) + (n - 1) * (both(1 - share) - square)
    return max(0.0, pairs) / (m * n)


def compare(
    first: Scores, second: Scores, is_tumor: Labels, *, level: float, permutations: int, seed: int
) -> Comparison | None:
    """Compare two models on the same cases; None with fewer than 2 cases of a class.

    Interval and `p_delong` are those of `paired_difference`, with DeLong's standard error; None for `too_few_slides`.
    The permutation test swaps the ranks of the two models independently for each case.
    """
    scores = np.stack((first, second))
    of_cases = auc_contributions(scores, is_tumor)
    if of_cases is None:
        return None
    areas = structural_components(scores, is_tumor)[0].mean(axis=-1)
    found = paired_difference(float(areas[0] - areas[1]), of_cases[0] - of_cases[1], level)
    contributions = _swap_contributions(stats.rankdata(scores, axis=-1), is_tumor)
    rng = generator(seed, "permutation")
    drawn = np.zeros(permutations)
    for start in range(0, len(contributions), _CASES_AT_ONCE):
        part = contributions[start : start + _CASES_AT_ONCE]
        swaps = np.unpackbits(np.frombuffer(rng.bytes(-(-permutations * len(part) // 8)), np.uint8))
        drawn += part.sum() - 2 * (swaps[: permutations * len(part)].reshape(permutations, -1) @ part)
    at_least_as_extreme = np.count_nonzero(np.abs(drawn) >= abs(contributions.sum()))
    too_few = too_few_slides(int(min(np.count_nonzero(is_tumor), np.count_nonzero(~is_tumor))))
    return Comparison(
        found.difference,
        None if too_few else found.limits,
        too_few or no_interval_reason(found),
        found.standard_error,
        p_delong=None if too_few else found.p_value,
        p_permutation=(1 + at_least_as_extreme) / (1 + permutations),
    )


def _swap_contributions(ranks: Scores, is_tumor: Labels) -> Scores:
    """What each case adds to the difference of the areas of (2, cases) ranks, (cases,); a swap changes its sign.

    The difference is linear in the swaps: the comparisons of case i with case j, where one of them is swapped, are
    those with the ranks of the other model. So each case adds the mean over both models' ranks of the other class.
    In units of 1 / (4 m n): whole numbers, whose sums are exact in any order.
    """
    tumor, normal = ranks[:, is_tumor], ranks[:, ~is_tumor]
    found = np.empty(ranks.shape[1])
    found[is_tumor] = np.subtract(*_twice_below(tumor, normal.ravel()))
    found[~is_tumor] = -np.subtract(*_twice_below(normal, tumor.ravel()))
    return found


def _twice_below(values: Scores, others: Scores) -> NDArray[np.int64]:
    """Twice the number of `others` (n,) below each value, ties count half."""
    ordered = np.sort(others)
    return np.searchsorted(ordered, values, side="left") + np.searchsorted(ordered, values, side="right")
