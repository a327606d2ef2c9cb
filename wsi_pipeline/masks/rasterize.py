"""Polygons to pixels: a pixel is inside where its centre is.

Edges are crossed with the rows of pixel centres (even-odd rule) once; the crossings, sorted by row,
are the index that a band of rows takes its own from. The cost grows with the edges, the rows that
they cross and the area between them, not with bands x polygons.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.geometry import Size


class PolygonRasterizer:
    """Where the border of a valid polygonal geometry crosses the rows of an image of `size`."""

    def __init__(self, geometry: BaseGeometry, pixel: float, size: Size) -> None:
        """`pixel` is the edge of an image pixel in units of the geometry."""
        (x0, y0), (x1, y1) = _edges(geometry, pixel)
        # Row r is crossed where the edge passes r + 0.5: a vertex on a centre line counts once.
        first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, size.height).astype(np.int32)
        stop = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, size.height).astype(np.int32)
        crossing = np.flatnonzero(stop > first)
        counts = (stop - first)[crossing]
        edge = np.repeat(crossing, counts)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts - first[crossing], counts)
        x = x0[edge] + (row + 0.5 - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
        # Pixels from this column on have their centre right of the crossing.
        column = np.clip(np.ceil(x - 0.5), 0, size.width).astype(np.int32)
        order = np.lexsort((column, row))
        self._rows, self._columns = row[order].astype(np.int32), column[order]

    def fill(self, band: NDArray[np.uint8], row: int, value: int) -> None:
        """Set the pixels inside to `value`; `band` (rows, width) begins at row `row` of the image."""
        start, stop = np.searchsorted(self._rows, (row, row + len(band)))
        if start == stop:
            return
        rows, columns = self._rows[start:stop] - row, self._columns[start:stop]
        left, right = int(columns.min()), int(columns.max())
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        across = right - left + 1
        at = (rows - top).astype(np.int64) * across + (columns - left)
        toggles: NDArray[Any] = np.bincount(at, minlength=(bottom - top) * across).astype(np.uint8) & 1
        odd = np.bitwise_xor.accumulate(toggles.reshape(bottom - top, across), axis=1).astype(bool)
        band[top:bottom, left:right][odd[:, :-1]] = value


def _edges(geometry: BaseGeometry, pixel: float) -> NDArray[np.float64]:
    """Both ends of each edge of all rings, (2, 2, n): end, x or y, edge; in pixels."""
    points, ring = shapely.get_coordinates(shapely.get_rings(shapely.get_parts(geometry)), return_index=True)
    points = (points / pixel).T
    joined = np.flatnonzero(ring[1:] == ring[:-1])
    return np.stack((points[:, joined], points[:, joined + 1]))
