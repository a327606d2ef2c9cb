"""Stage tissue: a mask of the tissue on a slide.

The slide is reduced to one grey or saturation value a pixel at `mpp`, block by block with dask; the
threshold comes from the histogram of the whole slide, and closing, filling and removal of small pieces
act on the whole mask, so blocks and workers leave no trace in it.
"""

from __future__ import annotations

import logging
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from dask.delayed import delayed
from numpy.typing import NDArray

from wsi_pipeline.config import TissueOptions
from wsi_pipeline.errors import StoreError
from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.io.digests import digest_bytes
from wsi_pipeline.io.receipts import write_receipt
from wsi_pipeline.masks.label_images import TISSUE_LABELS
from wsi_pipeline.masks.tissue_detection import features, find_mask
from wsi_pipeline.plots.figures import save_figure, slide_figure
from wsi_pipeline.plots.overlays import outlined, tissue_overlay
from wsi_pipeline.progress_bar import Bar
from wsi_pipeline.pyramid.ome_zarr import Image, write_image
from wsi_pipeline.pyramid.pyramid import Pyramid

log = logging.getLogger(__name__)

# Large, as each block costs dask some time; smaller where there would be too few for all threads.
_BLOCK_PX, _SMALL_BLOCK_PX = 1024, 512
_FEW_PIXELS = 4 * _BLOCK_PX**2


def run(
    slide: str,
    pyramid_path: Path,
    store: Path,
    receipt: Path,
    picture: Path,
    options: TissueOptions,
    threads: int = 1,
    *,
    synthetic: bool = False,
) -> None:
    """Write the tissue mask of one slide; `StoreError` where no tissue is found."""
    pyramid = Pyramid(pyramid_path)
    mask, ink, threshold = find_tissue(pyramid, options, threads)
    if not mask.any():
        inked = f", {100 * ink.mean():.0f} % of the slide are taken for pen marks" if ink.any() else ""
        how = f"by {options.method} with the threshold {threshold:g}"
        raise StoreError(
            f"slide {slide}: {pyramid_path}: no tissue found {how}{inked}",
            remedy="Look at the slide; set the sheet's columns tissue_threshold (0 to 255) or tissue_method for it, "
            "or leave it out with cohort.exclude",
        )
    image = Image.from_corner(mask.astype(np.uint8), options.mpp)
    write_image(store, image, name="tissue", slide_mpp=pyramid.mpp, labels=TISSUE_LABELS)
    outline = outlined(pyramid, tissue_overlay(Image.from_corner(mask, options.mpp)))
    save_figure(slide_figure(f"{slide}: tissue blue", *outline, synthetic), picture)
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


def find_tissue(
    pyramid: Pyramid, options: TissueOptions, threads: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], float]:
    """Tissue and pen ink (h, w) bool of the whole slide at `options.mpp`, and the threshold."""
    size = pyramid.size_at(options.mpp)
    block_px = _SMALL_BLOCK_PX if size.width * size.height <= _FEW_PIXELS else _BLOCK_PX
    feature, ink = read_features(pyramid, options, threads, block_px)
    mask, threshold = find_mask(feature, ink, options)
    return mask, ink, threshold


def read_features(
    pyramid: Pyramid, options: TissueOptions, threads: int, block_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Saturation or grey (h, w) uint8 and pen ink (h, w) bool of the whole slide at `options.mpp`."""
    size = pyramid.size_at(options.mpp)
    lefts, tops = range(0, size.width, block_px), range(0, size.height, block_px)
    shown = Bar("tissue", len(lefts) * len(tops))

    def block(box: Box) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = np.stack(features(pyramid.read_scaled(box, options.mpp), options))
        shown.advance()
        return found

    rows = [
        da.concatenate([_lazy(block, Box(x, y, *_extent(x, y, size, block_px))) for x in lefts], axis=2) for y in tops
    ]
    with shown, dask.config.set(scheduler="threads", num_workers=threads):
        feature, ink = da.concatenate(rows, axis=1).compute()
    return feature, ink.astype(bool)


def _extent(x: int, y: int, size: Size, block_px: int) -> tuple[int, int]:
    return min(block_px, size.width - x), min(block_px, size.height - y)


def _lazy(block: object, box: Box) -> da.Array:
    lazy: da.Array = da.from_delayed(delayed(block)(box), shape=(2, box.height, box.width), dtype=np.uint8)
    return lazy
