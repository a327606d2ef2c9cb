"""GeoJSON as QuPath 0.2 to 0.6 exports it: RFC 7946, with objects of several types that may hold child objects.

Source: QuPath's PathObjectTypeAdapters and GsonTools (https://github.com/qupath/qupath).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.masks.outlines import EXPORT_AGAIN, FileContent, LeftOut, Outline, ring_of, unreadable

# Types of objects that are no annotations, with the class names that QuPath 0.2 wrote as the id instead.
_OTHER_OBJECTS = {
    "detection": "detection",
    "PathDetectionObject": "detection",
    "cell": "cell",
    "PathCellObject": "cell",
    "tile": "tile",
    "PathTileObject": "tile",
    "tmaCore": "TMA core",
    "tma_core": "TMA core",
    "TMACoreObject": "TMA core",
    "root": "root object",
    "PathRootObject": "root object",
}


def read_geojson(slide: str, path: Path) -> FileContent:
    """All annotations of a file; detections, cells, tiles, TMA cores, points and lines are left out.

    The class of an object is its group; that of a derived class is written as in QuPath, `Tumor: Positive`. Raises
    `AnnotationError`.
    """
    try:
        content = json.loads(path.read_bytes(), object_hook=_convert_rings)
    except OSError as error:
        raise unreadable(slide, path, error) from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(slide, path, f"not JSON ({error})", remedy=EXPORT_AGAIN) from error
    # QuPath crops a slide to its bounds, and counts from their corner.
    found = FileContent("QuPath GeoJSON", origin="bounds")
    try:
        for number, feature in enumerate(_objects(content), start=1):
            _add(found, number, feature)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AnnotationError(
            slide,
            path,
            f"not GeoJSON as QuPath writes it ({error!r})",
            remedy="Export it from QuPath with File > Export objects as GeoJSON",
        ) from error
    return found


def _convert_rings(found: dict[str, Any]) -> dict[str, Any]:
    """JSON object hook: convert rings to arrays during parsing, as nested lists take ten times the memory."""
    try:
        if found.get("type") == "Polygon":
            return found | {"coordinates": [ring_of(ring) for ring in found["coordinates"]]}
        if found.get("type") == "MultiPolygon":
            return found | {"coordinates": [[ring_of(ring) for ring in polygon] for polygon in found["coordinates"]]}
    except (KeyError, TypeError, ValueError):
        # `_polygons` reports the malformed geometry with its context.
        pass
    return found


def _objects(content: Any) -> Iterator[dict[str, Any]]:
    """All objects with their child objects, of a FeatureCollection, a list of features or one feature."""
    if isinstance(content, list):
        features = content
    elif content["type"] == "FeatureCollection":
        features = content["features"]
    elif content["type"] == "Feature":
        features = [content]
    else:
        raise ValueError(f"type {content['type']}")
    remaining = list(reversed(features))
    while remaining:
        feature = remaining.pop()
        yield feature
        children = _properties(feature).get("childObjects") or feature.get("childObjects") or []
        remaining += reversed(children)


def _properties(feature: dict[str, Any]) -> dict[str, Any]:
    return feature.get("properties") or {}


def _add(found: FileContent, number: int, feature: dict[str, Any]) -> None:
    group = _class_name(feature)
    kind = _other_object(feature)
    if kind is not None:
        found.left_out[LeftOut(group, f"{kind}, no annotation")] += 1
        return
    name = f"object {number}"
    for part in _geometries(feature["geometry"]):
        if part["type"] == "Polygon":
            polygons = [part["coordinates"]]
        elif part["type"] == "MultiPolygon":
            polygons = part["coordinates"]
        else:
            found.left_out[LeftOut(group, f"{part['type']}, no area")] += 1
            continue
        found.outlines += [Outline(group, name, tuple(map(ring_of, polygon))) for polygon in polygons]


def _class_name(feature: dict[str, Any]) -> str:
    classification = _properties(feature).get("classification") or ""
    if isinstance(classification, dict):
        # A derived class has the names of its bases, and since QuPath 0.4 no name of its own.
        return ": ".join(classification.get("names") or [classification.get("name") or ""])
    # Other programs write the name alone.
    return str(classification)


def _other_object(feature: dict[str, Any]) -> str | None:
    """The type of an object that is no annotation; None for annotations and, as in QuPath, for all unknown types."""
    properties = _properties(feature)
    kind = properties.get("objectType") or properties.get("object_type") or feature.get("id")
    return _OTHER_OBJECTS.get(str(kind))


def _geometries(geometry: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if geometry is None:
        yield {"type": "no geometry"}
    elif geometry["type"] == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _geometries(part)
    else:
        yield geometry
