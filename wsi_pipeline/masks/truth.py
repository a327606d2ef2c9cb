"""The truth image of a slide, from its annotation and its label: normal, tumour or ignore for each pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.config import TissueOptions
from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.geometry import Size
from wsi_pipeline.masks.annotations import Regions
from wsi_pipeline.masks.label_images import IGNORE, NORMAL, TUMOR
from wsi_pipeline.masks.rasterize import PolygonRasterizer
from wsi_pipeline.masks.tissue_detection import apply_threshold, find_threshold, tissue_features
from wsi_pipeline.progress_bar import ProgressBar
from wsi_pipeline.pyramid.pyramid import Pyramid

_BAND_PX = 512
_THUMBNAIL_PX = 1024
# At scales within these factors of 1 um per pixel, coordinates in pixels and in micrometres are too alike to judge.
_UNIT_FACTORS = (0.8, 1.25)
_ON_GLASS, _ON_TISSUE = 0.3, 0.8


def background_value(label: str | None, annotated: bool, exhaustive: bool) -> int:
    """The value outside all annotations.

    IGNORE where the slide is not annotated exhaustively, and where it may hold tumour and has no annotation.
    """
    if not exhaustive:
        return IGNORE
    return NORMAL if annotated or label == "normal" else IGNORE


def draw_truth(regions: Regions, size: Size, pixel_px: float, background: int, threads: int) -> NDArray[np.uint8]:
    """The truth image (h, w) uint8; a pixel is `pixel_px` level-0 pixels wide. Drawn in bands, with dask.

    Tumour that is ignored is TUMOR | IGNORE.
    """
    cut_out, tumor, ignore = (
        PolygonRasterizer(area, pixel_px, size) for area in (regions.cut_out, regions.tumor, regions.ignore)
    )
    chunks = da.core.normalize_chunks((_BAND_PX, size.width), (size.height, size.width))
    shown = ProgressBar("truth", len(chunks[0]))

    def band(block_info: Any) -> NDArray[np.uint8]:
        (top, bottom), _ = block_info[None]["array-location"]
        out = np.full((bottom - top, size.width), background, np.uint8)
        cut_out.fill(out, top, NORMAL)
        tumor.fill(out, top, TUMOR)
        ignored = np.zeros_like(out)
        ignore.fill(ignored, top, IGNORE)
        out |= ignored
        shown.advance()
        return out

    # With a name of its own: for another one dask would hash the crossings of all outlines.
    bands = da.map_blocks(band, name="truth", chunks=chunks, meta=np.empty((0, 0), np.uint8))
    with shown, dask.config.set(scheduler="threads", num_workers=threads):
        truth: NDArray[np.uint8] = bands.compute()
    return truth


def ignore_border(truth: NDArray[np.uint8], margin_px: float) -> None:
    """Mark pixels within `margin_px` of a border of tumour as IGNORE, on both sides, in place."""
    tumor = truth == TUMOR
    # Distances are between pixel centres, and the border lies half a pixel from either.
    reach = margin_px + 0.5
    if margin_px == 0 or not tumor.any() or tumor.all():
        return
    for side in (tumor, ~tumor):
        truth[side & (ndimage.distance_transform_edt(side) < reach)] |= IGNORE


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


def check_unit(slide: str, annotation: Path, regions: Regions, pyramid: Pyramid) -> None:
    """Raise `AnnotationError` where tumour lies on glass, but on tissue if its coordinates are taken as micrometres."""
    tumor = regions.tumor
    if tumor.is_empty or _UNIT_FACTORS[0] < pyramid.mpp < _UNIT_FACTORS[1]:
        return
    picture, mpp = pyramid.thumbnail(_THUMBNAIL_PX)
    options = TissueOptions()
    feature, ink = tissue_features(picture, options)
    known = apply_threshold(feature, find_threshold(feature, ink, options), options)
    tissue = ndimage.binary_dilation(known, iterations=2)
    points = shapely.get_coordinates(tumor)

    def share_on_tissue(unit: float) -> float:
        """Share of the vertices on tissue, where a pixel of the thumbnail is `unit` of the annotation's units."""
        x, y = (points / unit).astype(np.int64).T
        inside = (x < tissue.shape[1]) & (y < tissue.shape[0])
        return float(tissue[y[inside], x[inside]].sum()) / len(points)

    in_px, in_um = share_on_tissue(mpp / pyramid.mpp), share_on_tissue(mpp)
    if in_px < _ON_GLASS and in_um > _ON_TISSUE:
        raise AnnotationError(
            slide,
            annotation,
            f"{100 * in_px:.0f} % of its vertices lie on tissue; {100 * in_um:.0f} % would if they were micrometres",
            remedy="Export the annotation in level-0 pixels",
        )
