"""Label images of tissue and truth, and their values for patches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.config import PatchesOptions, PatchLevelOptions
from wsi_pipeline.geometry import Grid
from wsi_pipeline.pyramid.ome_zarr import Image, LabelValue

Floats = NDArray[np.floating[Any]]

# Tumour that is ignored is TUMOR | IGNORE: it is not scored, but lesions consist of it too.
NORMAL, TUMOR, IGNORE = 0, 1, 2
_ROUNDING_PX = 1e-6
TISSUE_LABELS = (LabelValue(1, "tissue", (0, 114, 178, 96)),)
TRUTH_LABELS = (
    LabelValue(NORMAL, "normal", (0, 0, 0, 0)),
    LabelValue(TUMOR, "tumor", (230, 25, 25, 128)),
    LabelValue(IGNORE, "ignore", (128, 128, 128, 128)),
    LabelValue(TUMOR | IGNORE, "ignored tumor", (179, 77, 77, 128)),
)


class AreaFractions:
    """Fraction of boxes that a mask covers, from a summed-area table; exact for boxes at fractional positions.

    `mask` is a boolean image (y, x) with pixels `mpp` um wide; pixels outside it count as False.
    """

    def __init__(self, mask: NDArray[np.bool_], mpp: float) -> None:
        self._table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
        np.cumsum(mask, axis=0, dtype=np.int64, out=self._table[1:, 1:])
        np.cumsum(self._table[1:, 1:], axis=1, out=self._table[1:, 1:])
        self._mpp = mpp

    def of(self, x_um: Floats, y_um: Floats, edge_um: float) -> Floats:
        """Covered fraction of squares of `edge_um` with top left corners at (x_um, y_um), (len(y), len(x))."""
        top, bottom = self._edges(y_um, 0), self._edges(y_um + edge_um, 0)
        left, right = self._edges(x_um, 1), self._edges(x_um + edge_um, 1)
        area = (edge_um / self._mpp) ** 2
        total = self._at(bottom, right) - self._at(top, right) - self._at(bottom, left) + self._at(top, left)
        # Snap rounding errors to exactly 0 and 1: thresholds compare with > 0 and >= 1.
        total = np.where(total < _ROUNDING_PX, 0.0, np.where(total > area - _ROUNDING_PX, area, total))
        fractions: Floats = total / area
        return fractions

    def _edges(self, um: Floats, axis: int) -> Floats:
        edges: Floats = np.clip(um / self._mpp, 0, self._table.shape[axis] - 1)
        return edges

    def _at(self, y: Floats, x: Floats) -> Floats:
        # The integral is bilinear within a mask pixel, so bilinear interpolation of the table is exact.
        y0 = np.minimum(y.astype(np.int64), self._table.shape[0] - 2)
        x0 = np.minimum(x.astype(np.int64), self._table.shape[1] - 2)
        fy, fx = (y - y0)[:, None], (x - x0)[None, :]
        t = self._table
        upper = t[y0[:, None], x0] * (1 - fx) + t[y0[:, None], x0 + 1] * fx
        lower = t[y0[:, None] + 1, x0] * (1 - fx) + t[y0[:, None] + 1, x0 + 1] * fx
        result: Floats = upper * (1 - fy) + lower * fy
        return result


def grid_fractions(mask: NDArray[np.bool_], mask_mpp: float, grid: Grid, slide_mpp: float) -> Floats:
    """Fraction of each patch of a grid that `mask` covers, (rows, columns) float64."""
    fractions = AreaFractions(mask, mask_mpp)
    return fractions.of(grid.x() * slide_mpp, grid.y() * slide_mpp, grid.patch_px * slide_mpp)


def grid_truth(
    truth: Image, grid: Grid, slide_mpp: float, options: PatchLevelOptions | PatchesOptions
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
        picked: NDArray[np.uint8] = np.minimum(truth.data[rows[:, None], columns[None, :]], IGNORE)
        return picked
    edge_um = options.region_um if rule == "centre_region" else patch_um
    margin = (patch_um - edge_um) / 2
    tumor = AreaFractions(truth.data == TUMOR, truth.mpp).of(x_um + margin, y_um + margin, edge_um)
    ignored = AreaFractions(truth.data >= IGNORE, truth.mpp).of(x_um + margin, y_um + margin, edge_um)
    is_tumor = tumor > 0 if rule == "centre_region" else tumor >= options.min_tumor
    return np.where(is_tumor, TUMOR, np.where(ignored > 0, IGNORE, NORMAL)).astype(np.uint8)


def resample_labels(image: Image, mpp: float) -> Image:
    """A label image that starts at the slide's corner, with pixels `mpp` um wide, each with the value at its centre."""
    rows, columns = (
        _nearest((np.arange(math.ceil(length * image.mpp / mpp)) + 0.5) * mpp, image.mpp, length)
        for length in image.data.shape
    )
    return Image.from_corner(image.data[rows[:, None], columns], mpp)


def _nearest(um: Floats, mpp: float, length: int) -> NDArray[Any]:
    return np.clip((um / mpp).astype(np.int64), 0, length - 1)
