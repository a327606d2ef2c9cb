"""Confidence intervals: limits against a direct computation, coverage in small simulations, and the edges."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq

from wsi_pipeline.metrics.delong import auc_contributions, auc_interval, compare, structural_components
from wsi_pipeline.metrics.intervals import jackknife_interval, leave_out_weights

LEVEL = 0.95


def binormal_variance(area: float, m: int, n: int) -> float:
    """Bamber's variance with the two probabilities by numerical integration, not by Owen's function."""
    shift, spread = stats.norm.ppf(area) * 2, math.sqrt(3)
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / weights.sum()
    tumors = (stats.norm.cdf((shift - nodes) / spread) ** 2 * weights).sum()
    normals = (stats.norm.cdf(shift + spread * nodes) ** 2 * weights).sum()
    parts = area * (1 - area) + (m - 1) * (tumors - area**2) + (n - 1) * (normals - area**2)
    return float(parts / (m * n))


def scores_of(rng: np.random.Generator, m: int, n: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate((rng.normal(shift, 1, m), rng.normal(0, 1, n))), np.arange(m + n) < m


@pytest.mark.parametrize(("m", "n", "shift"), [(49, 80, 1.2), (19, 31, 2.7), (6, 9, 0.5), (12, 5, -1.0)])
def test_the_limits_of_an_auc_solve_their_equation(m: int, n: int, shift: float) -> None:
    scores, is_tumor = scores_of(np.random.default_rng(m), m, n, shift)
    pairs = scores[is_tumor][:, None] > scores[~is_tumor]
    area = pairs.mean()
    k = min(side.any(axis=axis).sum() for side in (pairs, ~pairs) for axis in (0, 1))
    variance = pairs.mean(axis=1).var(ddof=1) / m + pairs.mean(axis=0).var(ddof=1) / n
    ratio = (k * variance / binormal_variance(area, m, n) + 3) / (k + 3)
    assert k > 0
    low, high = auc_interval(scores, is_tumor, LEVEL)
    assert low < area < high
    for limit in (low, high):
        distance = abs(area - limit) / math.sqrt(ratio * binormal_variance(limit, m, n))
        assert distance == pytest.approx(stats.norm.ppf(0.975), rel=1e-4)


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=60))
@settings(max_examples=200, deadline=None)
def test_an_auc_interval_contains_its_auc_and_has_no_direction(cases: list[tuple[int, bool]]) -> None:
    values, is_tumor = (np.array(part) for part in zip(*cases, strict=True))
    if is_tumor.all() or not is_tumor.any():
        return
    area = structural_components(values.astype(float), is_tumor)[0].mean()
    low, high = auc_interval(values.astype(float), is_tumor, LEVEL)
    assert 0 <= low <= area <= high <= 1
    assert low < high
    assert (high == 1) == (area == 1)
    turned = auc_interval(-values.astype(float), is_tumor, LEVEL)
    assert turned == pytest.approx([1 - high, 1 - low], abs=1e-6)


@pytest.mark.parametrize(("m", "n"), [(49, 80), (6, 9), (1, 4)])
def test_perfect_separation_has_a_one_sided_bound(m: int, n: int) -> None:
    is_tumor = np.arange(m + n) < m
    low, high = auc_interval(is_tumor.astype(float), is_tumor, LEVEL)
    assert high == 1
    wanted = brentq(lambda a: (1 - a) ** 2 - stats.norm.ppf(0.975) ** 2 * binormal_variance(a, m, n), 0.01, 1 - 1e-9)
    assert low == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("area", [0.8, 0.97, 0.994])
@pytest.mark.parametrize(("m", "n"), [(49, 80), (6, 9)])
def test_auc_intervals_cover(area: float, m: int, n: int) -> None:
    """Between 0.92 and 0.98 of 600 simulated cohorts: the level, plus or minus three standard errors and a little."""
    rng = np.random.default_rng([m, int(1000 * area)])
    covered = 0
    for _ in range(600):
        low, high = auc_interval(*scores_of(rng, m, n, math.sqrt(2) * stats.norm.ppf(area)), LEVEL)
        covered += low <= area <= high
    assert 0.92 <= covered / 600 <= 0.985


def test_the_jackknife_of_a_mean_is_the_textbook_interval() -> None:
    """Slides of equal size: variance and degrees of freedom from the deviations, and Wilson's quadratic equation."""
    shares = np.random.default_rng(0).beta(8, 2, 40)
    weights = leave_out_weights(40)
    assert (weights == 1 - np.eye(40)).all()
    limits = jackknife_interval(shares.mean(), weights @ shares / 39, 40, LEVEL)
    change = (shares - shares.mean()) / 39
    variance = (change**2).sum()
    quantile = stats.t.ppf(0.975, variance**2 / (change**4).sum())
    mean = shares.mean()
    for limit in limits:
        # Wilson: the distance of a limit in standard errors at the limit, scaled from those at the mean.
        error = math.sqrt(variance * limit * (1 - limit) / (mean * (1 - mean)))
        assert abs(limit - mean) / error == pytest.approx(quantile, rel=1e-9)


