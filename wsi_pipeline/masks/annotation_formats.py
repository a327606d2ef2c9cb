"""Parsers of annotation files: ASAP XML, Aperio ImageScope XML and QuPath GeoJSON.

XML is parsed as a stream without a tree, so memory grows with the vertices alone. XML with a DTD or entities is
rejected, so that no file other than the annotation is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol
from xml.etree.ElementTree import ParseError

import numpy as np
import shapely
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import XMLParser
from numpy.typing import NDArray

from wsi_pipeline.errors import AnnotationError

Ring = NDArray[np.float64]
Attributes = dict[str, str]

_GEOJSON_SUFFIXES = (".geojson", ".json")
_EXPORT_AGAIN = "Export the annotation again"
_CHUNK_BYTES = 1 << 16
# ImageScope stores the bounding box of an ellipse; this many vertices approximate its area to 0.1 %.
_ELLIPSE_VERTICES = 90
# Values of the attribute Type of a Region; 3 and 4 enclose no area.
_RECTANGLE, _ELLIPSE = "1", "2"
_REGIONS_WITHOUT_AREA = frozenset({"3", "4"})


@dataclass(frozen=True, slots=True)
class Outline:
    """One annotated area in level-0 pixels: an outer ring (n, 2) and holes.

    `group` is the group, layer or class in the file; `is_negative` marks an area that the file itself excludes.
    """

    group: str
    rings: tuple[Ring, ...]
    is_negative: bool = False


def read_outlines(slide: str, path: Path) -> list[Outline]:
    """All outlines of an annotation file; shapes without area (points, lines, rulers) are skipped.

    The suffix (.geojson, .json) or the root element of the XML determines the format. Raises `AnnotationError`,
    with the position of a syntax error.
    """
    if path.suffix.lower() in _GEOJSON_SUFFIXES:
        return _read_geojson(slide, path)
    return _read_xml(slide, path)


class _Reader(Protocol):
    """Event handler for the elements of one XML format."""

    outlines: list[Outline]

    def start(self, tag: str, attributes: Attributes) -> None: ...

    def end(self, tag: str) -> None: ...


class _AsapReader:
    """ASAP: Annotation (PartOfGroup) / Coordinates / Coordinate (Order, X, Y)."""

    _TYPES_WITHOUT_AREA = frozenset({"Dot", "PointSet", "Measurement"})

    def __init__(self) -> None:
        self.outlines = list[Outline]()
        self._attributes: Attributes = {}
        self._points = list[tuple[float, float, float]]()

    def start(self, tag: str, attributes: Attributes) -> None:
        if tag == "Annotation":
            self._attributes, self._points = attributes, []
        elif tag == "Coordinate":
            name = self._attributes.get("Name", "")
            order = _number(attributes.get("Order", len(self._points)), name)
            self._points.append((order, _number(attributes.get("X"), name), _number(attributes.get("Y"), name)))

    def end(self, tag: str) -> None:
        if tag == "Annotation" and self._attributes.get("Type") not in self._TYPES_WITHOUT_AREA:
            points = [point[1:] for point in sorted(self._points, key=lambda point: point[0])]
            self.outlines.append(Outline(self._attributes.get("PartOfGroup", ""), (_ring(points),)))


class _ImageScopeReader:
    """ImageScope: Annotation (Name) / Regions / Region (Type, NegativeROA) / Vertices / Vertex (X, Y)."""

    def __init__(self) -> None:
        self.outlines = list[Outline]()
        self._layer, self._attributes = "", Attributes()
        self._points = list[tuple[float, float]]()

    def start(self, tag: str, attributes: Attributes) -> None:
        if tag == "Annotation":
            self._layer = attributes.get("Name", "")
        elif tag == "Region":
            self._attributes, self._points = attributes, []
        elif tag == "Vertex":
            name = f"{self._layer} {self._attributes.get('Id', '')}"
            self._points.append((_number(attributes.get("X"), name), _number(attributes.get("Y"), name)))

    def end(self, tag: str) -> None:
        kind = self._attributes.get("Type")
        if tag != "Region" or kind in _REGIONS_WITHOUT_AREA:
            return
        ring = _ring(self._points)
        if kind == _ELLIPSE and len(ring):
            ring = _ellipse(ring)
        elif kind == _RECTANGLE and len(ring) == 2:
            (left, top), (right, bottom) = ring
            ring = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        self.outlines.append(Outline(self._layer, (ring,), self._attributes.get("NegativeROA") == "1"))


_READERS: dict[str, type[_Reader]] = {"ASAP_Annotations": _AsapReader, "Annotations": _ImageScopeReader}


class _Dispatcher:
    """Parser target that forwards elements to the handler of the format that the root element names."""

    def __init__(self) -> None:
        self.reader: _Reader | None = None

    def start(self, tag: str, attributes: Attributes) -> None:
        if self.reader is None:
            if tag not in _READERS:
                raise _UnknownRootError(tag)
            self.reader = _READERS[tag]()
        self.reader.start(tag, attributes)

    def end(self, tag: str) -> None:
        if self.reader is not None:
            self.reader.end(tag)

    def close(self) -> None:
        """Required by the parser."""


class _UnknownRootError(Exception):
    pass


class _InvalidNumberError(ValueError):
    pass


def _read_xml(slide: str, path: Path) -> list[Outline]:
    target = _Dispatcher()
    parser = XMLParser(target=target, forbid_dtd=True)
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                parser.feed(chunk)
        parser.close()
    except DefusedXmlException as error:
        raise AnnotationError(
            slide,
            path,
            f"refused: the XML declares a DTD or entities ({type(error).__name__})",
            remedy="Export the annotation again as plain XML",
        ) from error
    except _UnknownRootError as error:
        raise AnnotationError(
            slide,
            path,
            f"neither ASAP nor ImageScope XML (root element {error})",
            remedy="Export it from ASAP or ImageScope, or as GeoJSON from QuPath",
        ) from error
    except _InvalidNumberError as error:
        raise AnnotationError(slide, path, str(error), remedy=_EXPORT_AGAIN) from error
    except (ParseError, ValueError) as error:
        raise AnnotationError(slide, path, f"not well-formed XML ({error})", remedy=_EXPORT_AGAIN) from error
    except OSError as error:
        _raise_unreadable(slide, path, error)
    return [] if target.reader is None else target.reader.outlines


def _read_geojson(slide: str, path: Path) -> list[Outline]:
    try:
        content = json.loads(path.read_bytes(), object_hook=_convert_rings)
    except OSError as error:
        _raise_unreadable(slide, path, error)
    except (ValueError, RecursionError) as error:
        raise AnnotationError(slide, path, f"not JSON ({error})", remedy=_EXPORT_AGAIN) from error
    try:
        return [outline for feature in _features(content) for outline in _feature_outlines(feature)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AnnotationError(
            slide,
            path,
            f"not GeoJSON as QuPath writes it ({error!r})",
            remedy="Export it from QuPath with File > Export objects as GeoJSON",
        ) from error


def _convert_rings(found: dict[str, Any]) -> dict[str, Any]:
    """JSON object hook: convert rings to arrays during parsing, as nested lists take ten times the memory."""
    try:
        if found.get("type") == "Polygon":
            return found | {"coordinates": [_ring(ring) for ring in found["coordinates"]]}
        if found.get("type") == "MultiPolygon":
            return found | {"coordinates": [[_ring(ring) for ring in polygon] for polygon in found["coordinates"]]}
    except (KeyError, TypeError, ValueError):
        # `_features` and `_polygons` report the malformed geometry with its context.
        pass
    return found


def _features(content: Any) -> Iterator[dict[str, Any]]:
    """The features of a FeatureCollection, a list of features, or one feature (RFC 7946); QuPath writes all three."""
    if isinstance(content, list):
        yield from content
    elif content["type"] == "FeatureCollection":
        yield from content["features"]
    elif content["type"] == "Feature":
        yield content
    else:
        raise ValueError(f"type {content['type']}")


def _feature_outlines(feature: dict[str, Any]) -> Iterator[Outline]:
    properties = feature.get("properties") or {}
    classification = properties.get("classification") or {}
    # Older versions of QuPath export the class name instead of an object.
    group = classification.get("name") if isinstance(classification, dict) else classification
    for polygon in _polygons(feature["geometry"]):
        yield Outline(str(group or ""), tuple(_ring(ring) for ring in polygon))


def _polygons(geometry: dict[str, Any] | None) -> Iterator[list[Any]]:
    if geometry is None:
        return
    if geometry["type"] == "Polygon":
        yield geometry["coordinates"]
    elif geometry["type"] == "MultiPolygon":
        yield from geometry["coordinates"]
    elif geometry["type"] == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _polygons(part)


def _ring(points: Any) -> Ring:
    if not len(points):
        return np.empty((0, 2))
    ring = np.array(points, np.float64).reshape(len(points), -1)[:, :2]
    if not np.isfinite(ring).all():
        raise ValueError("a coordinate is not finite")
    return ring


def _ellipse(corners: Ring) -> Ring:
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    circle = shapely.get_coordinates(shapely.Point(0, 0).buffer(1, quad_segs=_ELLIPSE_VERTICES // 4))
    scaled: Ring = circle * [(right - left) / 2, (bottom - top) / 2] + [(left + right) / 2, (top + bottom) / 2]
    return scaled


def _number(text: str | float | None, name: str) -> float:
    try:
        # Some locales write a decimal comma.
        value = math.nan if text is None else float(str(text).replace(",", "."))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _InvalidNumberError(f"annotation {name!r}: a coordinate is not a number ({text!r})")
    return value


def _raise_unreadable(slide: str, path: Path, error: OSError) -> NoReturn:
    raise AnnotationError(
        slide, path, f"cannot be read ({error.strerror})", remedy="Correct the sheet's column annotation"
    ) from error
