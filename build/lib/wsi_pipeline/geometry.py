"""Sizes, boxes and grids.

Level-0 pixels are the coordinates of every table and annotation. A `Box` is in pixels of the level
that the function taking it names. Micrometres carry `_um`, scales are `mpp` (um per pixel).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MPP_RANGE = (0.05, 50.0)


def is_plausible_mpp(mpp: float | None) -> bool:
    """Whether `mpp` can be the spacing of a scanned slide."""
    return mpp is not None and math.isfinite(mpp) and MPP_RANGE[0] <= mpp <= MPP_RANGE[1]


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels of some level; `x`, `y` is its top left corner."""

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
        """The part inside an image of `size`; empty boxes have width or height 0."""
        x, y = min(max(self.x, 0), size.width), min(max(self.y, 0), size.height)
        right = min(max(self.right, x), size.width)
        bottom = min(max(self.bottom, y), size.height)
        return Box(x, y, right - x, bottom - y)


def tiles(size: Size, step: int) -> list[Box]:
    """Boxes of at most `step` x `step` pixels that cover an image, row by row."""
    return [
        Box(x, y, min(step, size.width - x), min(step, size.height - y))
        for y in range(0, size.height, step)
        for x in range(0, size.width, step)
    ]


@dataclass(frozen=True, slots=True)
class PatchSpec:
    """How a patch of `size_px` pixels at `mpp` is read from one slide.

    `read_px` pixels of `level` cover the same square of tissue, which spans `level0_px` pixels of
    level 0 and `um` micrometres. `mpp` is what the patch really has: that of the level where the
    level is near enough to what was asked for, else what was asked for.
    """

    size_px: int
    mpp: float
    level: int
    read_px: int
    level0_px: float
    um: float


@dataclass(frozen=True, slots=True)
class Grid:
    """Patch positions on a slide: `columns` x `rows`, `stride_px` level-0 pixels apart.

    The last column and row may reach over the edge of the slide, so that all of it is covered.
    """

    columns: int
    rows: int
    stride_px: float
    patch_px: float

    @classmethod
    def over(cls, slide: Size, patch_px: float, stride_px: float) -> Grid:
        """The grid that covers a slide of level-0 size `slide`."""
        return cls(
            columns=_positions(slide.width, patch_px, stride_px),
            rows=_positions(slide.height, patch_px, stride_px),
            stride_px=stride_px,
            patch_px=patch_px,
        )

    def x(self) -> NDArray[np.int64]:
        """Left edge of each column, level-0 pixels."""
        return _starts(self.columns, self.stride_px)

    def y(self) -> NDArray[np.int64]:
        """Top edge of each row, level-0 pixels."""
        return _starts(self.rows, self.stride_px)


def _positions(length: int, patch_px: float, stride_px: float) -> int:
    # A last patch is added only where it covers at least one whole pixel that the others leave.
    return 1 + max(0, math.ceil((length - patch_px - 0.5) / stride_px))


def _starts(count: int, stride_px: float) -> NDArray[np.int64]:
    starts: NDArray[np.int64] = np.rint(np.arange(count) * stride_px).astype(np.int64)
    return starts
