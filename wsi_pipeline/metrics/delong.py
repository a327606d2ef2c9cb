"""Variance of the AUC, and comparison of two correlated AUCs (same cases).

Method: E. R. DeLong, D. M. DeLong and D. L. Clarke-Pearson, Biometrics 44, 1988, computed from midranks as in X. Sun
and W. Xu, IEEE Signal Process. Lett. 21, 2014. Permutation test: A. I. Bandos, H. E. Rockette and D. Gur, Stat. Med.
24, 2005.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from wsi_pipeline.seeds import generator

Scores = NDArray[np.float64]
Labels = NDArray[np.bool_]

_PERMUTATIONS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Comparison:
    """Difference of two AUCs (first minus second), its standard error, and two-sided p-values."""

    difference: float
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


def auc_covariance(scores: Scores, is_tumor: Labels) -> NDArray[np.float64] | None:
    """Covariance of the AUCs of (models, cases) scores, (models, models); None with fewer than 2 cases of a class."""
    if min(np.count_nonzero(is_tumor), np.count_nonzero(~is_tumor)) < 2:
        return None
    parts = (np.atleast_2d(np.cov(of)) / of.shape[-1] for of in structural_components(scores, is_tumor))
    total: NDArray[np.float64] = np.sum(list(parts), axis=0)
    return total


def delong_interval(scores: Scores, is_tumor: Labels, level: float) -> list[float] | None:
    """Confidence interval of the AUC of (cases,) scores: normal approximation, clipped to 0 and 1.

    None with fewer than 2 cases of a class.
    """
    variance = auc_covariance(scores[None], is_tumor)
    if variance is None:
        return None
    area = float(structural_components(scores, is_tumor)[0].mean())
    half_width = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt(max(0.0, variance[0, 0]))
    return [max(0.0, area - half_width), min(1.0, area + half_width)]


def compare(first: Scores, second: Scores, is_tumor: Labels, *, permutations: int, seed: int) -> Comparison | None:
    """Compare two models on the same cases; None with fewer than 2 cases of a class.

    The permutation test swaps the ranks of the two models independently for each case.
    """
    scores = np.stack((first, second))
    variance = auc_covariance(scores, is_tumor)
    if variance is None:
        return None
    areas = structural_components(scores, is_tumor)[0].mean(axis=-1)
    difference = float(areas[0] - areas[1])
    error = math.sqrt(max(0.0, variance[0, 0] + variance[1, 1] - 2 * variance[0, 1]))
    p_delong = float(2 * stats.norm.sf(abs(difference) / error)) if error > 0 else None
    ranks = stats.rankdata(scores, axis=-1)
    rng: Any = generator(seed, "permutation")
    at_least_as_extreme = 0
    for start in range(0, permutations, _PERMUTATIONS_AT_ONCE):
        count = min(_PERMUTATIONS_AT_ONCE, permutations - start)
        swap = rng.random((count, len(is_tumor))) < 0.5
        one, other = np.where(swap, ranks[1], ranks[0]), np.where(swap, ranks[0], ranks[1])
        area, other_area = (structural_components(part, is_tumor)[0].mean(axis=-1) for part in (one, other))
        drawn = area - other_area
        # Tolerance: sums in a different order round differently, and equal differences must count.
        at_least_as_extreme += int((np.abs(drawn) >= abs(difference) - 1e-12).sum())
    return Comparison(difference, error, p_delong, (1 + at_least_as_extreme) / (1 + permutations))
