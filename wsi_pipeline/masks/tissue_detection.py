"""Tissue detection: one feature value per pixel, a threshold, exclusion of pen ink, and morphological cleaning.

The threshold is fixed, or Otsu's (IEEE Trans. SMC 9, 1979) for the histogram of the whole slide.
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
# Pen ink: green is not the weakest channel, which no mixture of haematoxylin and eosin produces, or all channels are
# dark.
_MIN_INK_MARGIN = 8
_MIN_INK_SPREAD = 24
_MAX_INK_VALUE = 60


def tissue_features(rgb: NDArray[np.uint8], options: TissueOptions) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Feature (h, w) uint8 and pen ink (h, w) bool of an image (h, w, 3) uint8.

    The feature is HSV saturation (0 to 255) or Rec. 601 grey, depending on `options.method`.
    """
    red, green, blue = (np.ascontiguousarray(rgb[..., k]) for k in range(3))
    brightest = np.maximum(np.maximum(red, green), blue)
    darkest = np.minimum(np.minimum(red, green), blue)
    spread = brightest - darkest
    feature: NDArray[Any]
    if options.method == "otsu_saturation":
        # No overflow: at most 255 * 255 + 127.
        feature = (np.uint16(255) * spread + brightest // 2) // np.maximum(brightest, 1)
    else:
        feature = (np.uint32(299) * red + np.uint32(587) * green + np.uint32(114) * blue + 500) // 1000
    ink = np.zeros(feature.shape, bool)
    if options.remove_pen:
        is_colored = (green > red) & (green - red > _MIN_INK_MARGIN) & (spread > _MIN_INK_SPREAD)
        ink = is_colored | (brightest < _MAX_INK_VALUE)
    return feature.astype(np.uint8), ink


def segment_tissue(
    feature: NDArray[np.uint8], ink: NDArray[np.bool_], options: TissueOptions
) -> tuple[NDArray[np.bool_], float]:
    """Cleaned tissue mask (h, w) bool, and the threshold.

    Only ink components larger than `min_hole_um2` are excluded at the end: smaller ones may be dark nuclei.
    """
    threshold = find_threshold(feature, ink, options)
    mask = clean_mask(apply_threshold(feature, threshold, options) & ~ink, options)
    return mask & ~_remove_small(ink, options.min_hole_um2 / options.mpp**2), threshold


def find_threshold(feature: NDArray[np.uint8], ink: NDArray[np.bool_], options: TissueOptions) -> float:
    """The fixed threshold of the options, or Otsu's threshold of all pixels without ink."""
    if options.threshold is not None:
        return options.threshold
    if options.method == "gray_threshold":
        return GRAY_THRESHOLD
    histogram = np.bincount(feature.ravel(), minlength=256) - np.bincount(feature[ink], minlength=256)
    if np.count_nonzero(histogram) < 2:
        # A single value has no Otsu threshold; these values select no pixel.
        return 255.0 if options.method == "otsu_saturation" else 0.0
    return float(threshold_otsu(hist=(histogram, np.arange(256))))


def apply_threshold(feature: NDArray[np.uint8], threshold: float, options: TissueOptions) -> NDArray[np.bool_]:
    """Tissue before cleaning, (h, w) bool: more saturated, or darker, than the threshold."""
    return feature > threshold if options.method == "otsu_saturation" else feature < threshold


def clean_mask(mask: NDArray[np.bool_], options: TissueOptions) -> NDArray[np.bool_]:
    """Close gaps, fill small holes and remove small components (8-connected)."""
    radius = round(options.closing_um / options.mpp / 2)
    if radius:
        mask = _close(mask, radius)
    pixel_um2 = options.mpp**2
    mask = ~_remove_small(~mask, options.min_hole_um2 / pixel_um2)
    return _remove_small(mask, options.min_area_um2 / pixel_um2)


def _close(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    padded = np.pad(mask, 2 * radius)
    closed = ~_dilate(~_dilate(padded, radius), radius)
    inside = slice(2 * radius, -2 * radius)
    return closed[inside, inside] | mask


def _dilate(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Dilate by a disk: a union of shifted horizontal dilations, each widened from the last. The outside is False."""
    out = np.zeros_like(mask)
    # `widened` is the mask dilated by `half_width` along its rows.
    widened = mask.copy()
    half_width = 0
    for dy in range(radius, -1, -1):
        target = math.isqrt(radius**2 - dy**2)
        while half_width < target:
            step = min(target - half_width, 2 * half_width + 1)
            wider = widened.copy()
            wider[:, step:] |= widened[:, :-step]
            wider[:, :-step] |= widened[:, step:]
            widened = wider
            half_width += step
        out[dy:] |= widened[: len(widened) - dy]
        out[: len(widened) - dy] |= widened[dy:]
    return out


def _remove_small(mask: NDArray[np.bool_], min_pixels: float) -> NDArray[np.bool_]:
    """Remove 8-connected components with fewer than `min_pixels`.

    Connects runs of set pixels instead of labelling an image, which takes less time and memory on large masks.
    """
    # Start and end of each run of set pixels, as positions in the flattened, padded rows.
    stride = mask.shape[1] + 2
    changes = np.flatnonzero(np.diff(np.pad(mask, ((0, 0), (1, 1))).ravel()))
    (rows, starts), stops = np.divmod(changes[::2], stride), changes[1::2] % stride
    # Runs of adjacent rows are 8-connected where neither ends before the other starts.
    first = np.searchsorted(rows * stride + stops, (rows - 1) * stride + starts, side="left")
    last = np.searchsorted(rows * stride + starts, (rows - 1) * stride + stops, side="right")
    counts = np.maximum(last - first, 0)
    below = np.repeat(np.arange(len(rows)), counts)
    above = np.arange(len(below)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    touching = coo_array((np.ones(len(below), bool), (below, above)), shape=(len(rows), len(rows)))
    _, component = connected_components(touching, directed=False)
    small = np.bincount(component, weights=stops - starts)[component] < min_pixels
    kept = mask.copy()
    for row, start, stop in zip(rows[small].tolist(), starts[small].tolist(), stops[small].tolist(), strict=True):
        kept[row, start:stop] = False
    return kept
