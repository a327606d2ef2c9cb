"""Scanline rasterisation of polygons: a pixel is inside where its centre is.

All edges are intersected once with the rows of pixel centres (even-odd rule). The crossings, sorted by row, serve as an
index for bands of rows. The cost grows with the number of edges, the rows they cross and the filled area, but not with
the number of bands times polygons.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.geometry import Size


class PolygonRasterizer:
    """The sorted crossings of a polygon's edges with the pixel rows of an image of `size`."""

    def __init__(self, geometry: BaseGeometry, pixel: float, size: Size) -> None:
        """`geometry` must be valid and polygonal; `pixel` is the width of an image pixel in units of the geometry."""
        (x0, y0), (x1, y1) = _polygon_edges(geometry, pixel)
        # An edge crosses row r where it passes r + 0.5. Half-open ranges count a vertex on a centre line once.
        first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, size.height).astype(np.int32)
        stop = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, size.height).astype(np.int32)
        crossing = np.flatnonzero(stop > first)
        counts = (stop - first)[crossing]
        edge = np.repeat(crossing, counts)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts - first[crossing], counts)
        x = x0[edge] + (row + 0.5 - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
        # The first column whose pixel centre lies right of the crossing.
        column = np.clip(np.ceil(x - 0.5), 0, size.width).astype(np.int32)
        order = np.lexsort((column, row))
        self._rows = row[order].astype(np.int32)
        self._columns = column[order]

    def fill(self, band: NDArray[np.uint8], row: int, value: int) -> None:
        """Set the pixels inside the polygon to `value`; `band` (rows, width) starts at row `row` of the image."""
        start, stop = np.searchsorted(self._rows, (row, row + len(band)))
        if start == stop:
            return
        rows = self._rows[start:stop] - row
        columns = self._columns[start:stop]
        left, right = int(columns.min()), int(columns.max())
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        width = right - left + 1
        index = (rows - top).astype(np.int64) * width + (columns - left)
        toggles: NDArray[Any] = np.bincount(index, minlength=(bottom - top) * width).astype(np.uint8) & 1
        odd = np.bitwise_xor.accumulate(toggles.reshape(bottom - top, width), axis=1).astype(bool)
        band[top:bottom, left:right][odd[:, :-1]] = value


def _polygon_edges(geometry: BaseGeometry, pixel: float) -> NDArray[np.float64]:
    """The end points of all edges in pixels, (2, 2, n): first or second end, x or y, edge."""
    points, ring = shapely.get_coordinates(shapely.get_rings(shapely.get_parts(geometry)), return_index=True)
    points = (points / pixel).T
    joined = np.flatnonzero(ring[1:] == ring[:-1])
    return np.stack((points[:, joined], points[:, joined + 1]))
