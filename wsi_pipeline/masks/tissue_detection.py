"""Telling tissue from glass and ink: a value a pixel, a threshold, and a mask that is tidied up.

The threshold is Otsu's (IEEE Trans. SMC 9, 1979), of the histogram of a whole slide.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.filters import threshold_otsu

from wsi_pipeline.config import TissueOptions

GRAY_THRESHOLD = 150.0
# Ink: green is not the weakest channel, which no mixture of haematoxylin and eosin gives, or all are dark.
_INK_MARGIN = 8
_INK_SPREAD = 24
_BLACK = 60


def tissue_features(rgb: NDArray[np.uint8], options: TissueOptions) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Saturation (HSV, 0 to 255) or grey (Rec. 601) of (h, w, 3) uint8, and where there is ink."""
    red, green, blue = (np.ascontiguousarray(rgb[..., k]) for k in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    spread = high - low
    feature: NDArray[Any]
    if options.method == "otsu_saturation":
        # At most 255 * 255 + 127, which 16 bits hold.
        feature = (np.uint16(255) * spread + high // 2) // np.maximum(high, 1)
    else:
        feature = (np.uint32(299) * red + np.uint32(587) * green + np.uint32(114) * blue + 500) // 1000
    ink = np.zeros(feature.shape, bool)
    if options.remove_pen:
        coloured = (green > red) & (green - red > _INK_MARGIN) & (spread > _INK_SPREAD)
        ink = coloured | (high < _BLACK)
    return feature.astype(np.uint8), ink


def segment_tissue(
    feature: NDArray[np.uint8], ink: NDArray[np.bool_], options: TissueOptions
) -> tuple[NDArray[np.bool_], float]:
    """Tissue (h, w) bool, cleaned, and the threshold.

    Of ink, pieces up to the size of holes that are filled may count as tissue: dark nuclei are among them.
    """
    threshold = find_threshold(feature, ink, options)
    mask = clean_mask(apply_threshold(feature, threshold, options) & ~ink, options)
    return mask & ~_without_small(ink, options.min_hole_um2 / options.mpp**2), threshold


def find_threshold(feature: NDArray[np.uint8], ink: NDArray[np.bool_], options: TissueOptions) -> float:
    """The fixed threshold of the options, or Otsu's of all pixels without ink."""
    if options.threshold is not None:
        return options.threshold
    if options.method == "gray_threshold":
        return GRAY_THRESHOLD
    histogram = np.bincount(feature.ravel(), minlength=256) - np.bincount(feature[ink], minlength=256)
    if np.count_nonzero(histogram) < 2:
        # One single value: nothing stands out, so nothing may be above or below.
        return 255.0 if options.method == "otsu_saturation" else 0.0
    return float(threshold_otsu(hist=(histogram, np.arange(256))))


def apply_threshold(feature: NDArray[np.uint8], threshold: float, options: TissueOptions) -> NDArray[np.bool_]:
    """Tissue before cleaning: more saturated, or darker, than the threshold."""
    return feature > threshold if options.method == "otsu_saturation" else feature < threshold


def clean_mask(mask: NDArray[np.bool_], options: TissueOptions) -> NDArray[np.bool_]:
    """Close gaps, fill small holes and drop small pieces (8-connected)."""
    radius = round(options.closing_um / options.mpp / 2)
    if radius:
        mask = _closed(mask, radius)
    pixel_um2 = options.mpp**2
    mask = ~_without_small(~mask, options.min_hole_um2 / pixel_um2)
    return _without_small(mask, options.min_area_um2 / pixel_um2)


def _closed(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    padded = np.pad(mask, 2 * radius)
    closed = ~_grown(~_grown(padded, radius), radius)
    inside = slice(2 * radius, -2 * radius)
    return closed[inside, inside] | mask


def _grown(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Dilation by a disk, as the union of rows of it that grow from one to the next; what lies outside is not set."""
    out = np.zeros_like(mask)
    row, half = mask.copy(), 0
    for dy in range(radius, -1, -1):
        wanted = math.isqrt(radius**2 - dy**2)
        while half < wanted:
            step = min(wanted - half, 2 * half + 1)
            grown = row.copy()
            grown[:, step:] |= row[:, :-step]
            grown[:, :-step] |= row[:, step:]
            row, half = grown, half + step
        out[dy:] |= row[: len(row) - dy]
        out[: len(row) - dy] |= row[dy:]
    return out


def _without_small(mask: NDArray[np.bool_], min_pixels: float) -> NDArray[np.bool_]:
    """The 8-connected pieces of at least `min_pixels`, found among the runs of set pixels in the rows."""
    # Places in rows that are put one behind the other; there and back at the ends of each run.
    stride = mask.shape[1] + 2
    changes = np.flatnonzero(np.diff(np.pad(mask, ((0, 0), (1, 1))).ravel()))
    (rows, starts), stops = np.divmod(changes[::2], stride), changes[1::2] % stride
    # Runs of neighbouring rows touch where neither ends before the other begins.
    first = np.searchsorted(rows * stride + stops, (rows - 1) * stride + starts, side="left")
    last = np.searchsorted(rows * stride + starts, (rows - 1) * stride + stops, side="right")
    counts = np.maximum(last - first, 0)
    below = np.repeat(np.arange(len(rows)), counts)
    above_them = np.arange(len(below)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    touching = coo_array((np.ones(len(below), bool), (below, above_them)), shape=(len(rows), len(rows)))
    _, piece = connected_components(touching, directed=False)
    small = np.bincount(piece, weights=stops - starts)[piece] < min_pixels
    kept = mask.copy()
    for row, start, stop in zip(rows[small].tolist(), starts[small].tolist(), stops[small].tolist(), strict=True):
        kept[row, start:stop] = False
    return kept
