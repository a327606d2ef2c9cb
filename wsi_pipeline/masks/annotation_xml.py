"""Annotations in XML: ASAP, Aperio ImageScope and Indica HALO.

XML is parsed as a stream without a tree, so memory grows with the vertices alone. XML with a DTD or entities is
rejected, so that no file other than the annotation is read.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Protocol
from xml.etree.ElementTree import ParseError

import numpy as np
import shapely
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import XMLParser

from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.masks.outlines import EXPORT_AGAIN, FileContent, LeftOut, Outline, Ring, ring_of, unreadable

Attributes = dict[str, str]

_CHUNK_BYTES = 1 << 16
# This many vertices approximate the area of an ellipse to 0.1 %.
_ELLIPSE_VERTICES = 90
_ENCODING = re.compile(rb"\A\s*<\?xml[^>]*?\sencoding\s*=\s*[\"']([^\"'>]*)[\"']")
# Windows writes the larger character set under the name of the smaller (https://encoding.spec.whatwg.org, 4.2).
_LARGER_SETS = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc-kr": "cp949"}


class _FileError(Exception):
    """A problem of the file, and its remedy."""

    def __init__(self, problem: str, remedy: str = EXPORT_AGAIN) -> None:
        super().__init__(problem)
        self.remedy = remedy


class _Reader(Protocol):
    """Event handler for the elements of one XML format."""

    content: FileContent

    def start(self, tag: str, attributes: Attributes) -> None: ...

    def end(self, tag: str) -> None: ...


class _AsapReader:
    """ASAP: Annotation (Type, PartOfGroup) / Coordinates / Coordinate (Order, X, Y), and nested groups.

    A spline has the area of the polygon through its points, as in ASAP's own masks.
    """

    _WITHOUT_AREA = frozenset({"Dot", "PointSet", "Measurement", "None"})

    def __init__(self) -> None:
        self.content = FileContent("ASAP XML")
        self._attributes: Attributes = {}
        self._points = list[tuple[float, float, float]]()

    def start(self, tag: str, attributes: Attributes) -> None:
        if tag == "Annotation":
            self._attributes, self._points = attributes, []
        elif tag == "Coordinate":
            name = self._name
            order = _number(attributes.get("Order", len(self._points)), name)
            self._points.append((order, _number(attributes.get("X"), name), _number(attributes.get("Y"), name)))
        elif tag == "Group":
            self.content.parents[attributes.get("Name", "")] = attributes.get("PartOfGroup", "")

    @property
    def _name(self) -> str:
        return f"annotation {self._attributes.get('Name', '')!r}"

    def end(self, tag: str) -> None:
        if tag != "Annotation":
            return
        kind, group = self._attributes.get("Type", "Polygon"), self._attributes.get("PartOfGroup", "")
        if kind in self._WITHOUT_AREA:
            self.content.left_out[LeftOut(group, f"{kind}, no area")] += 1
            return
        ring = ring_of([point[1:] for point in sorted(self._points, key=lambda point: point[0])])
        if kind == "Rectangle":
            ring = _rectangle(ring)
        elif kind not in ("Polygon", "Spline"):
            raise _unknown_type(self._name, kind)
        self.content.outlines.append(Outline(group, self._name, (ring,)))


class _RegionReader:
    """ImageScope and HALO: Annotation (Name) is a layer, with Regions / Region (Type, NegativeROA) / Vertices.

    ImageScope has numbers as types and elements Vertex (X, Y), HALO words and elements V (X, Y). Both store corners of
    the bounding box for an ellipse, HALO also for a rectangle.
    """

    _TYPES: ClassVar = {"0": "polygon", "1": "rectangle", "2": "ellipse", "3": "arrow", "4": "ruler"}
    _WITHOUT_AREA = frozenset({"arrow", "ruler", "pin"})

    def __init__(self) -> None:
        self.content = FileContent("ImageScope XML")
        self._layer, self._group, self._regions = 0, "", 0
        self._region: Attributes | None = None
        self._points = list[tuple[float, float]]()

    def start(self, tag: str, attributes: Attributes) -> None:
        if tag == "Annotation":
            self._layer += 1
            self._group, self._regions = attributes.get("Name", ""), 0
        elif tag == "Attribute" and self._region is None and attributes.get("Name") == "Description":
            # Where a layer has no name, ImageScope shows its description.
            self._group = self._group or attributes.get("Value", "")
        elif tag == "Region":
            self._region, self._points = attributes, []
            self._regions += 1
        elif tag in ("Vertex", "V"):
            self._points.append((_number(attributes.get("X"), self._name), _number(attributes.get("Y"), self._name)))
            if tag == "V":
                self.content.format = "HALO annotations"

    @property
    def _name(self) -> str:
        return f"region {self._regions} of layer {self._group!r}"

    def end(self, tag: str) -> None:
        if tag != "Region" or self._region is None:
            return
        attributes, self._region = self._region, None
        given = attributes.get("Type", "0")
        kind = self._TYPES.get(given, given.lower())
        if kind in self._WITHOUT_AREA:
            self.content.left_out[LeftOut(self._group, f"{kind}, no area")] += 1
            return
        ring = ring_of(self._points)
        if kind == "ellipse":
            ring = _ellipse(ring)
        elif kind == "rectangle":
            ring = _rectangle(ring)
        elif kind != "polygon":
            raise _unknown_type(self._name, given)
        is_negative = attributes.get("NegativeROA", "0").lower() in ("1", "true")
        self.content.outlines.append(Outline(self._group, self._name, (ring,), self._layer, is_negative))


_READERS: dict[str, type[_Reader]] = {"ASAP_Annotations": _AsapReader, "Annotations": _RegionReader}


class _Dispatcher:
    """Parser target that forwards elements to the handler of the format that the root element names."""

    def __init__(self) -> None:
        self.reader: _Reader | None = None

    def start(self, tag: str, attributes: Attributes) -> None:
        if self.reader is None:
            if tag not in _READERS:
                raise _FileError(
                    f"neither ASAP, ImageScope nor HALO XML (root element {tag})",
                    "Export it from one of these programs, or as GeoJSON from QuPath",
                )
            self.reader = _READERS[tag]()
        self.reader.start(tag, attributes)

    def end(self, tag: str) -> None:
        if self.reader is not None:
            self.reader.end(tag)

    def close(self) -> None:
        """Required by the parser."""


def read_xml(slide: str, path: Path) -> FileContent:
    """The content of an XML file; the root element determines the format. Raises `AnnotationError`."""
    target = _Dispatcher()
    parser = XMLParser(target=target, forbid_dtd=True)
    try:
        for piece in _pieces(path):
            parser.feed(piece)
        parser.close()
    except DefusedXmlException as error:
        raise AnnotationError(
            slide,
            path,
            f"refused: the XML declares a DTD or entities ({type(error).__name__})",
            remedy="Export the annotation again as plain XML",
        ) from error
    except _FileError as error:
        raise AnnotationError(slide, path, str(error), remedy=error.remedy) from error
    except (ParseError, ValueError) as error:
        raise AnnotationError(slide, path, f"not well-formed XML ({error})", remedy=EXPORT_AGAIN) from error
    except OSError as error:
        raise unreadable(slide, path, error) from error
    # Without a root element the parser has raised an error.
    return FileContent("XML") if target.reader is None else target.reader.content


def _pieces(path: Path) -> Iterator[bytes | str]:
    """The file in pieces; as text where the parser does not know the encoding, as it knows none of several bytes."""
    with path.open("rb") as file:
        chunk = file.read(_CHUNK_BYTES)
        match = _ENCODING.match(chunk)
        if match is None:
            # UTF-8 or UTF-16, which the parser tells apart by the first bytes.
            while chunk:
                yield chunk
                chunk = file.read(_CHUNK_BYTES)
            return
        declared = match[1].decode("ascii", "replace")
        decoder = _decoder(declared)
        try:
            while chunk:
                yield decoder.decode(chunk)
                chunk = file.read(_CHUNK_BYTES)
            yield decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise _FileError(
                f"its first line says {declared}, but its bytes are not ({error.reason})", "Save it as UTF-8"
            ) from error


def _decoder(declared: str) -> codecs.IncrementalDecoder:
    name = _LARGER_SETS.get(declared.lower(), declared)
    # A first line in single bytes is not UTF-16 or UTF-32, whatever it says: .NET writes such files.
    if re.match("(?i)utf-?(16|32)|ucs-", name):
        name = "utf-8"
    try:
        # Of a codec that makes no text of bytes, such as zip, this is a LookupError too.
        b" ".decode(name)
        return codecs.getincrementaldecoder(name)()
    except (LookupError, UnicodeError) as error:
        raise _FileError(f"its encoding {declared!r} is not known", "Save it as UTF-8") from error


def _rectangle(ring: Ring) -> Ring:
    """A rectangle whose corners, or two opposite ones, are given."""
    if len(ring) != 2:
        return ring
    (left, top), (right, bottom) = ring
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _ellipse(ring: Ring) -> Ring:
    """The ellipse in the bounding box of the given points."""
    if not len(ring):
        return ring
    (left, top), (right, bottom) = ring.min(axis=0), ring.max(axis=0)
    circle = shapely.get_coordinates(shapely.Point(0, 0).buffer(1, quad_segs=_ELLIPSE_VERTICES // 4))
    scaled: Ring = circle * [(right - left) / 2, (bottom - top) / 2] + [(left + right) / 2, (top + bottom) / 2]
    return scaled


def _unknown_type(name: str, kind: str) -> _FileError:
    return _FileError(f"{name}: unknown type {kind!r}", "Draw it as a polygon")


def _number(text: str | float | None, name: str) -> float:
    try:
        # Some locales write a decimal comma.
        value = math.nan if text is None else float(str(text).replace(",", "."))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _FileError(f"{name}: a coordinate is not a number ({text!r})")
    return value
