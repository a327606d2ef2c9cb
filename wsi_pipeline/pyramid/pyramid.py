"""Reading slide pyramids (`pyramid.ome.zarr`)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from wsi_pipeline.errors import StoreError
from wsi_pipeline.geometry import Box, Grid, PatchSpec, Size
from wsi_pipeline.pyramid.level import Level, LevelCaches, level_caches
from wsi_pipeline.pyramid.ome_zarr import transformations

# Enough for a row of tiles of 512 px across a slide of 40,000 px.
CACHE_BYTES = 64 << 20
# A level this near to the scale asked for is used as it is: resampling would cost more than it mends.
MPP_TOLERANCE = 0.05
# Rounding in scales must not add a column of pixels that covers next to nothing of the slide.
_SLIVER = 1e-3


class Pyramid:
    """A slide's levels, from the finest; safe to share between threads, to fork and to send to processes."""

    def __init__(self, path: Path, cache_bytes: int = CACHE_BYTES, shared: LevelCaches | None = None) -> None:
        """Open a store; up to `cache_bytes` of decoded chunks are kept, or what `shared` has. Raises `StoreError`."""
        self.path, self._cache_bytes = path, cache_bytes
        try:
            attributes = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: not a pyramid ({error})", remedy="Convert the slide again") from error
        self._scales = [(scale[1], scale[2]) for scale, _ in transformations(attributes, path)]
        kept = shared or level_caches(cache_bytes)
        self.levels = [Level(path / str(k), *kept) for k in range(len(self._scales))]
        self.sizes = [level.size for level in self.levels]
        self.mpps = [(y + x) / 2 for y, x in self._scales]
        # Of an overview, which begins with a coarser level.
        slide = attributes.get("slide")
        self.size = Size(slide["width"], slide["height"]) if slide else self.sizes[0]
        """Size of the slide, in pixels of its level 0."""
        self.mpp: float = slide["mpp"] if slide else self.mpps[0]
        """Scale of the slide's level 0, um per pixel."""

    def __reduce__(self) -> tuple[type[Pyramid], tuple[Path, int]]:
        return type(self), (self.path, self._cache_bytes)

    def read(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Pixels of `box`, in pixels of `level`, as (height, width, 3) uint8; white outside the slide."""
        return self.levels[level].read(box)

    def level_for(self, mpp: float) -> int:
        """The coarsest level that is not coarser than `mpp` (within the tolerance), else level 0."""
        return level_for(self.mpps, mpp)

    def patch_spec(self, size_px: int, mpp: float, *, allow_upsampling: bool = False) -> PatchSpec:
        """How patches of `size_px` pixels at `mpp` are read here; `StoreError` where that is too fine."""
        return patch_spec(self.mpps, size_px, mpp, where=str(self.path), allow_upsampling=allow_upsampling)

    def grid(self, spec: PatchSpec, stride_um: float | None) -> Grid:
        """Patch positions over the whole slide; `stride_um` None is one patch."""
        stride_px = spec.level0_px if stride_um is None else stride_um / self.mpp
        return Grid.over(self.size, spec.level0_px, stride_px)

    def read_patch(self, x: int, y: int, spec: PatchSpec) -> NDArray[np.uint8]:
        """The patch whose top left corner is at level-0 pixel (x, y), as (size_px, size_px, 3) uint8."""
        left, top = self.corners(np.array([x]), np.array([y]), spec)
        pixels = self.read(Box(int(left[0]), int(top[0]), spec.read_px, spec.read_px), spec.level)
        return resample_patch(pixels, spec)

    def corners(
        self, x: NDArray[np.int64], y: NDArray[np.int64], spec: PatchSpec
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pixels of `spec.level` at which patches with their top left corners at level-0 pixels (x, y) begin."""
        scale_y, scale_x = self._scales[spec.level]
        left, top = np.rint(x * self.mpp / scale_x), np.rint(y * self.mpp / scale_y)
        return left.astype(np.int64), top.astype(np.int64)

    def read_patches(self, x: Sequence[int], y: Sequence[int], spec: PatchSpec, threads: int = 1) -> NDArray[np.uint8]:
        """The patches whose top left corners are at the level-0 pixels (x, y), as (n, size_px, size_px, 3) uint8.

        They are read in the order of their chunks, so that neighbours share what is decoded.
        """
        out = np.empty((len(x), spec.size_px, spec.size_px, 3), np.uint8)
        chunk = self.levels[spec.level].grid.chunk
        ratio = self.mpps[spec.level] / self.mpp
        across, down = chunk.width * ratio, chunk.height * ratio
        order = sorted(range(len(x)), key=lambda k: (y[k] // down, x[k] // across, y[k], x[k]))

        def read(part: Sequence[int]) -> None:
            for k in part:
                out[k] = self.read_patch(x[k], y[k], spec)

        step = max(1, -(-len(order) // threads))
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, [order[k : k + step] for k in range(0, len(order), step)]))
        return out

    def read_scaled(self, box: Box, mpp: float) -> NDArray[np.uint8]:
        """Pixels of `box`, in pixels of a virtual image at `mpp` that starts at the slide's corner.

        Each pixel is the mean over its area (the nearest pixel where the slide is coarser than
        `mpp`), so that the result does not depend on how the slide is cut into boxes; white outside
        the slide.
        """
        level = self.level_for(mpp)
        ratio_y, ratio_x = (mpp / scale for scale in self._scales[level])
        if min(ratio_y, ratio_x) < 1:
            return self._read_nearest(box, level, ratio_y, ratio_x)
        rows = _edges(box.y, box.bottom, ratio_y)
        columns = _edges(box.x, box.right, ratio_x)
        source = Box(columns[0], rows[0], columns[-1] - columns[0], rows[-1] - rows[0])
        pixels = self.read(source, level)
        across, down = np.diff(columns), np.diff(rows)
        if across.max() == down.max() == 1:
            return pixels
        sums = _summed(_summed(pixels, rows - rows[0], 0), columns - columns[0], 1)
        counts = down[:, None, None] * across[None, :, None]
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
            width=max(1, math.ceil(self.size.width * self.mpp / mpp - _SLIVER)),
            height=max(1, math.ceil(self.size.height * self.mpp / mpp - _SLIVER)),
        )

    def thumbnail(self, longest_px: int) -> tuple[NDArray[np.uint8], float]:
        """The whole slide in at most `longest_px` pixels, and its scale in um per pixel."""
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
    """The coarsest of the levels with the scales `mpps` that is not coarser than `mpp` (within the tolerance)."""
    fine_enough = [k for k, m in enumerate(mpps) if m <= mpp * (1 + MPP_TOLERANCE)]
    return fine_enough[-1] if fine_enough else 0


def patch_spec(
    mpps: Sequence[float], size_px: int, mpp: float, *, where: str, allow_upsampling: bool = False
) -> PatchSpec:
    """How patches of `size_px` pixels at `mpp` are read from levels with the scales `mpps`.

    Raises `StoreError`, naming `where`, where the finest level is coarser than that.
    """
    level = level_for(mpps, mpp)
    own = mpps[level]
    if own > mpp * (1 + MPP_TOLERANCE) and not allow_upsampling:
        raise StoreError(
            f"{where}: the slide has {own:.4g} um per pixel, coarser than the {mpp:.4g} asked for",
            remedy="Use a model and patches of a coarser mpp, take the slide out of the sheet or, if only its heatmap "
            "is wanted, set heatmap.allow_upsampling (--allow-upsampling)",
        )
    native = abs(own - mpp) <= MPP_TOLERANCE * mpp
    real = own if native else mpp
    return PatchSpec(
        size_px=size_px,
        mpp=real,
        level=level,
        read_px=size_px if native else max(1, round(size_px * mpp / own)),
        level0_px=size_px * real / mpps[0],
        um=size_px * real,
    )


def _summed(values: NDArray[Any], edges: NDArray[np.int64], axis: int) -> NDArray[np.uint32]:
    """Sums of the values from each edge up to the next; all parts have the same length or one more."""
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
    """What was read for a patch, (read_px, read_px, 3) uint8, at the patch's own size, anti-aliased."""
    if spec.read_px == spec.size_px:
        return pixels
    size = (spec.size_px, spec.size_px)
    return np.asarray(Pillow.fromarray(pixels).resize(size, Pillow.Resampling.BICUBIC))
