"""What an annotation file holds, whatever its format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.config.base import Origin
from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.geometry import Box, Size

Ring = NDArray[np.float64]

EXPORT_AGAIN = "Export the annotation again"


@dataclass(frozen=True, slots=True)
class Canvas:
    """The level 0 of a slide: size, scale in um per pixel, downsample factors of its levels, and the scanned part."""

    size: Size
    mpp: float
    downsamples: tuple[float, ...] = (1.0,)
    bounds: Box | None = None

    def corner(self, origin: Origin) -> tuple[int, int]:
        """The level-0 pixel that coordinates from `origin` are counted from."""
        return (0, 0) if origin == "canvas" or self.bounds is None else (self.bounds.x, self.bounds.y)


@dataclass(frozen=True, slots=True)
class Outline:
    """One annotated area in pixels of level 0, as the file has it: an outer ring (n, 2), then holes.

    `group` is the group, layer or class in the file, `name` says which outline it is. `is_negative` marks an area that
    is taken out of the other areas of the same `layer`, and of no other.
    """

    group: str
    name: str
    rings: tuple[Ring, ...]
    layer: int = 0
    is_negative: bool = False


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why an object of a file is no outline."""

    group: str
    reason: str


@dataclass(slots=True)
class FileContent:
    """The outlines of a file, and its other objects, counted.

    `origin` is the corner that the program of this format counts from: that of the canvas or of the scanned bounds.
    `parents` has the group that a group is part of, where groups are nested.
    """

    format: str
    origin: Origin = "canvas"
    outlines: list[Outline] = field(default_factory=list)
    left_out: Counter[LeftOut] = field(default_factory=Counter)
    parents: dict[str, str] = field(default_factory=dict)


def ring_of(points: Any) -> Ring:
    """Vertices as (n, 2) float64; further coordinates of a vertex are dropped. Raises `ValueError`."""
    if not len(points):
        return np.empty((0, 2))
    ring = np.array(points, np.float64).reshape(len(points), -1)[:, :2]
    if not np.isfinite(ring).all():
        raise ValueError("a coordinate is not finite")
    return ring


def unreadable(slide: str, path: Path, error: OSError) -> AnnotationError:
    """The error for a file that cannot be opened."""
    return AnnotationError(
        slide, path, f"cannot be read ({error.strerror})", remedy="Correct the sheet's column annotation"
    )
