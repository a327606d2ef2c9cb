"""Receipts as earlier stages write them, with placeholders for fields that no test reads."""

from __future__ import annotations

from pathlib import Path

from wsi_pipeline.config import HeatmapRun, TruthRun
from wsi_pipeline.geometry import Grid
from wsi_pipeline.receipts.base import write_receipt
from wsi_pipeline.receipts.models import HeatmapReceipt, PrecisionFacts
from wsi_pipeline.receipts.slides import PixelCounts, TruthReceipt

DIGEST = "0" * 64


def write_heatmap_receipt(
    path: Path, slide: str, grid: Grid, *, slide_mpp: float = 0.5, model: str = DIGEST, unread: int = 0
) -> None:
    receipt = HeatmapReceipt(
        slide=slide,
        model_sha256=model,
        slide_mpp=slide_mpp,
        slide_size=(1, 1),
        patch_mpp=slide_mpp,
        factor=1,
        grid=grid,
        stains=None,
        precision=PrecisionFacts(device="cpu", dtype="float32"),
        positions=0,
        unread_positions=unread,
        maximum_log_odds=None,
        heatmap_sha256=DIGEST,
        options=HeatmapRun(),
    )
    write_receipt(path, receipt)


def write_truth_receipt(path: Path, slide: str, tumor_mm2: float, *, exhaustive: bool = True) -> None:
    receipt = TruthReceipt(
        slide=slide,
        label=None,
        exhaustive=exhaustive,
        annotation_sha256=DIGEST,
        polygons=0,
        tumor_mm2=tumor_mm2,
        pixels=PixelCounts(normal=0, tumor=0, ignore=0),
        shape=(1, 1),
        truth_sha256=DIGEST,
        options=TruthRun(),
    )
    write_receipt(path, receipt)
