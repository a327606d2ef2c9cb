"""Filters on heatmaps."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from scipy.special import expit

from wsi_pipeline.geometry import Grid
from wsi_pipeline.model.heatmap_filters import gaussian_filtered, overlap_mean


def heat_of(shape: tuple[int, int], seed: int = 1) -> np.ndarray:
    """Log odds."""
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


@pytest.mark.parametrize("ratio", [1.0, 2.0, 3.0, 4.0, 2.5])
def test_overlaps_are_weighted_by_covered_area(ratio: float) -> None:
    heat, stride = heat_of((9, 12)), 60.0
    grid = Grid(12, 9, stride, ratio * stride)
    found = overlap_mean(heat, grid)
    # Brute force: the share of fine sample points in the cell of (4, 5) that each patch covers.
    fine = (np.arange(600) + 0.5) / 600 * stride - stride / 2
    weights = np.zeros(heat.shape)
    for row in range(9):
        for column in range(12):
            inside = [np.abs(fine - away * stride) < ratio * stride / 2 for away in (row - 4, column - 5)]
            weights[row, column] = inside[0].mean() * inside[1].mean()
    assert expit(found[4, 5]) == pytest.approx((weights * expit(heat)).sum() / weights.sum(), abs=1e-5)


def test_without_overlap_the_mean_is_the_value_itself() -> None:
    heat = heat_of((5, 6))
    np.testing.assert_array_max_ulp(overlap_mean(heat, Grid(6, 5, 75.0, 75.0)), heat)
    np.testing.assert_array_max_ulp(overlap_mean(heat, Grid(6, 5, 100.0, 75.0)), heat)


def test_positions_without_a_value_do_not_contribute_and_stay_empty() -> None:
    heat = np.full((7, 7), 0.25, np.float32)
    heat[0, :], heat[3, 3] = np.nan, np.nan
    for found in (overlap_mean(heat, Grid(7, 7, 10, 30)), gaussian_filtered(heat, 1.5)):
        np.testing.assert_array_equal(np.isnan(found), np.isnan(heat))
        np.testing.assert_allclose(found[np.isfinite(heat)], 0.25, atol=1e-7)


def test_smoothing_is_a_gaussian() -> None:
    heat = np.full((41, 41), -30, np.float32)
    heat[20, 20] = 30
    found = expit(gaussian_filtered(heat, 2.0))
    away = np.arange(41) - 20
    bell = np.exp(-(away**2) / 8.0)
    bell /= bell.sum()
    np.testing.assert_allclose(found[8:33, 8:33], np.outer(bell, bell)[8:33, 8:33], atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "mean", [lambda heat: overlap_mean(heat, Grid(3, 1, 60, 120)), lambda heat: gaussian_filtered(heat, 0.7)]
)
def test_means_of_confident_probabilities_do_not_tie(mean: Callable[[np.ndarray], np.ndarray], sign: int) -> None:
    """1 - p of each position in rational numbers: log odds of 20 to 600 are all 1 in float32, and of 40 in float64."""
    for top in (20.0, 40.0, 600.0):
        heat = sign * np.array([[top, top + 0.5, top + 3]], np.float32)
        # The weights of a linear filter, from its effect on log odds so small that p is linear in them.
        tiny = np.float32(2.0**-20)
        weights = [mean(np.where(np.arange(3) == k, tiny, 0)[None].astype(np.float32))[0, 1] / tiny for k in range(3)]
        away = sum(
            Fraction(float(w)) * Fraction(math.exp(-abs(h))) for w, h in zip(weights, heat[0].tolist(), strict=True)
        )
        wanted = 300 * math.log(2) - math.log(away * 2**300)
        assert sign * mean(heat)[0, 1] == pytest.approx(wanted, rel=1e-6)
