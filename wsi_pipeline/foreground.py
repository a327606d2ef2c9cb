"""Telling tissue from glass and ink: a value a pixel, a threshold, and a mask that is tidied up.

The threshold is Otsu's (IEEE Trans. SMC 9, 1979), of the histogram of a whole slide.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from wsi_pipeline.config import TissueOptions

GRAY_THRESHOLD = 150.0
# Ink: green is not the weakest channel, which no mixture of haematoxylin and eosin gives, or all are dark.
_INK_MARGIN = 12
_BLACK = 60


def features(rgb: NDArray[np.uint8], options: TissueOptions) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Saturation (HSV, 0 to 255) or grey (Rec. 601) of (h, w, 3) uint8, and where there is ink (0 or 1)."""
    red, green, blue = (rgb[..., k].astype(np.int32) for k in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    if options.method == "otsu_saturation":
        feature = (255 * (high - low) + high // 2) // np.maximum(high, 1)
    else:
        feature = (299 * red + 587 * green + 114 * blue + 500) // 1000
    ink = np.zeros_like(feature)
    if options.remove_pen:
        coloured = (green > red + _INK_MARGIN) & (high - low > 2 * _INK_MARGIN)
        ink = coloured | (high < _BLACK)
    return feature.astype(np.uint8), ink.astype(np.uint8)


def find_threshold(feature: NDArray[np.uint8], ink: NDArray[np.bool_], options: TissueOptions) -> float:
    """The fixed threshold of the options, or Otsu's of all pixels without ink."""
    if options.threshold is not None:
        return options.threshold
    if options.method == "gray_threshold":
        return GRAY_THRESHOLD
    histogram = np.bincount(feature[~ink], minlength=256)
    if np.count_nonzero(histogram) < 2:
        # One single value: nothing stands out, so nothing may be above or below.
        return 255.0 if options.method == "otsu_saturation" else 0.0
    return float(threshold_otsu(hist=(histogram, np.arange(256))))


def above(feature: NDArray[np.uint8], threshold: float, options: TissueOptions) -> NDArray[np.bool_]:
    """Tissue before cleaning: more saturated, or darker, than the threshold."""
    return feature > threshold if options.method == "otsu_saturation" else feature < threshold


def clean(mask: NDArray[np.bool_], options: TissueOptions) -> NDArray[np.bool_]:
    """Close gaps, fill small holes and drop small pieces (8-connected)."""
    radius = round(options.closing_um / options.mpp / 2)
    if radius:
        mask = _closed(mask, radius)
    pixel_um2 = options.mpp**2
    mask = ~_without_small(~mask, options.min_hole_um2 / pixel_um2)
    return _without_small(mask, options.min_area_um2 / pixel_um2)


def _closed(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    # Distance transforms make the closing by a disk cost the same for any radius.
    padded = np.pad(mask, radius + 1)
    if not padded.any():
        return mask
    grown = ndimage.distance_transform_edt(~padded) <= radius
    closed: NDArray[np.bool_] = ndimage.distance_transform_edt(grown) > radius
    inside = slice(radius + 1, -radius - 1)
    return closed[inside, inside] | mask


def _without_small(mask: NDArray[np.bool_], min_pixels: float) -> NDArray[np.bool_]:
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3), bool))
    keep = np.bincount(labels.ravel()) >= min_pixels
    keep[0] = False
    kept: NDArray[np.bool_] = keep[labels]
    return kept
