"""Filters on heatmaps: mean over overlapping patches, Gaussian smoothing.

Means are of probabilities, but heatmaps go in and out as log odds: those of a mean are log(mean p) - log(mean (1 - p)),
where no term rounds to 0 for p close to 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, gaussian_filter
from scipy.special import expit

from wsi_pipeline.config import PredictionOptions
from wsi_pipeline.geometry import Grid

Heat = NDArray[np.float32]
Floats = NDArray[np.float64]


def filtered(heat: Heat, grid: Grid, slide_mpp: float, options: PredictionOptions) -> Heat:
    """The heatmap with the mean and the smoothing of the options; `heat` as in `overlap_mean`."""
    if options.overlap_mean:
        heat = overlap_mean(heat, grid)
    if options.smoothing_um:
        heat = gaussian_filtered(heat, options.smoothing_um / (grid.stride_px * slide_mpp))
    return heat


def overlap_mean(heat: Heat, grid: Grid) -> Heat:
    """Mean over all patches that overlap a position's cell, the square of one stride around its centre.

    `heat` (rows, columns) has log odds, NaN without a value. A patch is weighted by the area of the cell that it
    covers. NaN positions do not contribute and stay NaN.
    """
    reach = int(np.ceil((grid.patch_px + grid.stride_px) / 2 / grid.stride_px)) - 1
    away = np.arange(-reach, reach + 1) * grid.stride_px
    covered = np.minimum(away + grid.patch_px / 2, grid.stride_px / 2) - np.maximum(
        away - grid.patch_px / 2, -grid.stride_px / 2
    )
    weights = np.clip(covered, 0, None)

    def window_sum(values: Floats) -> Floats:
        across: Floats = correlate1d(values, weights, 1, mode="constant")
        return np.asarray(correlate1d(across, weights, 0, mode="constant"))

    return _mean(heat, window_sum)


def gaussian_filtered(heat: Heat, sigma: float) -> Heat:
    """Gaussian filter with `sigma` in positions. NaN positions do not contribute and stay NaN."""
    return _mean(heat, lambda values: np.asarray(gaussian_filter(values, sigma, mode="constant")))


def _mean(heat: Heat, linear_filter: Callable[[Floats], Floats]) -> Heat:
    """Log odds of normalised convolutions of probabilities (Knutsson and Westin, CVPR 1993).

    Their denominator, the filtered mask of known positions, cancels.
    """
    known = np.isfinite(heat)
    odds = heat.astype(np.float64)
    # The smallest normal float, not 0, for log odds beyond 708.
    tumor, normal = (
        np.maximum(linear_filter(np.where(known, expit(signed), 0)), np.finfo(np.float64).tiny)
        for signed in (odds, -odds)
    )
    return np.where(known, np.log(tumor) - np.log(normal), np.nan).astype(np.float32)
