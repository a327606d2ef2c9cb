"""The truth image of a slide, from its annotation and its label: normal, tumour or ignore for each pixel."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.geometry import Size
from wsi_pipeline.masks.annotations import Regions
from wsi_pipeline.masks.label_images import IGNORE, NORMAL, TRUTH_LABELS, TUMOR, StoredLabels, store_labels
from wsi_pipeline.masks.rasterize import PolygonRasterizer
from wsi_pipeline.morphology import BAND_PX, within
from wsi_pipeline.progress_bar import track
from wsi_pipeline.pyramid.ome_zarr import IMAGE_SHARD_PX


def background_value(label: str | None, annotated: bool, exhaustive: bool) -> int:
    """The value outside all annotations.

    IGNORE where the slide is not annotated exhaustively, and where it may hold tumour and has no annotation.
    """
    if not exhaustive:
        return IGNORE
    return NORMAL if annotated or label == "normal" else IGNORE


def draw_truth(regions: Regions, size: Size, pixel_px: float, background: int, margin_px: float = 0) -> da.Array:
    """The truth image (h, w) uint8, drawn in bands when it is computed; a pixel is `pixel_px` level-0 pixels wide.

    Tumour that is ignored is TUMOR | IGNORE. Pixels within `margin_px` pixels of a border of tumour are ignored, on
    both sides of it.
    """
    cut_out, tumor, ignore = (
        PolygonRasterizer(area, pixel_px, size) for area in (regions.cut_out, regions.tumor, regions.ignore)
    )
    halo = math.ceil(margin_px)

    def band(block_info: Any) -> NDArray[np.uint8]:
        (top, bottom), _ = block_info[None]["array-location"]
        first = max(0, top - halo)
        out = np.full((min(size.height, bottom + halo) - first, size.width), background, np.uint8)
        cut_out.fill(out, first, NORMAL)
        tumor.fill(out, first, TUMOR)
        ignored = np.zeros_like(out)
        ignore.fill(ignored, first, IGNORE)
        out |= ignored
        ignore_border(out, margin_px)
        return out[top - first : bottom - first]

    chunks = da.core.normalize_chunks((BAND_PX, size.width), (size.height, size.width))
    # With a name of its own: for another one dask would hash the crossings of all outlines.
    image: da.Array = da.map_blocks(band, name="truth", chunks=chunks, meta=np.empty((0, 0), np.uint8))
    return image


def ignore_border(truth: NDArray[np.uint8], margin_px: float) -> None:
    """Mark pixels within `margin_px` of a border of tumour as IGNORE, on both sides, in place."""
    if margin_px == 0:
        return
    # Distances are between pixel centres, and the border lies half a pixel from either.
    reach, tumor = margin_px + 0.5, truth == TUMOR
    truth[np.where(tumor, within(~tumor, reach), within(tumor, reach))] |= IGNORE


def store_truth(path: Path, truth: da.Array, mpp: float, slide_mpp: float, threads: int) -> tuple[StoredLabels, str]:
    """Draw the truth image and write it, a row of shards at a time; `slide_mpp` is the scale of level 0.

    Returns what was stored and the SHA-256 of its rows.
    """
    digest = hashlib.sha256()

    def drawn() -> Iterator[NDArray[np.uint8]]:
        tops = range(0, truth.shape[0], IMAGE_SHARD_PX)
        for top in track(tops, "truth", len(tops)):
            with dask.config.set(scheduler="threads", num_workers=threads):
                rows: NDArray[np.uint8] = truth[top : top + IMAGE_SHARD_PX].compute()
            digest.update(rows.data)
            yield rows

    stored = store_labels(path, drawn(), truth.shape, mpp, name="truth", slide_mpp=slide_mpp, labels=TRUTH_LABELS)
    return stored, digest.hexdigest()


def check_label(slide: str, annotation: Path, label: str | None, regions: Regions) -> None:
    """Raise `AnnotationError` where the annotation and the sheet's label contradict."""
    outlined = "outlines no tumour" if regions.tumor.is_empty else "outlines tumour"
    if label == ("tumor" if regions.tumor.is_empty else "normal"):
        raise AnnotationError(
            slide,
            annotation,
            f"{outlined}, but the sheet's label is {label}",
            remedy="Correct the label or the annotation",
        )
