"""Where annotations lie on a slide: the corner that they count from, and a check against the tissue.

Some slides have a canvas larger than what was scanned (MIRAX, Leica SCN); OpenSlide names the scanned part by its
properties openslide.bounds-*. Programs count from the corner of either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.config import TissueOptions
from wsi_pipeline.config.base import Origin, TissueMethod
from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.masks.annotations import Annotation
from wsi_pipeline.masks.outlines import Canvas
from wsi_pipeline.masks.rasterize import PolygonRasterizer
from wsi_pipeline.masks.tissue_detection import apply_threshold, find_threshold, tissue_features
from wsi_pipeline.slides.openslide_reader import SourceSlide

OVERVIEW_PX = 1024
_SAMPLES_PX = 256
_FITS = 0.8
# Where the file's format decides what it counts from, the other corner may fit better by at most this share. Other
# readings are named where they fit better by more than this.
_CLEARLY_BETTER = 0.2
# At scales within these factors of 1 um per pixel, coordinates in pixels and in micrometres are too alike to judge.
_UNIT_FACTORS = (0.8, 1.25)
# Downsample factors between a slide and another scan or copy of it.
_FACTORS = tuple(2.0**k for k in range(-8, 9) if k)

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Reading:
    """Another reading of the coordinates: what it changes, in words, the points in level-0 pixels, and the remedy."""

    kind: str
    name: str
    points: Points
    remedy: str


def check_position(
    slide: str,
    path: Path,
    annotation: Annotation,
    canvas: Canvas,
    overview: NDArray[np.uint8],
    min_share: float,
    tissue_options: TissueOptions | None = None,
) -> Annotation:
    """The annotation with the share of its tumour that lies on tissue in `overview`, (h, w, 3) uint8 of the canvas.

    Tissue is found by method and threshold of `tissue_options`, by default those of `position_tissue`.

    Raises `AnnotationError` where it is less than `min_share`, and where coordinates whose origin was not given fit
    clearly better from the other corner. The error names other readings that fit better: the other corner, x and y
    exchanged, pixels of another level, micrometres. A `min_share` of 0 is no check.
    """
    if annotation.outlined.is_empty:
        return annotation
    options, has_canvas = tissue_options or position_tissue(), canvas.bounds is not None
    tissue, points = _tissue(overview, options, has_canvas=has_canvas), _samples(annotation.outlined)
    share, origin = _share(points, tissue, canvas), annotation.facts.origin
    fits = [(_share(reading.points, tissue, canvas), reading) for reading in _readings(points, origin, canvas)]
    fits = [(fit, reading) for fit, reading in fits if fit > share + _CLEARLY_BETTER]
    is_doubtful = not annotation.is_origin_given and any(reading.kind == "origin" for _, reading in fits)
    if min_share == 0 or (share >= min_share and not is_doubtful):
        return replace(annotation, facts=annotation.facts.model_copy(update={"on_tissue": round(share, 4)}))
    # Of several levels only the best.
    best = {reading.kind: (fit, reading) for fit, reading in sorted(fits, key=lambda one: one[0])}
    better = sorted(best.values(), key=lambda one: -one[0])
    others = "".join(f"; {100 * fit:.0f} % would {reading.name}" for fit, reading in better)
    problem = f"{100 * share:.0f} % of the annotated tumour lies on tissue (read from the {origin}){others}"
    remedy = "Check that it belongs to this slide; truth.min_on_tissue: 0 turns this check off"
    if better and (better[0][0] >= _FITS or is_doubtful):
        remedy = better[0][1].remedy
    raise AnnotationError(slide, path, problem, remedy=remedy)


def _readings(points: Points, origin: Origin, canvas: Canvas) -> Iterator[_Reading]:
    """Other readings of the coordinates of a file, which gave `points` (n, 2) as level-0 pixels from `origin`."""
    corner = canvas.corner(origin)
    given = points - corner
    if canvas.bounds is not None:
        other: Origin = "canvas" if origin == "bounds" else "bounds"
        remedy = f"Set annotation_origin to {other} for this slide in the sheet"
        yield _Reading("origin", f"if counted from the {other}", given + canvas.corner(other), remedy)
    remedy = "Export the annotation in level-0 pixels, x before y"
    if not _UNIT_FACTORS[0] < canvas.mpp < _UNIT_FACTORS[1]:
        yield _Reading("unit", "if they were micrometres", given / canvas.mpp + corner, remedy)
    yield _Reading("axes", "with x and y exchanged", given[:, ::-1] + corner, remedy)
    # The nearest to 1 last, which is taken where several fit alike: small factors put all points into one spot.
    for factor in sorted({*_FACTORS, *canvas.downsamples[1:]}, key=lambda factor: -abs(math.log(factor))):
        yield _Reading("level", f"if scaled by {factor:.4g}, as from another level", given * factor + corner, remedy)


def _samples(area: BaseGeometry) -> Points:
    """Points inside an area, on a grid over its bounding box, so that each stands for as much area, (n, 2)."""
    left, top, right, bottom = area.bounds
    pixel = max(right - left, bottom - top) / _SAMPLES_PX
    size = Size(*(max(1, int(np.ceil(edge / pixel))) for edge in (right - left, bottom - top)))
    drawn = np.zeros((size.height, size.width), np.uint8)
    PolygonRasterizer(translate(area, -left, -top), pixel, size).fill(drawn, 0, 1)
    rows, columns = np.nonzero(drawn)
    if not len(rows):
        # Far thinner than the box is wide.
        return shapely.get_coordinates(shapely.point_on_surface(shapely.get_parts(area)))
    return np.stack((columns + 0.5, rows + 0.5), axis=1) * pixel + (left, top)


def position_tissue(method: TissueMethod | None = None, threshold: float | None = None) -> TissueOptions:
    """How the check finds tissue, given the sheet's `tissue_method` and `tissue_threshold` of the slide.

    Without them by the threshold of the glass, which keeps pale tissue, and takes all of a section without glass.
    """
    return TissueOptions(method=method or "glass_saturation", threshold=threshold)


def _tissue(picture: NDArray[np.uint8], options: TissueOptions, *, has_canvas: bool) -> NDArray[np.bool_]:
    features = tissue_features(picture, options)
    threshold = find_threshold(features.histogram(), options, has_canvas=has_canvas)
    known = apply_threshold(features.value(options), threshold.value, options)
    # Widened, as borders are drawn generously.
    widened: NDArray[np.bool_] = ndimage.binary_dilation(known, iterations=2)
    return widened


def _share(points: Points, tissue: NDArray[np.bool_], canvas: Canvas) -> float:
    scale = np.array([tissue.shape[1] / canvas.size.width, tissue.shape[0] / canvas.size.height])
    x, y = np.floor(points * scale).astype(np.int64).T
    inside = (x >= 0) & (y >= 0) & (x < tissue.shape[1]) & (y < tissue.shape[0])
    return float(tissue[y[inside], x[inside]].sum()) / len(points)


def canvas_of(source: SourceSlide) -> Canvas:
    """The canvas of a slide file."""
    metadata = source.metadata
    size = metadata.levels[0]
    downsamples = tuple(size.width / level.width for level in metadata.levels)
    return Canvas(size, metadata.mpp, downsamples, metadata.bounds)


def overview_level(levels: Sequence[Size]) -> int:
    """The coarsest level with an edge of at least `OVERVIEW_PX`, else level 0."""
    return max((k for k, size in enumerate(levels) if max(size.width, size.height) >= OVERVIEW_PX), default=0)


def read_overview(source: SourceSlide) -> NDArray[np.uint8]:
    """The whole slide with at most `OVERVIEW_PX` pixels along its longer edge, (h, w, 3) uint8."""
    level = overview_level(source.metadata.levels)
    size = source.metadata.levels[level]
    factor = -(-max(size.width, size.height) // OVERVIEW_PX)
    # In bands of few rows: a slide may have no coarse level.
    height = 64 * factor
    bands = [Box(0, top, size.width, min(height, size.height - top)) for top in range(0, size.height, height)]
    return np.concatenate([np.asarray(Pillow.fromarray(source.read(band, level)).reduce(factor)) for band in bands])
