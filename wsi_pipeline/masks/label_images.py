"""Label images of tissue and truth, and their values for patches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.config import PatchesOptions, PatchLevelOptions
from wsi_pipeline.geometry import Grid
from wsi_pipeline.morphology import BAND_PX, MappedRows, Rows, bands
from wsi_pipeline.pyramid.ome_zarr import IMAGE_SHARD_PX, Image, LabelValue, StoredImage, new_image

Floats = NDArray[np.floating[Any]]
AnyImage = Image | StoredImage

# Tumour that is ignored is TUMOR | IGNORE: it is not scored, but lesions consist of it too.
NORMAL, TUMOR, IGNORE = 0, 1, 2
_ROUNDING_PX = 1e-6
# Larger label images are reduced for pictures; in a pixel of those the label of the highest rank wins.
_OVERVIEW_PIXELS = 1 << 25
_LABEL_OF_RANK = np.array([NORMAL, IGNORE, TUMOR], np.uint8)
_RANK_OF_LABEL = np.array([0, 2, 1, 1], np.uint8)
TISSUE_LABELS = (LabelValue(1, "tissue", (0, 114, 178, 96)),)
TRUTH_LABELS = (
    LabelValue(NORMAL, "normal", (0, 0, 0, 0)),
    LabelValue(TUMOR, "tumor", (230, 25, 25, 128)),
    LabelValue(IGNORE, "ignore", (128, 128, 128, 128)),
    LabelValue(TUMOR | IGNORE, "ignored tumor", (179, 77, 77, 128)),
)


def is_tissue(tissue: AnyImage) -> Rows:
    """Where a tissue mask is set, (h, w) bool, read in bands."""
    return MappedRows(tissue.data, lambda values: values > 0)


def is_scored_tumor(truth: AnyImage) -> Rows:
    """Where a truth image is tumour that is not ignored, (h, w) bool, read in bands."""
    return MappedRows(truth.data, lambda values: values == TUMOR)


def is_ignored(truth: AnyImage) -> Rows:
    """Where a truth image is ignored, tumour or not, (h, w) bool, read in bands."""
    return MappedRows(truth.data, lambda values: values >= IGNORE)


class AreaFractions:
    """Fraction of boxes that a mask covers, from a summed-area table; exact for boxes at fractional positions.

    `mask` is a boolean image (y, x) with pixels `mpp` um wide; pixels outside it count as False. It is read in bands,
    and only the entries of the table that are used are kept.
    """

    def __init__(self, mask: Rows, mpp: float) -> None:
        self._mask = mask
        self._mpp = mpp

    def of(self, x_um: Floats, y_um: Floats, edge_um: float) -> Floats:
        """Covered fraction of squares of `edge_um` with top left corners at (x_um, y_um), (len(y), len(x))."""
        rows, columns = len(y_um), len(x_um)
        edges = (np.concatenate((um, um + edge_um)) for um in (y_um, x_um))
        table = self._at(*(np.clip(um / self._mpp, 0, self._mask.shape[axis]) for axis, um in enumerate(edges)))
        area = (edge_um / self._mpp) ** 2
        total = table[rows:, columns:] - table[:rows, columns:] - table[rows:, :columns] + table[:rows, :columns]
        # Snap rounding errors to exactly 0 and 1: thresholds compare with > 0 and >= 1.
        total = np.where(total < _ROUNDING_PX, 0.0, np.where(total > area - _ROUNDING_PX, area, total))
        fractions: Floats = total / area
        return fractions

    def _at(self, y: Floats, x: Floats) -> Floats:
        """The table at fractional positions, (len(y), len(x))."""
        # The integral is bilinear within a mask pixel, so bilinear interpolation of the table is exact.
        height, width = self._mask.shape
        y0, x0 = (np.minimum(at.astype(np.int64), length - 1) for at, length in ((y, height), (x, width)))
        fy, fx = (y - y0)[:, None], (x - x0)[None, :]
        # Columns of the table that are used, and those at its borders.
        used = np.unique(np.concatenate(([0, width], x0, x0 + 1)))
        left, right = np.searchsorted(used, (x0, x0 + 1))
        found = np.empty((len(y), len(x)))
        above = np.zeros(len(used), np.int64)
        for band in bands(height):
            table = np.zeros((band.stop - band.start + 1, len(used)), np.int64)
            table[1:, 1:] = np.add.reduceat(self._mask[band], used[:-1], axis=1, dtype=np.int64).cumsum(axis=1)
            table[0] = above
            table.cumsum(axis=0, out=table)
            above = table[-1]
            here = np.flatnonzero((y0 >= band.start) & (y0 < band.stop))
            upper, lower = (
                rows[:, left] * (1 - fx) + rows[:, right] * fx
                for rows in (table[y0[here] - band.start], table[y0[here] - band.start + 1])
            )
            found[here] = upper * (1 - fy[here]) + lower * fy[here]
        return found


def grid_fractions(mask: Rows, mask_mpp: float, grid: Grid, slide_mpp: float) -> Floats:
    """Fraction of each patch of a grid that `mask` (h, w) bool covers, (rows, columns) float64."""
    fractions = AreaFractions(mask, mask_mpp)
    return fractions.of(grid.x() * slide_mpp, grid.y() * slide_mpp, grid.patch_px * slide_mpp)


def grid_truth(
    truth: AnyImage, grid: Grid, slide_mpp: float, options: PatchLevelOptions | PatchesOptions
) -> NDArray[np.uint8]:
    """Truth of each patch of a grid (0 normal, 1 tumour, 2 ignore), (rows, columns) uint8.

    Label rules: `centre_nearest` takes the truth pixel nearest to the patch's centre. `centre_region` labels a patch
    tumour where the central square of `region_um` contains any tumour, `area_fraction` where at least `min_tumor` of
    the patch is tumour. Under both, any other patch is ignored where that area contains pixels to ignore.
    """
    patch_um = grid.patch_px * slide_mpp
    x_um, y_um = grid.x() * slide_mpp, grid.y() * slide_mpp
    rule = options.label_rule
    if rule == "centre_nearest":
        rows = _nearest(y_um + patch_um / 2, truth.mpp, truth.data.shape[0])
        columns = _nearest(x_um + patch_um / 2, truth.mpp, truth.data.shape[1])
        picked: NDArray[np.uint8] = np.minimum(_pick(truth.data, rows, columns), IGNORE)
        return picked
    edge_um = options.region_um if rule == "centre_region" else patch_um
    margin = (patch_um - edge_um) / 2
    tumor, ignored = (
        AreaFractions(mask, truth.mpp).of(x_um + margin, y_um + margin, edge_um)
        for mask in (is_scored_tumor(truth), is_ignored(truth))
    )
    is_tumor = tumor > 0 if rule == "centre_region" else tumor >= options.min_tumor
    return np.where(is_tumor, TUMOR, np.where(ignored > 0, IGNORE, NORMAL)).astype(np.uint8)


def resample_labels(image: AnyImage, mpp: float) -> Image:
    """A label image that starts at the slide's corner, with pixels `mpp` um wide, each with the value at its centre."""
    rows, columns = (
        _nearest((np.arange(math.ceil(length * image.mpp / mpp)) + 0.5) * mpp, image.mpp, length)
        for length in image.data.shape
    )
    return Image.from_corner(_pick(image.data, rows, columns), mpp)


