"""Sizes, boxes and grids.

Tables and annotations use level-0 pixels. A `Box` is in pixels of a level, which each function that takes one states.
Lengths in micrometres end in `_um`; scales are named `mpp` (um per pixel).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels of a level; (`x`, `y`) is its top left corner."""

    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height

    def clipped(self, size: Size) -> Box:
        """The intersection with an image of `size`; width or height is 0 where it is empty."""
        return self.intersection(Box(0, 0, size.width, size.height))

    def intersection(self, other: Box) -> Box:
        """What lies in both boxes; width or height is 0 where that is nothing."""
        x = min(max(self.x, other.x), other.right)
        y = min(max(self.y, other.y), other.bottom)
        right = min(max(self.right, x), other.right)
        bottom = min(max(self.bottom, y), other.bottom)
        return Box(x, y, right - x, bottom - y)


@dataclass(frozen=True, slots=True)
class PatchSpec:
    """How to read a patch of `size_px` x `size_px` pixels at `mpp` from one slide.

    The same square spans `size_px` / `factor` pixels of `level`, `level0_px` pixels of level 0, and `um` micrometres;
    `read_px` is the number of pixels that are read, rounded up. `mpp` is the actual scale of the patch: that of the
    level where it is within tolerance of the requested scale, so that nothing is resampled (`factor` 1); otherwise the
    requested scale. `factor` is above 1 where pixels are upsampled.
    """

    size_px: int
    mpp: float
    level: int
    read_px: int
    level0_px: float
    um: float
    factor: float


@dataclass(frozen=True, slots=True)
class Grid:
    """Patch positions on a slide: `columns` x `rows`, `stride_px` level-0 pixels apart.

    The last column and row may reach beyond the slide, so that the grid covers all of it.
    """

    columns: int
    rows: int
    stride_px: float
    patch_px: float

    @classmethod
    def over(cls, slide: Size, patch_px: float, stride_px: float) -> Grid:
        """The grid that covers a slide of `slide` level-0 pixels."""
        return cls(
            columns=_positions(slide.width, patch_px, stride_px),
            rows=_positions(slide.height, patch_px, stride_px),
            stride_px=stride_px,
            patch_px=patch_px,
        )

    def x(self) -> NDArray[np.int64]:
        """Left edge of each column in level-0 pixels, (columns,)."""
        return _edges(self.columns, self.stride_px)

    def y(self) -> NDArray[np.int64]:
        """Top edge of each row in level-0 pixels, (rows,)."""
        return _edges(self.rows, self.stride_px)


def _positions(length: int, patch_px: float, stride_px: float) -> int:
    # Add a last patch only where more than half a pixel remains, so that rounding errors add none.
    return 1 + max(0, math.ceil((length - patch_px - 0.5) / stride_px))


def _edges(count: int, stride_px: float) -> NDArray[np.int64]:
    edges: NDArray[np.int64] = np.rint(np.arange(count) * stride_px).astype(np.int64)
    return edges
