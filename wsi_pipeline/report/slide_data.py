"""What a page shows of a slide's predictions: scores, their truth, detections."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import StoreError
from wsi_pipeline.io.digests import digest_bytes
from wsi_pipeline.masks.label_images import IGNORE, NORMAL, TUMOR
from wsi_pipeline.metrics.steps import quantize
from wsi_pipeline.pyramid.heatmap_store import read_log_odds
from wsi_pipeline.pyramid.ome_zarr import read_image
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.evaluation import DetectReceipt
from wsi_pipeline.receipts.models import HeatmapReceipt

# The label of a position without a prediction.
UNKNOWN = 255
# What the codes of a confusion image (true negative, false positive, false negative, true positive) say of the truth.
_TRUTH_OF_CODE = (NORMAL, NORMAL, TUMOR, TUMOR)


@dataclass(frozen=True, slots=True)
class HeatGrid:
    """Scores in steps of log odds, and truth: 0 normal, 1 tumour, 2 not judged, 255 not predicted.

    Both are (rows, columns). Centres are `stride_px` level-0 pixels apart, the first `patch_px` / 2 from the corner.
    """

    stride_px: float
    patch_px: float
    steps: NDArray[np.uint16]
    labels: NDArray[np.uint8]

    def geometry(self) -> dict[str, float]:
        """Size in positions, and lengths in level-0 pixels."""
        rows, columns = self.labels.shape
        return {"columns": columns, "rows": rows, "stride": self.stride_px, "patch": self.patch_px}

    def packed(self) -> bytes:
        """Scores as little-endian uint16, then labels, both row by row."""
        return self.steps.astype("<u2").tobytes() + self.labels.tobytes()

    def every(self, n: int) -> HeatGrid:
        """Only every `n`th row and column."""
        return HeatGrid(self.stride_px * n, self.patch_px, self.steps[::n, ::n], self.labels[::n, ::n])


def heat_geometry(receipt: Path) -> dict[str, float]:
    """`HeatGrid.geometry` of the heatmap with this receipt, without reading it. Raises `StoreError`."""
    grid = read_receipt(receipt, HeatmapReceipt).grid
    return {"columns": grid.columns, "rows": grid.rows, "stride": grid.stride_px, "patch": grid.patch_px}


def heat_grid(heatmap: Path, receipt: Path, confusion: Path | None) -> HeatGrid:
    """The scores of a slide, with the truth of each position as `confusion` has it; not judged without that.

    Raises `StoreError`.
    """
    facts = read_receipt(receipt, HeatmapReceipt)
    heat = read_log_odds(heatmap, facts.slide_mpp).data
    known = np.isfinite(heat)
    labels = np.where(known, IGNORE, UNKNOWN).astype(np.uint8)
    if confusion is not None:
        codes = read_image(confusion, facts.slide_mpp).data
        if codes.shape != heat.shape:
            raise StoreError(f"{confusion}: of another heatmap", remedy="Run the stage confusion again")
        judged = codes < len(_TRUTH_OF_CODE)
        labels[judged] = np.array(_TRUTH_OF_CODE, np.uint8)[codes[judged]]
    steps = np.where(known, quantize(heat), 0).astype(np.uint16)
    return HeatGrid(facts.grid.stride_px, facts.grid.patch_px, steps, labels)


def read_detections(path: Path, receipt: Path) -> list[list[float]]:
    """Confidence, x and y (level-0 pixels) of each detection of a slide.

    `StoreError` where the file is not what this receipt of the stage detect is of.
    """
    facts = read_receipt(receipt, DetectReceipt)
    try:
        content = path.read_bytes()
        if digest_bytes(content) != facts.detections_sha256:
            raise ValueError("its receipt is of another file")
        found = [[float(cell) for cell in line.split(",")] for line in content.decode().splitlines()]
        if any(len(row) != 3 or not all(map(math.isfinite, row)) for row in found):
            raise ValueError("not three numbers a row")
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not detections ({error})", remedy="Run the stage detect again") from error
    return found
