"""A heatmap with the truth of each of its positions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.config import ConfusionRun, ScoresRun
from wsi_pipeline.io.digests import canonical_json, digest_bytes
from wsi_pipeline.masks.label_images import IGNORE, grid_truth
from wsi_pipeline.pyramid.heatmap_store import read_log_odds, read_tissue
from wsi_pipeline.pyramid.ome_zarr import Image, StoredImage, open_image
from wsi_pipeline.receipts.models import HeatmapReceipt, read_heatmap_receipt


@dataclass(frozen=True, slots=True)
class LabelledHeatmap:
    """The log odds of a heatmap, its receipt, the truth image, and the truth of each position.

    `labels` is (rows, columns) uint8; positions with less tissue than `min_tissue` of the options are ignored.
    """

    heat: Image
    receipt: HeatmapReceipt
    truth: StoredImage
    labels: NDArray[np.uint8]

    @classmethod
    def read(cls, slide: str, heatmap: Path, receipt: Path, truth: Path, options: ScoresRun | ConfusionRun) -> Self:
        """Raises `StoreError` for the heatmap of another slide."""
        facts = read_heatmap_receipt(receipt, slide)
        truth_image = open_image(truth, facts.slide_mpp)
        labels = grid_truth(truth_image, facts.grid, facts.slide_mpp, options)
        labels[read_tissue(heatmap, facts.slide_mpp) < options.min_tissue] = IGNORE
        return cls(read_log_odds(heatmap, facts.slide_mpp), facts, truth_image, labels)

    @property
    def labels_sha256(self) -> str:
        """SHA-256 of the grid and of the truth of each scored position: equal for models with comparable patches."""
        scored = np.where(np.isfinite(self.heat.data), self.labels, IGNORE).astype(np.uint8)
        return digest_bytes(canonical_json(asdict(self.receipt.grid)).encode() + scored.tobytes())
