"""What may be done to the network's probabilities to make a heatmap of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, gaussian_filter

from wsi_pipeline.geometry import Grid

Heat = NDArray[np.float32]
Floats = NDArray[np.float64]


def overlap_mean(heat: Heat, grid: Grid) -> Heat:
    """Each position's mean over the patches that cover the square of one stride around its centre.

    A patch counts by how much of that square it covers; positions without a value are left out and stay without.
    """
    reach = int(np.ceil((grid.patch_px + grid.stride_px) / 2 / grid.stride_px)) - 1
    away = np.arange(-reach, reach + 1) * grid.stride_px
    covered = np.minimum(away + grid.patch_px / 2, grid.stride_px / 2) - np.maximum(
        away - grid.patch_px / 2, -grid.stride_px / 2
    )
    weights = np.clip(covered, 0, None)

    def spread(values: Floats) -> Floats:
        across: Floats = correlate1d(values, weights, 1, mode="constant")
        return np.asarray(correlate1d(across, weights, 0, mode="constant"))

    return _weighted(heat, spread)


def gaussian_filtered(heat: Heat, sigma: float) -> Heat:
    """A Gaussian filter, `sigma` in positions; those without a value are left out and stay without."""
    return _weighted(heat, lambda values: np.asarray(gaussian_filter(values, sigma, mode="constant")))


def _weighted(heat: Heat, spread: Callable[[Floats], Floats]) -> Heat:
    """`spread` of the values over `spread` of where there are any."""
    known = np.isfinite(heat)
    values = spread(np.where(known, heat, 0).astype(np.float64))
    out = np.full(heat.shape, np.nan, np.float32)
    out[known] = (values[known] / spread(known.astype(np.float64))[known]).clip(0, 1)
    return out
