"""Stage truth: what is known about each place of a slide, 0 normal, 1 tumour, 2 ignore.

Ignore is what nobody has judged: everything outside the annotations of a slide that is not annotated
exhaustively, and all of a slide that holds tumour, or may hold it, and has no annotation. Where the
config says so, a band along the borders of tumour is ignored too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import shapely
from dask.delayed import delayed
from numpy.typing import NDArray
from scipy import ndimage

from wsi_pipeline.config import TissueOptions, TruthOptions
from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.geometry import Size
from wsi_pipeline.io.digests import digest_bytes, digest_file
from wsi_pipeline.io.receipts import write_receipt
from wsi_pipeline.masks.annotations import NO_REGIONS, Regions, read_annotation
from wsi_pipeline.masks.geojson import Feature, feature, polygon_parts, write_features
from wsi_pipeline.masks.label_images import IGNORE, NORMAL, TRUTH_LABELS, TUMOR
from wsi_pipeline.masks.rasterize import PolygonRasterizer
from wsi_pipeline.masks.tissue_detection import apply_threshold, find_threshold, tissue_features
from wsi_pipeline.plots.colors import IGNORED_COLOR, TUMOR_COLOR
from wsi_pipeline.plots.figures import save_figure, slide_figure
from wsi_pipeline.plots.overlays import draw_outlines, truth_overlay
from wsi_pipeline.progress_bar import ProgressBar
from wsi_pipeline.pyramid.ome_zarr import Image, write_image
from wsi_pipeline.pyramid.pyramid import Pyramid

log = logging.getLogger(__name__)

_BAND_PX = 512
_THUMBNAIL_PX = 1024
# Within these scales pixels and micrometres can hardly be told apart.
_UNIT_FACTORS = (0.8, 1.25)
_ON_GLASS, _ON_TISSUE = 0.3, 0.8


def run(
    slide: str,
    pyramid_path: Path,
    store: Path,
    receipt: Path,
    picture: Path,
    geojson: Path,
    options: TruthOptions,
    *,
    annotation: Path | None = None,
    label: str | None = None,
    exhaustive: bool = True,
    threads: int = 1,
    synthetic: bool = False,
) -> None:
    """Write the truth of one slide. Raises `AnnotationError` where annotation and label contradict."""
    pyramid = Pyramid(pyramid_path)
    regions = NO_REGIONS if annotation is None else read_annotation(slide, annotation, options, pyramid.size)
    if annotation is not None:
        _check_label(slide, annotation, label, regions)
        _check_unit(slide, annotation, regions, pyramid)
    unjudged = background_value(label, annotation is not None, exhaustive)
    truth = draw(regions, pyramid.size_at(options.mpp), options.mpp / pyramid.mpp, unjudged, threads)
    ignore_border(truth, options.ignore_margin_um / options.mpp)
    write_image(store, Image.from_corner(truth, options.mpp), name="truth", slide_mpp=pyramid.mpp, labels=TRUTH_LABELS)
    outline = draw_outlines(pyramid, truth_overlay(Image.from_corner(truth, options.mpp)))
    save_figure(slide_figure(f"{slide}: tumour red, normal inside green, ignored grey", *outline, synthetic), picture)
    write_features(geojson, _features(regions))
    counts = np.bincount(truth.ravel(), minlength=3)
    tumor_mm2 = float(regions.tumor.area) * pyramid.mpp**2 / 1e6
    write_receipt(
        receipt,
        "truth",
        {
            "slide": slide,
            "label": label,
            "exhaustive": exhaustive,
            "annotation_sha256": None if annotation is None else digest_file(annotation),
            "polygons": regions.polygons,
            "tumor_mm2": round(tumor_mm2, 6),
            "pixels": {"normal": int(counts[NORMAL]), "tumor": int(counts[TUMOR]), "ignore": int(counts[IGNORE])},
            "shape": list(truth.shape),
            "truth_sha256": digest_bytes(truth.tobytes()),
        },
        options,
    )
    ignored = f", {100 * counts[IGNORE] / truth.size:.0f} % ignored" if counts[IGNORE] else ""
    log.info("%s: %d polygons, %.3f mm² tumour%s", slide, regions.polygons, tumor_mm2, ignored)


def _features(regions: Regions) -> Iterator[Feature]:
    """What was outlined, as it was understood: what is cut out of tumour is a hole in it."""
    for name, color, area in (("Tumor", TUMOR_COLOR, regions.tumor), ("Ignore*", IGNORED_COLOR, regions.ignore)):
        for polygon in polygon_parts(area):
            yield feature(polygon, name, color)


def background_value(label: str | None, annotated: bool, exhaustive: bool) -> int:
    """What holds outside all annotations."""
    if not exhaustive:
        return IGNORE
    return NORMAL if annotated or label == "normal" else IGNORE


def draw(regions: Regions, size: Size, pixel_px: float, unjudged: int, threads: int) -> NDArray[np.uint8]:
    """The truth image, (h, w) uint8, its pixels `pixel_px` level-0 pixels wide; in bands, with dask."""
    layers = [
        (value, PolygonRasterizer(geometry, pixel_px, size))
        for value, geometry in ((NORMAL, regions.cut_out), (TUMOR, regions.tumor), (IGNORE, regions.ignore))
    ]

    starts = range(0, size.height, _BAND_PX)
    shown = ProgressBar("truth", len(starts))

    def band(row: int, rows: int) -> NDArray[np.uint8]:
        out = np.full((rows, size.width), unjudged, np.uint8)
        for value, crossings in layers:
            crossings.fill(out, row, value)
        shown.advance()
        return out

    bands = []
    for row in starts:
        rows = min(_BAND_PX, size.height - row)
        bands.append(da.from_delayed(delayed(band)(row, rows), shape=(rows, size.width), dtype=np.uint8))
    with shown, dask.config.set(scheduler="threads", num_workers=threads):
        truth: NDArray[np.uint8] = da.concatenate(bands).compute()
    return truth


def ignore_border(truth: NDArray[np.uint8], margin_px: float) -> None:
    """Set to ignore what is within `margin_px` of the border of tumour, on both sides."""
    tumor = truth == TUMOR
    # Half a pixel, as distances are between centres and the border lies between them.
    reach = margin_px + 0.5
    if margin_px == 0 or not tumor.any() or tumor.all():
        return
    for side in (tumor, ~tumor):
        truth[side & (ndimage.distance_transform_edt(side) < reach)] = IGNORE


def _check_unit(slide: str, annotation: Path, regions: Regions, pyramid: Pyramid) -> None:
    """`AnnotationError` where tumour lies on glass, but on tissue if its vertices were micrometres."""
    tumor = regions.tumor
    if tumor.is_empty or _UNIT_FACTORS[0] < pyramid.mpp < _UNIT_FACTORS[1]:
        return
    picture, mpp = pyramid.thumbnail(_THUMBNAIL_PX)
    options = TissueOptions()
    feature, ink = tissue_features(picture, options)
    known = apply_threshold(feature, find_threshold(feature, ink, options), options)
    tissue = ndimage.binary_dilation(known, iterations=2)
    points = shapely.get_coordinates(tumor)

    def share(pixel: float) -> float:
        """Of the vertices on tissue, if `pixel` of their units are one of the thumbnail."""
        x, y = (points / pixel).astype(np.int64).T
        inside = (x < tissue.shape[1]) & (y < tissue.shape[0])
        return float(tissue[y[inside], x[inside]].sum()) / len(points)

    here, scaled = share(mpp / pyramid.mpp), share(mpp)
    if here < _ON_GLASS and scaled > _ON_TISSUE:
        raise AnnotationError(
            slide,
            annotation,
            f"{100 * here:.0f} % of its vertices lie on tissue; {100 * scaled:.0f} % would if they were micrometres",
            remedy="Export the annotation in level-0 pixels",
        )


def _check_label(slide: str, annotation: Path, label: str | None, regions: Regions) -> None:
    if label == "normal" and not regions.tumor.is_empty:
        raise AnnotationError(
            slide,
            annotation,
            "outlines tumour, but the sheet's label is normal",
            remedy="Correct the label or the annotation",
        )
    if label == "tumor" and regions.tumor.is_empty:
        raise AnnotationError(
            slide,
            annotation,
            "outlines no tumour, but the sheet's label is tumor",
            remedy="Correct the label or the annotation",
        )
