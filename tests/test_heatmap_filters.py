"""Filters on heatmaps."""

from __future__ import annotations

import numpy as np
import pytest

from wsi_pipeline.geometry import Grid
from wsi_pipeline.model.heatmap_filters import gaussian_filtered, overlap_mean


def heat_of(shape: tuple[int, int], seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


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
    assert found[4, 5] == pytest.approx((weights * heat).sum() / weights.sum(), abs=1e-5)


def test_without_overlap_the_mean_is_the_value_itself() -> None:
    heat = heat_of((5, 6))
    np.testing.assert_allclose(overlap_mean(heat, Grid(6, 5, 75.0, 75.0)), heat, atol=1e-7)
    np.testing.assert_allclose(overlap_mean(heat, Grid(6, 5, 100.0, 75.0)), heat, atol=1e-7)


def test_positions_without_a_value_do_not_contribute_and_stay_empty() -> None:
    heat = np.full((7, 7), 0.25, np.float32)
    heat[0, :], heat[3, 3] = np.nan, np.nan
    for found in (overlap_mean(heat, Grid(7, 7, 10, 30)), gaussian_filtered(heat, 1.5)):
        np.testing.assert_array_equal(np.isnan(found), np.isnan(heat))
        np.testing.assert_allclose(found[np.isfinite(heat)], 0.25, atol=1e-7)


def test_smoothing_is_a_gaussian() -> None:
    heat = np.zeros((41, 41), np.float32)
    heat[20, 20] = 1
    found = gaussian_filtered(heat, 2.0)
    away = np.arange(41) - 20
    bell = np.exp(-(away**2) / 8.0)
    bell /= bell.sum()
    np.testing.assert_allclose(found[8:33, 8:33], np.outer(bell, bell)[8:33, 8:33], atol=1e-5)
