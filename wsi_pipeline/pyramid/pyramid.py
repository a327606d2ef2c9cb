"""Read slide pyramids (`pyramid.ome.zarr`)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from wsi_pipeline.errors import StoreError
from wsi_pipeline.geometry import Box, Grid, PatchSpec, Size
from wsi_pipeline.pyramid.level import Level, LevelCaches, level_caches
from wsi_pipeline.pyramid.ome_zarr import transformations

# Holds a row of tiles of 512 px across a slide of 40,000 px.
CACHE_BYTES = 64 << 20
# Relative deviation from the requested mpp up to which a level is read without resampling.
MPP_TOLERANCE = 0.05
# Up to this relative deviation a coarser slide is upsampled to the requested mpp: scanners of one magnification differ
# that much (0.22 to 0.27 um per pixel at 40x).
MAX_UPSAMPLING = 0.2
# Without it, rounding errors of the scale could add a row or column of pixels that covers almost none of the slide.
_SIZE_TOLERANCE_PX = 1e-3


class Pyramid:
    """The levels of a slide, finest first; thread-safe, fork-safe and picklable."""

    def __init__(self, path: Path, cache_bytes: int = CACHE_BYTES, shared: LevelCaches | None = None) -> None:
        """Open a store with a cache of `cache_bytes` for chunks, or with `shared` caches. Raises `StoreError`."""
        self.path = path
        self._cache_bytes = cache_bytes
        try:
            attributes = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
            slide = attributes["slide"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: not a pyramid ({error})", remedy="Convert the slide again") from error
        self._scales = [(scale[1], scale[2]) for scale, _ in transformations(attributes, path)]
        kept = shared or level_caches(cache_bytes)
        self.levels = [Level(path / str(k), *kept) for k in range(len(self._scales))]
        self.sizes = [level.size for level in self.levels]
        self.mpps = [(y + x) / 2 for y, x in self._scales]
        self.size = Size(slide["width"], slide["height"])
        """Size of the slide in level-0 pixels; an overview store starts with a coarser level."""
        self.mpp: float = slide["mpp"]
        """Scale of level 0 of the slide, um per pixel."""
        self.bounds = Box(*slide["bounds"]) if slide["bounds"] else None
        """What was scanned of the slide, in level-0 pixels, where its format says so; the rest is white."""

    def __reduce__(self) -> tuple[type[Pyramid], tuple[Path, int]]:
        return type(self), (self.path, self._cache_bytes)

    def read(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Read `box`, in pixels of `level`, as (height, width, 3) uint8; white outside. Raises `StoreError`."""
        return self.levels[level].read(box)

    def patch_spec(self, size_px: int, mpp: float, *, allow_upsampling: bool = False) -> PatchSpec:
        """How to read patches of `size_px` pixels at `mpp`. Raises `StoreError` where level 0 is coarser."""
        return patch_spec(self.mpps, size_px, mpp, where=str(self.path), allow_upsampling=allow_upsampling)

    def grid(self, spec: PatchSpec, stride_um: float | None) -> Grid:
        """Patch positions over the whole slide; the stride is one patch where `stride_um` is None."""
        stride_px = spec.level0_px if stride_um is None else stride_um / self.mpp
        return Grid.over(self.size, spec.level0_px, stride_px)

    def read_patch(self, x: int, y: int, spec: PatchSpec) -> NDArray[np.uint8]:
        """Read the patch with its top left corner at level-0 pixel (x, y) as (size_px, size_px, 3) uint8."""
        left, top = self.corners(np.array([x]), np.array([y]), spec)
        pixels = self.read(Box(int(left[0]), int(top[0]), spec.read_px, spec.read_px), spec.level)
        return resample_patch(pixels, spec)

    def corners(
        self, x: NDArray[np.int64], y: NDArray[np.int64], spec: PatchSpec
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Convert top left corners from level-0 pixels (x, y) to pixels of `spec.level`."""
        scale_y, scale_x = self._scales[spec.level]
        left, top = np.rint(x * self.mpp / scale_x), np.rint(y * self.mpp / scale_y)
        return left.astype(np.int64), top.astype(np.int64)

    def read_patches(self, x: Sequence[int], y: Sequence[int], spec: PatchSpec) -> NDArray[np.uint8]:
        """Read patches with top left corners at level-0 pixels (x, y) as (n, size_px, size_px, 3) uint8.

        They are read in chunk order, so that neighbours share decoded chunks.
        """
        out = np.empty((len(x), spec.size_px, spec.size_px, 3), np.uint8)
        chunk = self.levels[spec.level].grid.chunk
        ratio = self.mpps[spec.level] / self.mpp
        width, height = chunk.width * ratio, chunk.height * ratio
        for k in sorted(range(len(x)), key=lambda k: (y[k] // height, x[k] // width, y[k], x[k])):
            out[k] = self.read_patch(x[k], y[k], spec)
        return out

    def read_scaled(self, box: Box, mpp: float) -> NDArray[np.uint8]:
        """Read `box`, in pixels of a virtual image at `mpp` that starts at the slide's top left corner.

        Returns (height, width, 3) uint8; white outside the slide. Each pixel is the mean over its area, or the
        nearest pixel where the slide is coarser than `mpp`. The result does not depend on the division into boxes.
        """
        level = level_for(self.mpps, mpp)
        ratio_y, ratio_x = (mpp / scale for scale in self._scales[level])
        if min(ratio_y, ratio_x) < 1:
            return self._read_nearest(box, level, ratio_y, ratio_x)
        rows = _edges(box.y, box.bottom, ratio_y)
        columns = _edges(box.x, box.right, ratio_x)
        source = Box(columns[0], rows[0], columns[-1] - columns[0], rows[-1] - rows[0])
        pixels = self.read(source, level)
        widths, heights = np.diff(columns), np.diff(rows)
        if widths.max() == heights.max() == 1:
            return pixels
        sums = _sums_between(_sums_between(pixels, rows - rows[0], 0), columns - columns[0], 1)
        counts = heights[:, None, None] * widths[None, :, None]
        means: NDArray[np.uint8] = ((sums + counts // 2) // counts).astype(np.uint8)
        return means

    def _read_nearest(self, box: Box, level: int, ratio_y: float, ratio_x: float) -> NDArray[np.uint8]:
        rows = ((np.arange(box.y, box.bottom) + 0.5) * ratio_y).astype(np.int64)
        columns = ((np.arange(box.x, box.right) + 0.5) * ratio_x).astype(np.int64)
        source = Box(columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
        pixels = self.read(source, level)
        picked: NDArray[np.uint8] = pixels[(rows - rows[0])[:, None], (columns - columns[0])[None, :]]
        return picked

    def size_at(self, mpp: float) -> Size:
        """Size of the virtual image at `mpp` that covers the slide."""
        return Size(
            width=max(1, math.ceil(self.size.width * self.mpp / mpp - _SIZE_TOLERANCE_PX)),
            height=max(1, math.ceil(self.size.height * self.mpp / mpp - _SIZE_TOLERANCE_PX)),
        )

    def thumbnail(self, longest_px: int) -> tuple[NDArray[np.uint8], float]:
        """The whole slide with at most `longest_px` pixels along its longer edge, and its scale in um per pixel."""
        extent = max(self.size.width, self.size.height) * self.mpp
        mpp = max(extent / longest_px, self.mpps[0])
        size = self.size_at(mpp)
        band = 256
        rows = [
            self.read_scaled(Box(0, y, size.width, min(band, size.height - y)), mpp)
            for y in range(0, size.height, band)
        ]
        return np.concatenate(rows), mpp


def level_for(mpps: Sequence[float], mpp: float) -> int:
    """The coarsest level of scales `mpps` that is at least as fine as `mpp`, within `MPP_TOLERANCE`; else level 0."""
    fine_enough = [k for k, m in enumerate(mpps) if m <= mpp * (1 + MPP_TOLERANCE)]
    return fine_enough[-1] if fine_enough else 0


def patch_spec(
    mpps: Sequence[float], size_px: int, mpp: float, *, where: str, allow_upsampling: bool = False
) -> PatchSpec:
    """How to read patches of `size_px` pixels at `mpp` from levels with the scales `mpps`.

    Raises `StoreError`, naming `where`, where the finest level is more than 20 % coarser than `mpp`.
    """
    level = level_for(mpps, mpp)
    level_mpp = mpps[level]
    if level_mpp > mpp * (1 + MAX_UPSAMPLING) and not allow_upsampling:
        raise StoreError(
            f"{where}: the slide has {level_mpp:.4g} um per pixel, more than {100 * MAX_UPSAMPLING:g} % coarser than "
            f"the requested {mpp:.4g}",
            remedy="Use a model and patches of a coarser mpp, take the slide out of the sheet or, if only its heatmap "
            "is wanted, set heatmap.allow_upsampling (--allow-upsampling)",
        )
    native = abs(level_mpp - mpp) <= MPP_TOLERANCE * mpp
    patch_mpp = level_mpp if native else mpp
    return PatchSpec(
        size_px=size_px,
        mpp=patch_mpp,
        level=level,
        read_px=size_px if native else math.ceil(size_px * mpp / level_mpp - _SIZE_TOLERANCE_PX),
        level0_px=size_px * patch_mpp / mpps[0],
        um=size_px * patch_mpp,
        factor=level_mpp / patch_mpp,
    )


def _sums_between(values: NDArray[Any], edges: NDArray[np.int64], axis: int) -> NDArray[np.uint32]:
    """Sums of the values between consecutive edges along `axis`. Lengths may differ by at most one."""
    lengths = np.diff(edges)
    shortest = int(lengths.min())
    sums = values.take(edges[:-1], axis).astype(np.uint32)
    for k in range(1, shortest):
        sums += values.take(edges[:-1] + k, axis)
    longer = np.flatnonzero(lengths > shortest)
    if len(longer):
        where = (longer,) if axis == 0 else (slice(None), longer)
        sums[where] += values.take(edges[longer] + shortest, axis)
    return sums


def _edges(start: int, stop: int, ratio: float) -> NDArray[np.int64]:
    edges: NDArray[np.int64] = np.rint(np.arange(start, stop + 1) * ratio).astype(np.int64)
    return edges


def resample_patch(pixels: NDArray[np.uint8], spec: PatchSpec) -> NDArray[np.uint8]:
    """Resample (read_px, read_px, 3) uint8 to the size of the patch: bicubic with anti-aliasing."""
    if spec.factor == 1:
        return pixels
    size, edge = (spec.size_px, spec.size_px), min(spec.size_px / spec.factor, spec.read_px)
    # Not all that was read: rounding to whole pixels would change the scale, and differently with a border.
    picture = Pillow.fromarray(pixels).resize(size, Pillow.Resampling.BICUBIC, box=(0, 0, edge, edge))
    return np.asarray(picture)
