"""Tissue detection: one feature value per pixel, a threshold, exclusion of pen ink, and morphological cleaning.

The threshold is fixed, that of the slide's glass, or Otsu's (IEEE Trans. SMC 9, 1979) for the histogram of the whole
slide, which is checked against the glass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_otsu

from wsi_pipeline.config import TissueOptions
from wsi_pipeline.morphology import MappedRows, Mask, PackedMask, Rows, bands, closed, without_small

GRAY_THRESHOLD = 150.0
# Pen ink: green is not the weakest channel, which no mixture of haematoxylin and eosin produces, or all channels are
# dark, which nuclei may be too.
_MIN_INK_MARGIN = 8
_MIN_INK_SPREAD = 24
_MAX_INK_VALUE = 60
SATURATION_METHODS = ("otsu_saturation", "glass_saturation")
# Glass: a mode of the grey values at or above the first value, with the share of the pixels within the width of it that
# the third gives, nearly without colour. Lumina of tissue that fills an image are as bright, but fewer.
_MIN_GLASS_GRAY, _GLASS_WIDTH, _MIN_GLASS_SHARE, _MAX_GLASS_SATURATION = 200, 5, 0.06, 18
# Distance of tissue from glass: at least the margin, and the standard deviations of the glass (noise, uneven light).
_MIN_MARGIN, _MARGIN_SD = 12, 4
_SATURATION_WITHOUT_GLASS, _GRAY_WITHOUT_GLASS = 20.0, 220.0
# Otsu's threshold may take this share of the glass, and always omit this share of the slide (dust and smears).
_MAX_GLASS_TAKEN, _MIN_OMITTED = 0.05, 0.005
NO_INK, COLORED_INK, DARK_INK = 0, 1, 2
_VALUES = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class Features:
    """Of each pixel of an image, (h, w) uint8: Rec. 601 grey, HSV saturation, and which ink, if any, it may be."""

    gray: NDArray[np.uint8]
    saturation: NDArray[np.uint8]
    ink: NDArray[np.uint8]

    def value(self, options: TissueOptions) -> NDArray[np.uint8]:
        """What the method of the options compares with a threshold."""
        return self.saturation if options.method in SATURATION_METHODS else self.gray

    def histogram(self) -> NDArray[np.int64]:
        """Pixels without ink by grey value and saturation, (256, 256)."""
        pairs = (self.gray.astype(np.uint16) << 8) | self.saturation
        return np.bincount(pairs[self.ink == NO_INK], minlength=1 << 16).reshape(256, 256)


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold, Otsu's where it was replaced by another, and the grey value of the glass where there is any."""

    value: float
    replaced_otsu: float | None = None
    glass_gray: int | None = None


