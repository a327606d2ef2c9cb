"""Receipts of the stages that work on a slide without a model."""

from __future__ import annotations

from wsi_pipeline.config import TissueRun
from wsi_pipeline.receipts.base import Receipt


class TissueReceipt(Receipt):
    """The tissue mask of a slide; areas in mm², `shape` is (height, width) in pixels of the mask."""

    run = TissueRun

    slide: str
    threshold: float
    tissue_pixels: int
    tissue_mm2: float
    tissue_share: float
    pen_pixels: int
    shape: tuple[int, int]
    mask_sha256: str
    options: TissueRun
