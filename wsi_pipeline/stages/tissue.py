"""Stage tissue: a mask of the tissue on a slide.

The slide is reduced to one grey or saturation value a pixel at `mpp`, block by block with dask; the
threshold comes from the histogram of the whole slide (Otsu, IEEE Trans. SMC 9, 1979), and closing,
filling and removal of small pieces act on the whole mask, so blocks and workers leave no trace in it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from dask.delayed import delayed
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

from wsi_pipeline.config import TissueOptions
from wsi_pipeline.errors import StoreError
from wsi_pipeline.files import digest_bytes
from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.masks import TISSUE_LABELS
from wsi_pipeline.pictures import mask_outline, save_picture
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.receipts import write_receipt
from wsi_pipeline.store import Image, write_image

log = logging.getLogger(__name__)

GRAY_THRESHOLD = 150.0
_BLOCK_PX = 512
# Ink: green is not the weakest channel, which no mixture of haematoxylin and eosin gives, or all are dark.
_INK_MARGIN = 12
_BLACK = 60


def run(
    slide: str,
    pyramid_path: Path,
    store: Path,
    receipt: Path,
    picture: Path,
    options: TissueOptions,
    threads: int = 1,
) -> None:
    """Write the tissue mask of one slide; `StoreError` where no tissue is found."""
    pyramid = Pyramid(pyramid_path)
    feature, ink = read_features(pyramid, options, threads)
    threshold = find_threshold(feature, ink, options)
    mask = clean(above(feature, threshold, options) & ~ink, options)
    if not mask.any():
        raise StoreError(
            f"slide {slide}: {pyramid_path}: no tissue found by {options.method} with the threshold {threshold:g}",
            remedy="Look at the slide; set the sheet's columns tissue_threshold (0 to 255) or tissue_method for it, "
            "or leave it out with cohort.exclude",
        )
    image = Image.from_corner(mask.astype(np.uint8), options.mpp)
    write_image(store, image, name="tissue", slide_mpp=pyramid.mpp, labels=TISSUE_LABELS)
    save_picture(picture, mask_outline(pyramid, mask, options.mpp))
    area_mm2 = float(mask.sum()) * options.mpp**2 / 1e6
    write_receipt(
        receipt,
        "tissue",
        {
            "slide": slide,
            "threshold": float(threshold),
            "tissue_pixels": int(mask.sum()),
            "tissue_mm2": round(area_mm2, 6),
            "tissue_share": round(float(mask.mean()), 6),
            "pen_pixels": int(ink.sum()),
            "shape": list(mask.shape),
            "mask_sha256": digest_bytes(np.packbits(mask).tobytes()),
        },
        options,
    )
    pen = f", pen marks {100 * ink.mean():.1f} %" if ink.any() else ""
    log.info("%s: %.2f mm² tissue, %.0f %% of the slide%s", slide, area_mm2, 100 * mask.mean(), pen)


def read_features(
    pyramid: Pyramid, options: TissueOptions, threads: int, block_px: int = _BLOCK_PX
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Saturation or grey (h, w) uint8 and pen ink (h, w) bool of the whole slide at `options.mpp`."""
    size = pyramid.size_at(options.mpp)

    def block(box: Box) -> NDArray[np.uint8]:
        return np.stack(features(pyramid.read_scaled(box, options.mpp), options))

    starts = range(0, size.width, block_px)
    rows = [
        da.concatenate([_lazy(block, Box(x, y, *_extent(x, y, size, block_px))) for x in starts], axis=2)
        for y in range(0, size.height, block_px)
    ]
    with dask.config.set(scheduler="threads", num_workers=threads):
        feature, ink = da.concatenate(rows, axis=1).compute()
    return feature, ink.astype(bool)


def _extent(x: int, y: int, size: Size, block_px: int) -> tuple[int, int]:
    return min(block_px, size.width - x), min(block_px, size.height - y)


def _lazy(block: object, box: Box) -> da.Array:
    lazy: da.Array = da.from_delayed(delayed(block)(box), shape=(2, box.height, box.width), dtype=np.uint8)
    return lazy


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
