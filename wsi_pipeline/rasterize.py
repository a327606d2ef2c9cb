"""Polygons to pixels: a pixel is inside where its centre is.

Edges are crossed with pixel rows (even-odd rule); the cost grows with the edges and rows that they
touch and with the area that is written, not with polygons x pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry


class Edges:
    """The edges of a valid polygonal geometry in pixels of the image to draw, sorted by their top."""

    def __init__(self, geometry: BaseGeometry, pixel: float) -> None:
        """`pixel` is the edge of an image pixel in units of the geometry."""
        rings = shapely.get_rings(shapely.get_parts(geometry))
        points = [shapely.get_coordinates(ring) / pixel for ring in rings]
        start = np.concatenate([p[:-1] for p in points]) if points else np.empty((0, 2))
        end = np.concatenate([p[1:] for p in points]) if points else np.empty((0, 2))
        upward = start[:, 1] > end[:, 1]
        top, bottom = np.where(upward[:, None], end, start), np.where(upward[:, None], start, end)
        # Row r is crossed where top <= r + 0.5 < bottom: a vertex on a centre line counts once.
        first = np.ceil(top[:, 1] - 0.5).astype(np.int64)
        stop = np.ceil(bottom[:, 1] - 0.5).astype(np.int64)
        crossed = stop > first
        order = np.argsort(first[crossed], kind="stable")
        self._top, self._bottom = top[crossed][order], bottom[crossed][order]
        self._first, self._stop = first[crossed][order], stop[crossed][order]

    def fill(self, row: int, rows: int, width: int) -> NDArray[np.bool_]:
        """Rows `row` to `row + rows` of the image, (rows, width) bool."""
        near = np.searchsorted(self._first, row + rows, side="left")
        touched = np.flatnonzero(self._stop[:near] > row)
        first = np.maximum(self._first[touched], row)
        counts = np.minimum(self._stop[touched], row + rows) - first
        edge = np.repeat(touched, counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        crossed = np.repeat(first, counts) + within
        (x0, y0), (x1, y1) = self._top[edge].T, self._bottom[edge].T
        x = x0 + (crossed + 0.5 - y0) * (x1 - x0) / (y1 - y0)
        column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        toggles: NDArray[Any] = np.bincount((crossed - row) * (width + 1) + column, minlength=rows * (width + 1))
        odd = np.cumsum(toggles.reshape(rows, width + 1)[:, :width], axis=1) & 1
        return odd.astype(bool)
