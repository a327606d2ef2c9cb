"""The confusion of a heatmap with the truth: a class for each patch, counts, ratios and error regions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Grid
from wsi_pipeline.masks.geojson import Feature, cells_polygon, feature, polygon_parts
from wsi_pipeline.masks.label_images import IGNORE, TUMOR
from wsi_pipeline.metrics.curves import ConfusionCounts
from wsi_pipeline.pyramid.ome_zarr import LabelValue

Floats = NDArray[np.float64]

TN, FP, FN, TP, NOT_SCORED = 0, 1, 2, 3, 255
# The colours of MathWorks' example, from which the confusion image comes.
CONFUSION_LABELS = (
    LabelValue(TN, "true negative", (0, 0, 0, 0)),
    LabelValue(FP, "false positive", (0, 255, 255, 255)),
    LabelValue(FN, "false negative", (255, 255, 0, 255)),
    LabelValue(TP, "true positive", (255, 0, 0, 255)),
    LabelValue(NOT_SCORED, "not scored", (0, 0, 0, 0)),
)


def classify(heat: NDArray[np.float32], labels: NDArray[np.uint8], threshold: float) -> NDArray[np.uint8]:
    """0 TN, 1 FP, 2 FN, 3 TP; 255 for positions without a prediction and those to be ignored.

    Log odds `heat` and truth `labels` are (rows, columns); a position is called tumour at or above `threshold`.
    """
    called = heat.astype(np.float64) >= threshold
    codes = np.where(labels == TUMOR, np.where(called, TP, FN), np.where(called, FP, TN))
    return np.where(np.isfinite(heat) & (labels != IGNORE), codes, NOT_SCORED).astype(np.uint8)


def counts_of(codes: NDArray[np.uint8]) -> ConfusionCounts:
    """The confusion matrix of the codes of `classify`."""
    tn, fp, fn, tp = np.bincount(codes.ravel(), minlength=NOT_SCORED + 1)[:4].tolist()
    return ConfusionCounts(tp=tp, fp=fp, fn=fn, tn=tn)


def confusion_features(codes: NDArray[np.uint8], grid: Grid) -> Iterator[Feature]:
    """Connected regions of false positives, false negatives and true positives, with their number of patches."""
    first = (grid.patch_px - grid.stride_px) / 2
    for label in CONFUSION_LABELS[FP : TP + 1]:
        for area in polygon_parts(cells_polygon(codes == label.value, grid.stride_px, first)):
            patches = round(area.area / grid.stride_px**2)
            yield feature(area, label.name.capitalize(), label.rgba[:3], measurements={"patches": patches})


# Functions of the cells (tp, fp, fn, tn), each of any shape; NaN where the denominator is 0.
Ratio = Callable[[Floats], Floats]
RATIOS: dict[str, Ratio] = {
    "sensitivity": lambda c: _divided(c[0], c[0] + c[2]),
    "specificity": lambda c: _divided(c[3], c[3] + c[1]),
    "precision": lambda c: _divided(c[0], c[0] + c[1]),
    "f1": lambda c: _divided(2 * c[0], 2 * c[0] + c[1] + c[2]),
}


def _divided(part: Floats, whole: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        shares: Floats = np.divide(part, whole)
    return shares


def ratios_of(counts: ConfusionCounts) -> dict[str, float | None]:
    """Sensitivity, specificity, precision and F1; None where the denominator is 0."""
    cells = np.array(list(asdict(counts).values()), np.float64)
    found = {name: float(ratio(cells)) for name, ratio in RATIOS.items()}
    return {name: value if np.isfinite(value) else None for name, value in found.items()}


def shares_of(counts: ConfusionCounts) -> dict[str, float | None]:
    """Each cell of a confusion matrix as a share of its total; None for an empty one."""
    return {name: count / counts.total if counts.total else None for name, count in asdict(counts).items()}
