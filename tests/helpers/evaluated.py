"""Slides evaluated without a network: small heatmaps and truth images in place of the outputs of earlier stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit

from helpers.receipts import write_heatmap_receipt, write_truth_receipt
from wsi_pipeline.cohort.sheet import Sheet, SlideRow
from wsi_pipeline.config import (
    CalibrateRun,
    ConfusionRun,
    DetectRun,
    EvaluateRun,
    ScoresRun,
    SlideLevelOptions,
)
from wsi_pipeline.geometry import Grid
from wsi_pipeline.masks.label_images import NORMAL, TUMOR
from wsi_pipeline.metrics.steps import centres, quantize
from wsi_pipeline.pyramid.heatmap_store import write_heatmap
from wsi_pipeline.pyramid.ome_zarr import Image, write_image
from wsi_pipeline.stages import calibrate, confusion, detect, evaluate, scores

STRIDE = 100.0
KINDS = ("png", "pdf")
MODEL = "a" * 64


def write_slide(
    root: Path,
    pyramid: Path,
    slide: str,
    heat: np.ndarray,
    truth: np.ndarray,
    *,
    model: str = MODEL,
    test: bool = True,
    unread: int = 0,
    tissue: np.ndarray | None = None,
) -> None:
    """Write a heatmap of probabilities and a truth image (one truth pixel per patch), and run the later stages on them.

    `tissue` is the share of tissue of each patch, by default 1. Slides with `test=False` get scores only.
    """
    write_log_odds(root, slide, log_odds(heat), np.ones_like(heat) if tissue is None else tissue)
    write_image(root / f"{slide}.truth.ome.zarr", Image.from_corner(truth, STRIDE), name="t", slide_mpp=0.5)
    grid = Grid(columns=heat.shape[1], rows=heat.shape[0], stride_px=STRIDE / 0.5, patch_px=STRIDE / 0.5)
    write_heatmap_receipt(root / "heatmaps" / f"{slide}.json", slide, grid, model=model, unread=unread)
    write_truth_receipt(root / f"{slide}.truth.json", slide, float((truth == TUMOR).sum()))
    calibration = root / "calibration.json"
    if not calibration.exists():
        calibrate.run(Sheet(), calibrate.Inputs(root, root), calibrate.Outputs(calibration), CalibrateRun())
    histogram = scores.Outputs(root / "scores" / f"{slide}.parquet", root / "scores" / f"{slide}.json")
    scores.run(slide, scores_inputs(root, slide), histogram, ScoresRun())
    if not test:
        return
    found = detect_inputs(root, slide)
    compared = root / "confusion"
    confusion.run(
        slide,
        confusion.Inputs(
            pyramid=pyramid,
            truth=found.truth,
            truth_receipt=found.truth_receipt,
            heatmap=found.heatmap,
            heatmap_receipt=found.heatmap_receipt,
            calibration=calibration,
        ),
        confusion.Outputs(
            store=compared / f"{slide}.ome.zarr",
            receipt=compared / f"{slide}.json",
            picture=compared / f"{slide}.png",
            geojson=compared / f"{slide}.geojson",
        ),
        ConfusionRun(),
    )
    detections = detect.Outputs(*(root / "detections" / f"{slide}.{kind}" for kind in ("csv", "geojson", "json")))
    detect.run(slide, found, detections, DetectRun(radius_um=100))


def log_odds(heat: np.ndarray) -> np.ndarray:
    """Log odds of probabilities, in float32 like those of a network."""
    return logit(heat).astype(np.float32)


def counted(heat: np.ndarray) -> np.ndarray:
    """Probabilities as histograms count them: in the middle of their steps of log odds."""
    return expit(centres(quantize(log_odds(heat))))


def write_log_odds(root: Path, slide: str, odds: np.ndarray, tissue: np.ndarray) -> None:
    image = Image(odds, STRIDE, STRIDE / 2)
    write_heatmap(root / "heatmaps" / f"{slide}.ome.zarr", image, tissue.astype(np.float32), 0.5)


def scores_inputs(root: Path, slide: str) -> scores.Inputs:
    found = detect_inputs(root, slide)
    return scores.Inputs(
        truth=found.truth,
        truth_receipt=found.truth_receipt,
        heatmap=found.heatmap,
        heatmap_receipt=found.heatmap_receipt,
    )


def detect_inputs(root: Path, slide: str) -> detect.Inputs:
    heatmaps = root / "heatmaps"
    return detect.Inputs(
        truth=root / f"{slide}.truth.ome.zarr",
        truth_receipt=root / f"{slide}.truth.json",
        heatmap=heatmaps / f"{slide}.ome.zarr",
        heatmap_receipt=heatmaps / f"{slide}.json",
    )


SLIDES = {
    "n1": ("normal", None),
    "n2": ("normal", None),
    "n3": ("normal", None),
    "t1": ("tumor", (slice(1, 4), slice(1, 5))),
    "t2": ("tumor", (slice(0, 3), slice(3, 7))),
    "t3": ("tumor", (slice(2, 5), slice(0, 3))),
}


def maps(slide: str) -> tuple[np.ndarray, np.ndarray]:
    return drawn_maps(slide, SLIDES[slide][1])


def drawn_maps(slide: str, region: tuple[slice, slice] | None) -> tuple[np.ndarray, np.ndarray]:
    """Heatmap, different for each name, and truth, whose tumour is `region`."""
    rng = np.random.default_rng([*slide.encode()])
    truth = np.full((6, 8), NORMAL, np.uint8)
    heat = rng.uniform(0, 0.85, truth.shape)
    if region:
        truth[region] = TUMOR
        heat[region] = rng.uniform(0.5, 1, truth[region].shape)
    heat[5] = np.nan
    return heat, truth


SHEET = Sheet({s: SlideRow(s, f"{s}.tif", "test", label=label) for s, (label, _) in SLIDES.items()})


def evaluate_inputs(root: Path, calibration: Path | None = None) -> evaluate.Inputs:
    chosen = calibration or root / "calibration.json"
    return evaluate.Inputs(
        scores=root / "scores", confusion=root / "confusion", detections=root / "detections", calibration=chosen
    )


def run(root: Path, out: Path, sheet: Sheet = SHEET, slide_level: Any = None, **more: Any) -> dict[str, Any]:
    options = EvaluateRun(seed=3, slide_level=slide_level or SlideLevelOptions())
    evaluate.run(sheet, evaluate_inputs(root), evaluate.Outputs(out), options, **more)
    return json.loads((out / "metrics.json").read_text())


def pooled() -> tuple[np.ndarray, np.ndarray]:
    scores, truths = [], []
    for slide in SLIDES:
        heat, truth = maps(slide)
        known = np.isfinite(heat)
        scores.append(counted(heat[known]))
        truths.append(truth[known] == TUMOR)
    return np.concatenate(scores), np.concatenate(truths)
