"""What a stored heatmap is: its grid, and what is known of its positions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.config import PatchLevelOptions
from wsi_pipeline.errors import StoreError
from wsi_pipeline.geometry import Grid
from wsi_pipeline.io.receipts import Facts, read_receipt
from wsi_pipeline.masks.label_images import grid_truth
from wsi_pipeline.pyramid.ome_zarr import Image, read_image


def grid_of(receipt: Facts) -> Grid:
    """The grid that a heatmap's receipt describes."""
    return Grid(**receipt["grid"])


@dataclass(frozen=True, slots=True)
class JudgedHeatmap:
    """A heatmap, its receipt, the slide's truth, and the truth of each position, (rows, columns) uint8."""

    heat: Image
    facts: Facts
    truth: Image
    labels: NDArray[np.uint8]

    @classmethod
    def read(cls, slide: str, heatmap: Path, receipt: Path, truth: Path, rule: PatchLevelOptions) -> Self:
        """`StoreError` where the heatmap is of another slide."""
        facts = read_receipt(receipt, "heatmap")
        if facts["slide"] != slide:
            raise StoreError(f"{receipt}: the heatmap of {facts['slide']}, not of {slide}")
        mpp = float(facts["slide_mpp"])
        heat, known = read_image(heatmap, mpp), read_image(truth, mpp)
        labels = grid_truth(
            known,
            grid_of(facts),
            mpp,
            rule=rule.label_rule,
            region_um=rule.region_um,
            min_tumor=rule.min_tumor,
        )
        return cls(heat, facts, known, labels)
