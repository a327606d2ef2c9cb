"""Stage confusion: where a heatmap is right and wrong at the operating point, and how often.

It also writes the slide's scores counted by truth (`.scores.parquet`), from which every curve over
any set of slides is a sum.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wsi_pipeline.config import ConfusionOptions
from wsi_pipeline.errors import StoreError
from wsi_pipeline.figures import slide_panels
from wsi_pipeline.files import publish
from wsi_pipeline.heatmaps import STEPS, grid_of
from wsi_pipeline.masks import IGNORE, TUMOR, grid_truth
from wsi_pipeline.metrics.curves import Histogram, counts_at
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.receipts import read_receipt, write_receipt
from wsi_pipeline.store import Image, LabelValue, read_image, write_image

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
    store: Path,
    receipt: Path,
    scores: Path,
    picture: Path,
    options: ConfusionOptions,
    *,
    synthetic: bool = False,
) -> None:
    """Compare one heatmap with the truth."""
    pyramid = Pyramid(pyramid_path)
    heatmap_facts = read_receipt(heatmap_receipt, "heatmap")
    if heatmap_facts["slide"] != slide:
        raise StoreError(f"{heatmap_receipt}: the heatmap of {heatmap_facts['slide']}, not of {slide}")
    heat, truth = read_image(heatmap_path, pyramid.mpp), read_image(truth_path, pyramid.mpp)
    rule = options.patch_level
    labels = grid_truth(
        truth, grid_of(heatmap_facts), pyramid.mpp,
        rule=rule.label_rule, region_um=rule.region_um, min_tumor=rule.min_tumor,
    )  # fmt: skip
    threshold = options.operating_point.threshold
    codes = classify(heat.data, labels, threshold)
    histogram = count_scores(heat.data, labels)
    counts = counts_at(histogram, threshold)
    image = Image(codes, heat.mpp, heat.first_centre_um)
    write_image(store, image, name="confusion", slide_mpp=pyramid.mpp, labels=LABELS, fill=NOT_SCORED)
    with publish(scores) as partial:
        pq.write_table(_table(histogram), partial)
    with publish(picture) as partial:
        figure = slide_panels(slide, pyramid, truth, heat, image, threshold=threshold, synthetic=synthetic)
        figure.savefig(partial, format="png")
    write_receipt(
        receipt,
        "confusion",
        {
            "slide": slide,
            "model_sha256": heatmap_facts["model_sha256"],
            "slide_score": heatmap_facts["maximum"],
            "counts": asdict(counts),
            "ignored": int((np.isfinite(heat.data) & (labels == IGNORE)).sum()),
        },
        options,
    )
    log.info(
        "%s: %d patches scored, %d true positive, %d false positive, %d false negative",
        slide, counts.total, counts.tp, counts.fp, counts.fn,
    )  # fmt: skip


def classify(heat: NDArray[np.float32], labels: NDArray[np.uint8], threshold: float) -> NDArray[np.uint8]:
    """0 TN, 1 FP, 2 FN, 3 TP, 255 where nothing is predicted or the truth is to be ignored."""
    called = np.nan_to_num(heat, nan=-1.0).astype(np.float64) >= threshold
    codes = np.where(labels == TUMOR, np.where(called, TP, FN), np.where(called, FP, TN))
    return np.where(np.isfinite(heat) & (labels != IGNORE), codes, NOT_SCORED).astype(np.uint8)


def count_scores(heat: NDArray[np.float32], labels: NDArray[np.uint8]) -> Histogram:
    """Counts of the stored scores by truth, ignored positions left out."""
    scored = np.isfinite(heat) & (labels != IGNORE)
    return Histogram.of(heat[scored], labels[scored] == TUMOR)


def _table(histogram: Histogram) -> pa.Table:
    steps = np.rint(histogram.values * STEPS).astype(np.uint16)
    return pa.table({"score": steps, "normal": histogram.normal, "tumor": histogram.tumor})


def read_scores(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Score in steps of 1/65535, and the counts of normal and tumour positions that have it."""
    try:
        table = pq.ParquetFile(path).read(use_threads=False)
        score, normal, tumor = (table[name].to_numpy().astype(np.int64) for name in ("score", "normal", "tumor"))
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise StoreError(f"{path}: not a table of scores ({error})", remedy="Run the stage confusion again") from error
    return score, normal, tumor