def _pick(image: Rows, rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[Any]:
    """The pixels at `rows`, ascending, and `columns`, (len(rows), len(columns))."""
    parts = []
    for band in bands(image.shape[0]):
        first, last = np.searchsorted(rows, (band.start, band.stop))
        if first < last:
            parts.append(image[band][rows[first:last, None] - band.start, columns])
    return np.concatenate(parts)


class LabelOverview:
    """A copy for pictures of a truth image or tissue mask of `shape` (h, w), reduced where that is large.

    A pixel is tumour, or tissue, where any of its pixels are, else ignored where any are.
    """

    def __init__(self, shape: tuple[int, ...], mpp: float) -> None:
        self._factor = math.ceil(math.sqrt(math.prod(shape) / _OVERVIEW_PIXELS))
        self._ranks = np.zeros([-(-length // self._factor) for length in shape], np.uint8)
        self._mpp = mpp

    @classmethod
    def of(cls, image: AnyImage) -> Image:
        """The reduced copy of an image, which is read in bands."""
        overview = cls(image.data.shape, image.mpp)
        for band in bands(image.data.shape[0]):
            overview.add(band.start, image.data[band])
        return overview.image

    def add(self, top: int, rows: NDArray[np.uint8]) -> None:
        """Add the rows of the image from `top` on."""
        starts = np.arange(0, rows.shape[1], self._factor)
        columns = np.maximum.reduceat(_RANK_OF_LABEL[rows], starts, axis=1)
        place, starts = np.unique(np.arange(top, top + len(rows)) // self._factor, return_index=True)
        self._ranks[place] = np.maximum(self._ranks[place], np.maximum.reduceat(columns, starts, axis=0))

    @property
    def image(self) -> Image:
        return Image.from_corner(_LABEL_OF_RANK[self._ranks], self._factor * self._mpp)


@dataclass(frozen=True, slots=True)
class StoredLabels:
    """A label image in a store: its pixels by value, (4,), and its `LabelOverview`."""

    pixels: list[int]
    overview: Image


def store_labels(
    path: Path,
    parts: Iterable[NDArray[np.uint8]],
    shape: tuple[int, ...],
    mpp: float,
    *,
    name: str,
    slide_mpp: float,
    labels: Sequence[LabelValue],
) -> StoredLabels:
    """Write a label image of `shape` (h, w) from its bands in order, a row of shards at a time, atomically."""
    overview, counts = LabelOverview(shape, mpp), np.zeros(4, np.int64)
    # Without memory: only the shape counts.
    image = Image.from_corner(np.broadcast_to(np.uint8(0), shape), mpp)
    with new_image(path, image, name=name, slide_mpp=slide_mpp, labels=labels) as stored:
        for top, rows in _rows_of_shards(parts):
            stored[top : top + len(rows)] = rows
            for first in range(0, len(rows), BAND_PX):
                counts += np.bincount(rows[first : first + BAND_PX].ravel(), minlength=4)
            overview.add(top, rows)
    return StoredLabels(counts.tolist(), overview.image)


def _rows_of_shards(parts: Iterable[NDArray[np.uint8]]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Bands, of heights that divide a shard's, joined to rows of shards, each with its first row."""
    top, height = 0, 0
    joined: list[NDArray[np.uint8]] = []
    for part in parts:
        joined.append(part)
        height += len(part)
        if height == IMAGE_SHARD_PX:
            yield top, np.concatenate(joined)
            top, height, joined = top + height, 0, []
    if joined:
        yield top, np.concatenate(joined)


def _nearest(um: Floats, mpp: float, length: int) -> NDArray[Any]:
    return np.clip((um / mpp).astype(np.int64), 0, length - 1)
