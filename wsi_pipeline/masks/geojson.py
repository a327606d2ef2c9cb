"""Areas and points as GeoJSON that QuPath opens as annotations; coordinates are level-0 pixels.

Format: RFC 7946, with the properties of QuPath's own export (https://qupath.readthedocs.io).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.io.atomic import atomic_output

Feature = dict[str, Any]
Color = tuple[int, int, int]


def feature(
    geometry: BaseGeometry,
    classification: str,
    color: Color,
    *,
    name: str | None = None,
    measurements: Mapping[str, float] | None = None,
) -> Feature:
    """An annotation of a class."""
    properties: dict[str, Any] = {
        "objectType": "annotation",
        "classification": {"name": classification, "color": list(color)},
    }
    if name is not None:
        properties["name"] = name
    if measurements is not None:
        properties["measurements"] = dict(measurements)
    return {"type": "Feature", "geometry": json.loads(shapely.to_geojson(geometry)), "properties": properties}


def write_features(path: Path, features: Iterable[Feature]) -> None:
    """Write a collection atomically, one feature at a time: outlines of a slide may have millions of points."""
    with atomic_output(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        between = "\n"
        for one in features:
            file.write(between + json.dumps(one, allow_nan=False))
            between = ",\n"
        file.write("\n]}\n")


def polygon_parts(geometry: BaseGeometry) -> list[BaseGeometry]:
    """The polygons of an area, one by one."""
    return [part for part in shapely.get_parts(geometry).tolist() if part.geom_type == "Polygon" and not part.is_empty]


def cells_polygon(cells: NDArray[np.bool_], stride_px: float, first_px: float) -> BaseGeometry:
    """The area of cells of a grid, (rows, columns), each `stride_px` wide; the first one begins at `first_px`."""
    if not cells.any():
        return shapely.Polygon()
    padded = np.pad(cells, ((0, 0), (1, 1))).astype(np.int8)
    rows, starts = np.nonzero(np.diff(padded, axis=1) == 1)
    _, stops = np.nonzero(np.diff(padded, axis=1) == -1)
    left, top, right, bottom = (first_px + stride_px * edge for edge in (starts, rows, stops, rows + 1))
    runs = shapely.box(left, top, right, bottom)
    found: BaseGeometry = shapely.union_all(runs)
    return found
