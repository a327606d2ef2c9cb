"""Paired differences of figures and Holm's correction: direct computations, coverage, and the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq

from wsi_pipeline.metrics.delong import auc_contributions, compare
from wsi_pipeline.metrics.intervals import holm, leave_out_weights, paired_difference

LEVEL = 0.95


def normal_scores(rng: np.random.Generator, slides: int, shifts: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two models (2, slides), correlated by 0.6, and which slides have tumour: two of five."""
    is_tumor = np.arange(slides) % 5 < 2
    scores = math.sqrt(0.6) * rng.normal(0, 1, slides) + math.sqrt(0.4) * rng.normal(0, 1, (2, slides))
    return scores + np.outer(shifts, is_tumor), is_tumor


def test_the_difference_of_means_is_that_of_the_differences() -> None:
    """Standard error and degrees of freedom from the difference of each slide, as in a paired t test."""
    first = np.random.default_rng(0).uniform(0.4, 0.6, 40)
    second = first + np.where(np.arange(40) % 4 == 0, 0.1, -0.1) + 0.05
    left_out = [leave_out_weights(40) @ shares / 39 for shares in (first, second)]
    found = paired_difference(first.mean() - second.mean(), left_out[0] - left_out[1] - (first - second).mean(), LEVEL)
    own = first - second
    error = math.sqrt(((own - own.mean()) ** 2).sum()) / 39
    assert found.standard_error == pytest.approx(error, rel=1e-9)
    assert error == pytest.approx(own.std(ddof=1) / math.sqrt(40) * math.sqrt(40 / 39), rel=1e-9)
    weights = (own - own.mean()) ** 2 / ((own - own.mean()) ** 2).sum()
    quantile = stats.t.ppf(0.975, 1 / (weights**2).sum())
    assert found.limits == pytest.approx((own.mean() - quantile * error, own.mean() + quantile * error), rel=1e-9)


@given(st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=30), st.floats(-1, 1))
@settings(max_examples=200, deadline=None)
def test_the_p_value_is_the_level_at_which_the_interval_ends_at_0(changes: list[float], difference: float) -> None:
    found = paired_difference(difference, np.array(changes), LEVEL)
    turned = paired_difference(-difference, -np.array(changes[::-1]), LEVEL)
    assert (turned.standard_error, turned.p_value) == (found.standard_error, found.p_value)
    if found.limits is None:
        assert max(map(abs, changes)) < 1e-12
        assert found.p_value == (1.0 if abs(difference) < 1e-12 else None)
        return
    low, high = found.limits
    assert -1 <= low <= difference <= high <= 1
    assert turned.limits == (-high, -low)
    assert found.p_value is not None
    assert (found.p_value < 0.05) == (not low <= 0 <= high) or abs(found.p_value - 0.05) < 1e-9
    if 1e-6 < found.p_value < 0.999:

        def nearest_limit(level: float) -> float:
            limits = paired_difference(difference, np.array(changes), level).limits
            assert limits is not None
            return limits[difference < 0]

        level = brentq(nearest_limit, 1e-9, 1 - 1e-12, xtol=1e-12)
        assert 1 - level == pytest.approx(found.p_value, abs=1e-6)


def test_equal_models_and_models_without_variance() -> None:
    zero = paired_difference(0.0, np.zeros(9), LEVEL)
    assert (zero.difference, zero.standard_error, zero.limits, zero.p_value) == (0, 0, None, 1)
    # One model separates the classes perfectly, the other the wrong way round.
    is_tumor = np.arange(12) < 5
    scores = np.stack((is_tumor, ~is_tumor)).astype(float)
    found = compare(*scores, is_tumor, level=LEVEL, permutations=100, seed=1)
    assert found is not None
    assert (found.difference, found.difference_interval, found.p_delong) == (1, None, None)
    # Both separate them perfectly, by other scores.
    found = compare(scores[0], scores[0] * 3 + np.arange(12) / 12, is_tumor, level=LEVEL, permutations=100, seed=1)
    assert found is not None
    assert (found.difference, found.difference_interval, found.p_delong) == (0, None, 1)


def test_contributions_to_an_auc_do_not_depend_on_the_order_of_the_slides() -> None:
    scores, is_tumor = normal_scores(np.random.default_rng(5), 40, (1.2, 0.7))
    order = np.random.default_rng(6).permutation(40)
    one, other = (auc_contributions(scores[:, part], is_tumor[part]) for part in (np.arange(40), order))
    assert one is not None and other is not None
    np.testing.assert_allclose(one[:, order], other, atol=1e-15)


@pytest.mark.parametrize(("shifts", "slides"), [((1.2, 1.2), 60), ((2.7, 2.7), 60), ((2.7, 1.2), 30), ((2.7, 1.8), 30)])
def test_differences_of_aucs_cover(shifts: tuple[float, float], slides: int) -> None:
    """At least 0.93 of 1,000 simulated cohorts, two standard errors below 0.945. A normal quantile covers 0.90."""
    rng = np.random.default_rng(7)
    true = np.subtract(*stats.norm.cdf(np.array(shifts) / math.sqrt(2)))
    covered = 0
    for _ in range(1000):
        scores, is_tumor = normal_scores(rng, slides, shifts)
        contributions = auc_contributions(scores, is_tumor)
        assert contributions is not None
        areas = [(s[is_tumor][:, None] > s[~is_tumor]).mean() for s in scores]
        found = paired_difference(areas[0] - areas[1], contributions[0] - contributions[1], LEVEL)
        covered += found.limits is None or found.limits[0] <= true <= found.limits[1]
    assert covered / 1000 >= 0.93


@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.5, 1.0])), max_size=7))
@settings(max_examples=300, deadline=None)
def test_holm_rejects_what_his_procedure_rejects(p_values: list[float]) -> None:
    """Holm, 1979: compare the smallest p value with alpha / n, the next with alpha / (n - 1), until one is larger."""
    adjusted = holm(p_values)
    for alpha in (0.001, 0.05, 0.2, 0.9):
        rejected = set[int]()
        for step, index in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
            if p_values[index] * (len(p_values) - step) > alpha:
                break
            rejected.add(index)
        assert {k for k, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
