"""Slides that are judged without a network: heatmaps and truths as the stages before have them, small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from wsi_pipeline.cohort.sheet import Sheet, SlideRow
from wsi_pipeline.config import (
    CalibrateRun,
    EvaluateRun,
    LesionLevelOptions,
    PatchLevelOptions,
    SlideLevelOptions,
)
from wsi_pipeline.io.digests import canonical_json
from wsi_pipeline.masks.label_images import NORMAL, TUMOR
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
) -> None:
    """A heatmap and a truth image (one truth pixel a patch), and what the stages make of them.

    Slides that are no `test` slides are not judged.
    """
    heat = (np.rint(heat.astype(np.float32) * 65535) / 65535).astype(np.float32)
    image = Image(heat, STRIDE, STRIDE / 2)
    write_image(root / "heatmaps" / f"{slide}.ome.zarr", image, name="p", slide_mpp=0.5, fill=float("nan"))
    write_image(root / f"{slide}.truth.ome.zarr", Image.from_corner(truth, STRIDE), name="t", slide_mpp=0.5)
    grid = {"columns": heat.shape[1], "rows": heat.shape[0], "stride_px": STRIDE / 0.5, "patch_px": STRIDE / 0.5}
    facts = {
        "stage": "heatmap",
        "slide": slide,
        "model_sha256": model,
        "slide_mpp": 0.5,
        "grid": grid,
        "unread_positions": unread,
    }
    receipt = root / "heatmaps" / f"{slide}.json"
    receipt.write_text(canonical_json(facts))
    calibration = root / "calibration.json"
    if not calibration.exists():
        calibrate.run(Sheet(), root, root, calibration, CalibrateRun())
    known = root / f"{slide}.truth.json"
    known.write_text(canonical_json({"stage": "truth", "tumor_mm2": float((truth == TUMOR).sum())}))
    inputs = root / f"{slide}.truth.ome.zarr", root / "heatmaps" / f"{slide}.ome.zarr", receipt
    scored = root / "scores"
    scores.run(
        slide, inputs[0], known, *inputs[1:], scored / f"{slide}.parquet", scored / f"{slide}.json", PatchLevelOptions()
    )
    if not test:
        return
    folder = root / "confusion"
    confusion.run(
        slide,
        pyramid,
        *inputs,
        calibration,
        folder / f"{slide}.ome.zarr",
        folder / f"{slide}.json",
        folder / f"{slide}.png",
        folder / f"{slide}.geojson",
        PatchLevelOptions(),
    )
    found = root / "detections"
    detect.run(
        slide,
        *inputs,
        found / f"{slide}.csv",
        found / f"{slide}.geojson",
        found / f"{slide}.json",
        LesionLevelOptions(radius_um=100),
    )


SLIDES = {
    "n1": ("normal", None),
    "n2": ("normal", None),
    "t1": ("tumor", (slice(1, 4), slice(1, 5))),
    "t2": ("tumor", (slice(0, 3), slice(3, 7))),
}


def maps(slide: str) -> tuple[np.ndarray, np.ndarray]:
    _, region = SLIDES[slide]
    rng = np.random.default_rng([*slide.encode()])
    truth = np.full((6, 8), NORMAL, np.uint8)
    heat = rng.uniform(0, 0.85, truth.shape)
    if region:
        truth[region] = TUMOR
        heat[region] = rng.uniform(0.5, 1, truth[region].shape)
    heat[5] = np.nan
    return heat, truth


SHEET = Sheet({s: SlideRow(s, f"{s}.tif", "test", label=label) for s, (label, _) in SLIDES.items()})


def folders_of(root: Path) -> evaluate.Folders:
    return evaluate.Folders(root / "scores", root / "confusion", root / "detections")


def run(root: Path, out: Path, sheet: Sheet = SHEET, slide_level: Any = None, **more: Any) -> dict[str, Any]:
    options = EvaluateRun(seed=3, slide_level=slide_level or SlideLevelOptions())
    evaluate.run(sheet, (), folders_of(root), root / "calibration.json", out, options, **more)
    return json.loads((out / "metrics.json").read_text())


def pooled() -> tuple[np.ndarray, np.ndarray]:
    scores, truths = [], []
    for slide in SLIDES:
        heat, truth = maps(slide)
        known = np.isfinite(heat)
        scores.append(np.rint(heat[known] * 65535) / 65535)
        truths.append(truth[known] == TUMOR)
    return np.concatenate(scores), np.concatenate(truths)
