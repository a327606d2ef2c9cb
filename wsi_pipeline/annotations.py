"""Annotation files: ASAP XML, as Camelyon16 has them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import shapely
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import parse
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.config import TruthOptions
from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.geometry import Size


@dataclass(frozen=True, slots=True)
class Regions:
    """Annotated areas in level-0 pixels; they do not overlap."""

    tumor: BaseGeometry
    cut_out: BaseGeometry
    ignore: BaseGeometry
    polygons: int


NOTHING = Regions(shapely.Polygon(), shapely.Polygon(), shapely.Polygon(), 0)


def read_asap(slide: str, path: Path, options: TruthOptions, size: Size) -> Regions:
    """Read ASAP XML. Vertices are level-0 pixels; group names mean what `options` says.

    Self-crossing rings are repaired, rings of fewer than three points or without area are left out.
    Raises `AnnotationError` for broken or unsafe XML, unknown groups and vertices off the slide.
    """
    meaning = {
        **dict.fromkeys(options.tumor_groups, "tumor"),
        **dict.fromkeys(options.cutout_groups, "cut_out"),
        **dict.fromkeys(options.ignore_groups, "ignore"),
    }
    areas: dict[str, list[BaseGeometry]] = {"tumor": [], "cut_out": [], "ignore": []}
    outside = total = 0
    for annotation in _root(slide, path).iter("Annotation"):
        group = annotation.get("PartOfGroup", "")
        if group not in meaning:
            raise AnnotationError(
                slide, path, f"unknown annotation group {group!r}",
                remedy=f"Say in the config's truth section what it means (known: {', '.join(meaning)})",
            )  # fmt: skip
        points = _points(slide, path, annotation)
        total += len(points)
        outside += sum(not (0 <= x <= size.width and 0 <= y <= size.height) for x, y in points)
        if annotation.get("Type") in ("Dot", "PointSet", "Measurement") or len(points) < 3:
            continue
        area = _areal(shapely.make_valid(shapely.Polygon(points)))
        if not area.is_empty:
            areas[meaning[group]].append(area)
    if outside > total / 2:
        raise AnnotationError(
            slide, path, f"{outside} of {total} vertices lie outside the slide ({size.width} x {size.height} px)",
            remedy="Check that the annotation belongs to this slide and is in level-0 pixels",
        )  # fmt: skip
    tumor, cut_out, ignore = (shapely.union_all(areas[kind]) for kind in ("tumor", "cut_out", "ignore"))
    return Regions(
        tumor=_areal(tumor - cut_out - ignore),
        cut_out=_areal((tumor & cut_out) - ignore),
        ignore=_areal(ignore),
        polygons=sum(map(len, areas.values())),
    )


def _root(slide: str, path: Path) -> Element:
    try:
        root = parse(path, forbid_dtd=True).getroot()
    except DefusedXmlException as error:
        raise AnnotationError(
            slide, path, f"refused: the XML declares a DTD or entities ({type(error).__name__})",
            remedy="Export the annotation again as plain ASAP XML",
        ) from error  # fmt: skip
    except (ParseError, OSError, ValueError) as error:
        raise AnnotationError(
            slide, path, f"not well-formed XML ({error})", remedy="Export the annotation again"
        ) from error
    if root is None or root.tag != "ASAP_Annotations":
        raise AnnotationError(
            slide, path, f"not an ASAP annotation (root element {root.tag if root is not None else 'none'})",
            remedy="Export it from ASAP, or convert it",
        )  # fmt: skip
    return root


def _points(slide: str, path: Path, annotation: Element) -> list[tuple[float, float]]:
    try:
        ordered = sorted(annotation.iter("Coordinate"), key=lambda c: float(c.get("Order", "0")))
        points = [(_number(c.get("X")), _number(c.get("Y"))) for c in ordered]
    except ValueError as error:
        raise AnnotationError(
            slide, path, f"annotation {annotation.get('Name')!r}: a coordinate is no number ({error})",
            remedy="Export the annotation again",
        ) from error  # fmt: skip
    return points


def _number(text: str | None) -> float:
    # Some locales write a decimal comma.
    value = float((text or "").replace(",", "."))
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _areal(geometry: BaseGeometry) -> BaseGeometry:
    """The polygons of a geometry, without the lines and points that repairs and differences leave."""
    parts: Iterable[BaseGeometry] = shapely.get_parts(shapely.get_parts(geometry))
    return shapely.union_all([part for part in parts if part.geom_type == "Polygon" and part.area > 0])
