"""Interpretation of annotations: tumour, areas cut out of tumour, and areas to ignore."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.config import TruthOptions
from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.geometry import Size
from wsi_pipeline.masks.annotation_formats import Outline, read_outlines


@dataclass(frozen=True, slots=True)
class Regions:
    """Annotated areas in level-0 pixels, clipped to the slide. Tumour and cut-outs are disjoint; either may be ignored.

    `polygons` counts the outlines used.
    """

    tumor: BaseGeometry
    cut_out: BaseGeometry
    ignore: BaseGeometry
    polygons: int


NO_REGIONS = Regions(shapely.Polygon(), shapely.Polygon(), shapely.Polygon(), 0)


def read_annotation(slide: str, path: Path, options: TruthOptions, size: Size) -> Regions:
    """Read an annotation file; `options` maps group names to their meaning, `size` is that of level 0.

    The outlines of each meaning are merged. Holes are kept, self-intersecting rings repaired and open rings closed.
    Rings with fewer than three points or without area are skipped; areas outside the slide are cut off. Cut-out areas
    are removed from all tumour. Raises `AnnotationError` for malformed or unsafe files,
    unknown groups, and annotations that lie mostly off the slide.
    """
    meaning = {
        **dict.fromkeys(options.tumor_groups, "tumor"),
        **dict.fromkeys(options.cutout_groups, "cut_out"),
        **dict.fromkeys(options.ignore_groups, "ignore"),
    }
    areas: dict[str, list[BaseGeometry]] = {"tumor": [], "cut_out": [], "ignore": []}
    outlines = read_outlines(slide, path)
    _check_on_slide(slide, path, outlines, size)
    for outline in outlines:
        if outline.group not in meaning:
            raise AnnotationError(
                slide,
                path,
                f"unknown annotation group {outline.group!r}",
                remedy=f"Say in the config's truth section what it means (known: {', '.join(meaning)})",
            )
        area = _polygon(outline)
        if not area.is_empty:
            areas["cut_out" if outline.is_negative else meaning[outline.group]].append(area)
    tumor, cut_out, ignore = (_clipped(shapely.union_all(areas[kind]), size) for kind in ("tumor", "cut_out", "ignore"))
    return Regions(
        tumor=_difference(tumor, cut_out),
        cut_out=_polygonal(tumor & cut_out),
        ignore=ignore,
        polygons=sum(map(len, areas.values())),
    )


def _check_on_slide(slide: str, path: Path, outlines: list[Outline], size: Size) -> None:
    points = [ring for outline in outlines for ring in outline.rings]
    x, y = np.concatenate([np.empty((0, 2)), *points]).T
    outside = int(np.count_nonzero((x < 0) | (y < 0) | (x > size.width) | (y > size.height)))
    if outside > len(x) / 2:
        raise AnnotationError(
            slide,
            path,
            f"{outside} of {len(x)} vertices lie outside the slide ({size.width} x {size.height} px)",
            remedy="Check that the annotation belongs to this slide and is in level-0 pixels, not in micrometres",
        )


def _polygon(outline: Outline) -> BaseGeometry:
    if not outline.rings or len(outline.rings[0]) < 3:
        return shapely.Polygon()
    outer, *holes = outline.rings
    return _polygonal(shapely.make_valid(shapely.Polygon(outer, [hole for hole in holes if len(hole) > 2])))


def _clipped(area: BaseGeometry, size: Size) -> BaseGeometry:
    slide = shapely.box(0, 0, size.width, size.height)
    return area if slide.contains(shapely.box(*area.bounds)) else _polygonal(shapely.intersection(area, slide))


def _difference(area: BaseGeometry, other: BaseGeometry) -> BaseGeometry:
    # A difference with an empty geometry takes GEOS as long as any other.
    return area if other.is_empty else _polygonal(area - other)


def _polygonal(geometry: BaseGeometry) -> BaseGeometry:
    """The polygons of a geometry, without the lines and points that repairs and overlays leave behind."""
    if geometry.geom_type in ("Polygon", "MultiPolygon"):
        return geometry
    parts: Iterable[BaseGeometry] = shapely.get_parts(shapely.get_parts(geometry))
    return shapely.union_all([part for part in parts if part.geom_type == "Polygon" and part.area > 0])
