"""GeoJSON annotations for QuPath, whose coordinates count from the slide's scanned bounds.

Format: RFC 7946, with the properties of QuPath's export (https://qupath.readthedocs.io).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.affinity import translate
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
    """A QuPath annotation with a class, and optionally a name and measurements.

    `geometry`, in level-0 pixels, remains one until `write_features` writes it.
    """
    properties: dict[str, Any] = {
        "objectType": "annotation",
        "classification": {"name": classification, "color": list(color)},
    }
    if name is not None:
        properties["name"] = name
    if measurements is not None:
        properties["measurements"] = dict(measurements)
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def write_features(path: Path, features: Iterable[Feature], origin: tuple[int, int]) -> None:
    """Write a FeatureCollection with coordinates from the level-0 pixel `origin` (x, y), that of QuPath.

    Atomically, and one feature at a time, as outlines may have millions of points.
    """
    with atomic_output(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for item in features:
            geometry = translate(item["geometry"], -origin[0], -origin[1])
            written = {**item, "geometry": json.loads(shapely.to_geojson(geometry))}
            file.write(separator + json.dumps(written, allow_nan=False))
            separator = ",\n"
        file.write("\n]}\n")


def polygon_parts(geometry: BaseGeometry) -> list[BaseGeometry]:
    """The non-empty polygons of a geometry."""
    return [part for part in shapely.get_parts(geometry).tolist() if part.geom_type == "Polygon" and not part.is_empty]


def cells_polygon(cells: NDArray[np.bool_], stride_px: float, first_px: float) -> BaseGeometry:
    """Outline the set cells of a grid, (rows, columns) bool, as polygons in level-0 pixels.

    Cells are `stride_px` wide; the first one starts at `first_px` in x and y.
    """
    if not cells.any():
        return shapely.Polygon()
    padded = np.pad(cells, ((0, 0), (1, 1))).astype(np.int8)
    rows, starts = np.nonzero(np.diff(padded, axis=1) == 1)
    _, stops = np.nonzero(np.diff(padded, axis=1) == -1)
    left, top, right, bottom = (first_px + stride_px * edge for edge in (starts, rows, stops, rows + 1))
    runs = shapely.box(left, top, right, bottom)
    return shapely.union_all(runs)