def tissue_features(rgb: NDArray[np.uint8], options: TissueOptions) -> Features:
    """The features of an image (h, w, 3) uint8."""
    red, green, blue = (np.ascontiguousarray(rgb[..., k]) for k in range(3))
    brightest = np.maximum(np.maximum(red, green), blue)
    darkest = np.minimum(np.minimum(red, green), blue)
    spread = brightest - darkest
    gray = ((np.uint32(299) * red + np.uint32(587) * green + np.uint32(114) * blue + 500) // 1000).astype(np.uint8)
    # No overflow: at most 255 * 255 + 127.
    saturation = ((np.uint16(255) * spread + brightest // 2) // np.maximum(brightest, 1)).astype(np.uint8)
    ink = np.full(gray.shape, NO_INK, np.uint8)
    if options.remove_pen:
        ink[brightest < _MAX_INK_VALUE] = DARK_INK
        ink[(green > red) & (green - red > _MIN_INK_MARGIN) & (spread > _MIN_INK_SPREAD)] = COLORED_INK
    return Features(gray, saturation, ink)


def apply_threshold(value: NDArray[np.uint8], threshold: float, options: TissueOptions) -> Mask:
    """Tissue before cleaning, (h, w) bool: more saturated, or darker, than the threshold."""
    return value > threshold if options.method in SATURATION_METHODS else value < threshold


def segment_tissue(rgb: NDArray[np.uint8], options: TissueOptions, *, has_canvas: bool) -> tuple[Mask, Threshold]:
    """Cleaned tissue mask (h, w) bool of an image (h, w, 3) uint8, and the threshold; see `find_threshold`."""
    features = tissue_features(rgb, options)
    threshold = find_threshold(features.histogram(), options, has_canvas=has_canvas)
    parts = tissue_bands(features.value(options), features.ink, threshold.value, options)
    return np.concatenate(list(parts)), threshold


def tissue_bands(value: Rows, ink: Rows, threshold: float, options: TissueOptions) -> Iterator[Mask]:
    """Bands of the cleaned tissue mask of an image, given its `Features.value` and ink (h, w) uint8.

    Ink stays out of closed gaps and filled holes too, but for dark components smaller than `min_hole_um2` that may be
    nuclei.
    """
    height = value.shape[0]
    found = PackedMask(
        value.shape,
        (apply_threshold(value[band], threshold, options) & (ink[band] == NO_INK) for band in bands(height)),
    )
    large_ink = without_small(MappedRows(ink, lambda codes: codes != NO_INK), options.min_hole_um2 / options.mpp**2)
    for band, part, inked in zip(bands(height), clean_mask(found, options), large_ink, strict=True):
        yield part & ~inked & (ink[band] != COLORED_INK)


def find_threshold(histogram: NDArray[np.int64], options: TissueOptions, *, has_canvas: bool) -> Threshold:
    """The threshold of the options, that of the glass, or Otsu's where the glass agrees; from `Features.histogram`.

    Otsu's threshold splits whatever it is given: without glass, or with pale tissue beside dark, it lies within tissue.
    The threshold of the glass replaces it where it omits more than a third of what differs from glass, or takes glass
    for tissue. With `has_canvas` the image is a canvas that was scanned in part: pure white is neither glass nor
    tissue, as the rest of the canvas is.
    """
    if options.threshold is not None:
        return Threshold(options.threshold)
    if options.method == "gray_threshold":
        return Threshold(GRAY_THRESHOLD)
    if has_canvas:
        histogram = histogram.copy()
        histogram[255, 0] = 0
    glass_gray, glass = _find_glass(histogram)
    is_saturation = options.method in SATURATION_METHODS
    axis = 0 if is_saturation else 1
    limit = _glass_threshold(glass.sum(axis), is_saturation)
    if options.method == "glass_saturation":
        return Threshold(limit, None, glass_gray)
    counts = histogram.sum(axis)
    if np.count_nonzero(counts) < 2:
        # A single value has no Otsu threshold; these values select no pixel.
        return Threshold(255.0 if is_saturation else 0.0)
    otsu = float(threshold_otsu(hist=(counts, _VALUES)))
    above, different = ((t < _VALUES) if is_saturation else (t > _VALUES) for t in (otsu, limit))
    omitted = counts[different].sum() - counts[above].sum()
    omits_tissue = omitted > max(counts[above].sum() / 2, _MIN_OMITTED * counts.sum())
    takes_glass = glass.sum(axis)[above].sum() > _MAX_GLASS_TAKEN * glass.sum()
    if omits_tissue or takes_glass:
        return Threshold(limit, otsu, glass_gray)
    return Threshold(otsu, None, glass_gray)


def _find_glass(histogram: NDArray[np.int64]) -> tuple[int | None, NDArray[np.int64]]:
    """Grey value of the glass, None where there is none, and the part of the histogram (256, 256) that is glass.

    Glass is the brightest mode of the grey values that holds enough pixels, if it has nearly no colour.
    """
    by_gray = histogram.sum(axis=1)
    share = np.convolve(by_gray, np.ones(2 * _GLASS_WIDTH + 1), "same") / max(by_gray.sum(), 1)
    bright = np.flatnonzero((share >= _MIN_GLASS_SHARE) & (_VALUES >= _MIN_GLASS_GRAY))
    glass = np.zeros_like(histogram)
    if not len(bright):
        return None, glass
    start = max(0, int(bright[-1]) - _GLASS_WIDTH)
    gray = start + int(np.argmax(by_gray[start : bright[-1] + _GLASS_WIDTH + 1]))
    near = slice(gray - _GLASS_WIDTH, gray + _GLASS_WIDTH + 1)
    if _median(histogram[near].sum(axis=0)) > _MAX_GLASS_SATURATION:
        return None, glass
    glass[near] = histogram[near]
    return gray, glass


def _glass_threshold(glass: NDArray[np.int64], is_saturation: bool) -> float:
    """The saturation or grey value from which a pixel differs from glass; `glass` (256,) are those of the glass."""
    if not glass.any():
        return _SATURATION_WITHOUT_GLASS if is_saturation else _GRAY_WITHOUT_GLASS
    middle = _median(glass)
    deviations = np.bincount(np.abs(_VALUES.astype(np.int64) - middle), weights=glass, minlength=256)
    # 1.4826 median absolute deviations of a normal distribution are its standard deviation.
    margin = round(max(_MIN_MARGIN, _MARGIN_SD * 1.4826 * _median(deviations)))
    return float(middle + margin if is_saturation else middle - margin)


def _median(counts: NDArray[Any]) -> int:
    cumulative = np.cumsum(counts)
    return int(np.searchsorted(cumulative, cumulative[-1] / 2))


def clean_mask(mask: Rows, options: TissueOptions) -> Iterator[Mask]:
    """Bands of a mask (h, w) with gaps closed, small holes filled and small components (8-connected) removed."""
    shape, pixel_um2 = mask.shape, options.mpp**2
    radius = round(options.closing_um / options.mpp / 2)
    if radius:
        mask = PackedMask(shape, closed(mask, radius))
    background = without_small(MappedRows(mask, np.logical_not), options.min_hole_um2 / pixel_um2)
    filled = PackedMask(shape, (~part for part in background))
    return without_small(filled, options.min_area_um2 / pixel_um2)
