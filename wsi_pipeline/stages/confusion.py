"""Stage confusion: where a heatmap is right and wrong at the operating point, and how often."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.config import PatchLevelOptions
from wsi_pipeline.evaluation.evaluation import check_chosen_for, ratios_of, shares_of
from wsi_pipeline.evaluation.labelled_heatmap import JudgedHeatmap, grid_of
from wsi_pipeline.geometry import Grid
from wsi_pipeline.io.receipts import read_receipt, write_receipt
from wsi_pipeline.masks.geojson import Feature, cells_polygon, feature, polygon_parts, write_features
from wsi_pipeline.masks.label_images import IGNORE, TUMOR
from wsi_pipeline.metrics.curves import ConfusionCounts
from wsi_pipeline.plots.colors import CONFUSION_COLORS
from wsi_pipeline.plots.figures import save_figure, slide_panels
from wsi_pipeline.pyramid.ome_zarr import Image, LabelValue, write_image
from wsi_pipeline.pyramid.pyramid import Pyramid

log = logging.getLogger(__name__)

TN, FP, FN, TP, NOT_SCORED = 0, 1, 2, 3, 255
LABELS = (
    LabelValue(TN, "true negative", (0, 0, 0, 0)),
    LabelValue(FP, "false positive", (0, 255, 255, 255)),
    LabelValue(FN, "false negative", (255, 255, 0, 255)),
    LabelValue(TP, "true positive", (255, 0, 0, 255)),
    LabelValue(NOT_SCORED, "not scored", (0, 0, 0, 0)),
)


def run(
    slide: str,
    pyramid_path: Path,
    truth_path: Path,
    heatmap_path: Path,
    heatmap_receipt: Path,
    calibration: Path,
    store: Path,
    receipt: Path,
    picture: Path,
    geojson: Path,
    options: PatchLevelOptions,
    *,
    synthetic: bool = False,
) -> None:
    """Compare one heatmap with the truth at the operating point of the receipt `calibration`."""
    pyramid = Pyramid(pyramid_path)
    judged = JudgedHeatmap.read(slide, heatmap_path, heatmap_receipt, truth_path, options)
    heat, labels, model = judged.heat, judged.labels, judged.facts["model_sha256"]
    chosen = read_receipt(calibration, "calibrate")
    check_chosen_for(chosen, slide, model)
    threshold = chosen["operating_point"]["threshold"]
    codes = classify(heat.data, labels, threshold)
    tn, fp, fn, tp = (int((codes == code).sum()) for code in (TN, FP, FN, TP))
    counts = ConfusionCounts(tp=tp, fp=fp, fn=fn, tn=tn)
    image = Image(codes, heat.mpp, heat.first_centre_um)
    write_image(store, image, name="confusion", slide_mpp=pyramid.mpp, labels=LABELS, fill=NOT_SCORED)
    figure = slide_panels(slide, pyramid, judged.truth, heat, image, threshold=threshold, synthetic=synthetic)
    save_figure(figure, picture)
    write_features(geojson, _features(codes, grid_of(judged.facts)))
    content = {
        "slide": slide,
        "model_sha256": model,
        "threshold": threshold,
        "counts": asdict(counts),
        "share_of_total": shares_of(counts),
        **ratios_of(counts),
        "ignored": int((np.isfinite(heat.data) & (labels == IGNORE)).sum()),
    }
    write_receipt(receipt, "confusion", content, options)
    log.info(
        "%s: %d patches scored, %d true positive, %d false positive, %d false negative",
        slide,
        counts.total,
        counts.tp,
        counts.fp,
        counts.fn,
    )


def _features(codes: NDArray[np.uint8], grid: Grid) -> Iterator[Feature]:
    """Connected areas of errors and of what was found, with how many patches they have."""
    first = (grid.patch_px - grid.stride_px) / 2
    for code, name in ((FP, "False positive"), (FN, "False negative"), (TP, "True positive")):
        for area in polygon_parts(cells_polygon(codes == code, grid.stride_px, first)):
            patches = round(area.area / grid.stride_px**2)
            yield feature(area, name, CONFUSION_COLORS[code], measurements={"patches": patches})


def classify(heat: NDArray[np.float32], labels: NDArray[np.uint8], threshold: float) -> NDArray[np.uint8]:
    """0 TN, 1 FP, 2 FN, 3 TP, 255 where nothing is predicted or the truth is to be ignored."""
    called = np.nan_to_num(heat, nan=-1.0).astype(np.float64) >= threshold
    codes = np.where(labels == TUMOR, np.where(called, TP, FN), np.where(called, FP, TN))
    return np.where(np.isfinite(heat) & (labels != IGNORE), codes, NOT_SCORED).astype(np.uint8)
