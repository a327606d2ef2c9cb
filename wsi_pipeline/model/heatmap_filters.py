"""Filters on heatmaps of probabilities: mean over overlapping patches, Gaussian smoothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, gaussian_filter

from wsi_pipeline.config import PredictionOptions
from wsi_pipeline.geometry import Grid
from wsi_pipeline.metrics.steps import dequantize, quantize

Heat = NDArray[np.float32]
Floats = NDArray[np.float64]


def filtered(heat: Heat, grid: Grid, slide_mpp: float, options: PredictionOptions) -> Heat:
    """The heatmap with the mean and the smoothing of the options, in steps of 1/65535; `heat` as in `overlap_mean`."""
    if options.overlap_mean:
        heat = overlap_mean(heat, grid)
    if options.smoothing_um:
        heat = gaussian_filtered(heat, options.smoothing_um / (grid.stride_px * slide_mpp))
    known = np.isfinite(heat)
    return np.where(known, dequantize(quantize(np.where(known, heat, 0))), np.nan).astype(np.float32)


def overlap_mean(heat: Heat, grid: Grid) -> Heat:
    """Mean over all patches that overlap a position's cell, the square of one stride around its centre.

    `heat` (rows, columns) in [0, 1], NaN without a value. A patch is weighted by the area of the cell that it covers.
    NaN positions do not contribute and stay NaN.
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

    return _normalized_filter(heat, window_sum)


def gaussian_filtered(heat: Heat, sigma: float) -> Heat:
    """Gaussian filter with `sigma` in positions. NaN positions do not contribute and stay NaN."""
    return _normalized_filter(heat, lambda values: np.asarray(gaussian_filter(values, sigma, mode="constant")))


def _normalized_filter(heat: Heat, linear_filter: Callable[[Floats], Floats]) -> Heat:
    """Normalised convolution (Knutsson and Westin, CVPR 1993): filtered values over the filtered mask of known ones."""
    known = np.isfinite(heat)
    values = linear_filter(np.where(known, heat, 0).astype(np.float64))
    out = np.full(heat.shape, np.nan, np.float32)
    out[known] = (values[known] / linear_filter(known.astype(np.float64))[known]).clip(0, 1)
    return out
