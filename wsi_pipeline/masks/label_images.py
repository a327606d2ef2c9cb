"""Tissue and truth as images on a slide, and what they say about patches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Grid
from wsi_pipeline.pyramid.ome_zarr import Image, LabelValue

Floats = NDArray[np.floating[Any]]

NORMAL, TUMOR, IGNORE = 0, 1, 2
_ROUNDING = 1e-6
TISSUE_LABELS = (LabelValue(1, "tissue", (0, 114, 178, 96)),)
TRUTH_LABELS = (
    LabelValue(NORMAL, "normal", (0, 0, 0, 0)),
    LabelValue(TUMOR, "tumor", (230, 25, 25, 128)),
    LabelValue(IGNORE, "ignore", (128, 128, 128, 128)),
)


class AreaFractions:
    """Share of a mask within boxes, exact for boxes at fractional positions (summed-area table).

    `mask` is a boolean (y, x) image; what lies outside it counts as not set.
    """

    def __init__(self, mask: NDArray[np.bool_], mpp: float) -> None:
        self._table = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
        np.cumsum(mask, axis=0, dtype=np.int64, out=self._table[1:, 1:])
        np.cumsum(self._table[1:, 1:], axis=1, out=self._table[1:, 1:])
        self._mpp = mpp

    def of(self, x_um: Floats, y_um: Floats, edge_um: float) -> Floats:
        """Share of each square of `edge_um` with its top left corner at (x_um, y_um), as len(y) x len(x)."""
        top, bottom = self._rows(y_um), self._rows(y_um + edge_um)
        left, right = self._columns(x_um), self._columns(x_um + edge_um)
        area = (edge_um / self._mpp) ** 2
        total = self._at(bottom, right) - self._at(top, right) - self._at(bottom, left) + self._at(top, left)
        # Rounding must not turn "nothing" into a little of something, nor "all" into almost all.
        total = np.where(total < _ROUNDING, 0.0, np.where(total > area - _ROUNDING, area, total))
        shares: Floats = total / area
        return shares

    def _rows(self, um: Floats) -> Floats:
        rows: Floats = np.clip(um / self._mpp, 0, self._table.shape[0] - 1)
        return rows

    def _columns(self, um: Floats) -> Floats:
        columns: Floats = np.clip(um / self._mpp, 0, self._table.shape[1] - 1)
        return columns

    def _at(self, y: Floats, x: Floats) -> Floats:
        # Within a mask pixel the integral is bilinear, so interpolating the table is exact.
        y0 = np.minimum(y.astype(np.int64), self._table.shape[0] - 2)
        x0 = np.minimum(x.astype(np.int64), self._table.shape[1] - 2)
        fy, fx = (y - y0)[:, None], (x - x0)[None, :]
        t = self._table
        upper = t[y0[:, None], x0] * (1 - fx) + t[y0[:, None], x0 + 1] * fx
        lower = t[y0[:, None] + 1, x0] * (1 - fx) + t[y0[:, None] + 1, x0 + 1] * fx
        result: Floats = upper * (1 - fy) + lower * fy
        return result


def grid_fractions(mask: NDArray[np.bool_], mask_mpp: float, grid: Grid, slide_mpp: float) -> Floats:
    """Share of `mask` in each patch of a grid, (rows, columns) float64."""
    shares = AreaFractions(mask, mask_mpp)
    return shares.of(grid.x() * slide_mpp, grid.y() * slide_mpp, grid.patch_px * slide_mpp)


def grid_truth(
    truth: Image, grid: Grid, slide_mpp: float, *, rule: str, region_um: float, min_tumor: float
) -> NDArray[np.uint8]:
    """Truth of each patch of a grid (0 normal, 1 tumour, 2 ignore), (rows, columns) uint8.

    `centre_nearest` takes the truth pixel nearest to the patch's centre. `centre_region` is tumour
    where the central square of `region_um` has any tumour, `area_fraction` where at least `min_tumor`
    of the patch is tumour; both are ignored where anything else in that area is to be ignored.
    """
    patch_um = grid.patch_px * slide_mpp
    x_um, y_um = grid.x() * slide_mpp, grid.y() * slide_mpp
    if rule == "centre_nearest":
        rows = _nearest(y_um + patch_um / 2, truth.mpp, truth.data.shape[0])
        columns = _nearest(x_um + patch_um / 2, truth.mpp, truth.data.shape[1])
        picked: NDArray[np.uint8] = truth.data[rows[:, None], columns[None, :]]
        return picked
    edge_um = region_um if rule == "centre_region" else patch_um
    margin = (patch_um - edge_um) / 2
    tumor = AreaFractions(truth.data == TUMOR, truth.mpp).of(x_um + margin, y_um + margin, edge_um)
    ignored = AreaFractions(truth.data == IGNORE, truth.mpp).of(x_um + margin, y_um + margin, edge_um)
    is_tumor = tumor > 0 if rule == "centre_region" else tumor >= min_tumor
    return np.where(is_tumor, TUMOR, np.where(ignored > 0, IGNORE, NORMAL)).astype(np.uint8)


def _nearest(um: Floats, mpp: float, length: int) -> NDArray[Any]:
    return np.clip((um / mpp).astype(np.int64), 0, length - 1)