def test_intervals_at_0_and_1_are_one_sided_bounds_by_the_number_of_slides() -> None:
    zero, one = (jackknife_interval(np.asarray(value), np.full(20, value), 20, LEVEL) for value in (0.0, 1.0))
    quantile = stats.t.ppf(0.975, 20)
    assert one == pytest.approx((20 / (20 + quantile**2), 1.0), abs=1e-12)
    assert one[1] == 1
    assert zero == pytest.approx((0.0, 1 - one[0]), abs=1e-12)
    assert zero[0] == 0
    # Slides that are all alike say as little.
    assert jackknife_interval(np.asarray(0.7), np.full(20, 0.7 + 1e-15), 20, LEVEL)[0] < 0.6


def test_groups_of_many_slides_give_the_same_interval() -> None:
    shares = np.random.default_rng(0).beta(8, 2, 12_000)
    weights = leave_out_weights(12_000)
    assert weights.shape == (1000, 12_000)
    assert ((weights == 0).sum(axis=0) == 1).all()
    low, high = jackknife_interval(shares.mean(), weights @ shares / weights.sum(axis=1), 12_000, LEVEL)
    assert high - low == pytest.approx(2 * stats.norm.ppf(0.975) * shares.std() / math.sqrt(12_000), rel=0.1)


@pytest.mark.parametrize("spread", [1.0, 1.5])
def test_pooled_shares_cover_where_few_slides_have_most_patches(spread: float) -> None:
    rng = np.random.default_rng(3)
    weights = leave_out_weights(20)
    covered = 0
    for _ in range(600):
        patches = rng.lognormal(3, spread, 20)
        hit = patches * rng.beta(6, 2, 20)
        low, high = jackknife_interval(hit.sum() / patches.sum(), weights @ hit / (weights @ patches), 20, LEVEL)
        covered += low <= 0.75 <= high
    assert covered / 600 >= 0.93


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), min_size=4, max_size=9))
@settings(max_examples=30, deadline=None)
def test_the_permutation_test_is_that_of_all_swaps(cases: list[tuple[int, int, bool]]) -> None:
    """All 2^n swaps of ranks, with the AUCs of each computed from its pairs."""
    first, second, is_tumor = (np.array(part) for part in zip(*cases, strict=True))
    if min(is_tumor.sum(), (~is_tumor).sum()) < 2:
        return
    ranks = stats.rankdata(np.stack((first, second)), axis=1)
    swaps = (np.arange(2 ** len(cases))[:, None] >> np.arange(len(cases))) & 1 == 1
    one, other = np.where(swaps, ranks[1], ranks[0]), np.where(swaps, ranks[0], ranks[1])
    areas = [structural_components(part, is_tumor)[0].mean(axis=1) for part in (one, other)]
    differences = areas[0] - areas[1]
    exact = np.mean(np.abs(differences) >= abs(differences[0]) - 1e-12)
    found = compare(first.astype(float), second.astype(float), is_tumor, level=LEVEL, permutations=20_000, seed=1)
    assert found is not None
    assert found.difference == pytest.approx(differences[0], abs=1e-12)
    assert found.p_permutation == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_memory_of_interval_and_comparison_is_linear() -> None:
    rng = np.random.default_rng(0)
    is_tumor = np.arange(100_000) % 3 == 0
    one, other = (is_tumor + rng.normal(0, 1, 100_000) for _ in range(2))
    tracemalloc.start()
    low, high = auc_interval(one, is_tumor, LEVEL)
    found = compare(one, other, is_tumor, level=LEVEL, permutations=200, seed=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * len(is_tumor)
    contributions = auc_contributions(one, is_tumor)
    assert contributions is not None
    assert high - low == pytest.approx(2 * stats.norm.ppf(0.975) * np.linalg.norm(contributions), rel=1e-3)
    assert found is not None
    assert found.p_permutation == pytest.approx(found.p_delong, abs=0.15)
