"""Stage detect: points that are called tumour, and the lesions that they hit."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import shapely

from wsi_pipeline.config import LesionLevelOptions
from wsi_pipeline.evaluation.labelled_heatmap import grid_of
from wsi_pipeline.io.atomic import write_text
from wsi_pipeline.io.digests import digest_file
from wsi_pipeline.io.receipts import read_receipt, write_receipt
from wsi_pipeline.masks.geojson import Feature, feature, write_features
from wsi_pipeline.masks.label_images import IGNORE, TUMOR
from wsi_pipeline.metrics.lesions import (
    Detection,
    component_maxima,
    find_lesions,
    match_detections,
    non_maximum_suppression,
)
from wsi_pipeline.plots.colors import TUMOR_COLOR
from wsi_pipeline.pyramid.ome_zarr import read_image

log = logging.getLogger(__name__)


def run(
    slide: str,
    truth_path: Path,
    heatmap_path: Path,
    heatmap_receipt: Path,
    detections: Path,
    geojson: Path,
    receipt: Path,
    options: LesionLevelOptions,
) -> None:
    """Write the detections of one slide (`confidence,x,y` in level-0 pixels, no header) and what they hit."""
    facts = read_receipt(heatmap_receipt, "heatmap")
    slide_mpp = float(facts["slide_mpp"])
    heat, truth = read_image(heatmap_path, slide_mpp), read_image(truth_path, slide_mpp)
    grid = grid_of(facts)
    x, y = grid.x() + grid.patch_px / 2, grid.y() + grid.patch_px / 2
    if options.method == "components":
        peaks = component_maxima(heat.data, options.min_score)
    else:
        peaks = non_maximum_suppression(heat.data, options.radius_um / heat.mpp, options.min_score)
    found = [Detection(score, float(x[column]), float(y[row])) for score, column, row in peaks]
    write_text(detections, "".join(f"{d.confidence:.6f},{d.x:.1f},{d.y:.1f}\n" for d in found))
    write_features(geojson, map(_feature, found))
    content = {
        "slide": slide,
        "model_sha256": facts["model_sha256"],
        "detections": len(found),
        "detections_sha256": digest_file(detections),
        **_lesion_facts(found, truth.data, truth.mpp, slide_mpp, options),
    }
    write_receipt(receipt, "detect", content, options)
    log.info("%s: %d detections, %s", slide, len(found), _said(content))


def _lesion_facts(
    found: list[Detection], truth: np.ndarray, truth_mpp: float, slide_mpp: float, options: LesionLevelOptions
) -> dict[str, object]:
    if (truth == IGNORE).any():
        reason = "parts of the slide are not annotated"
        return {"lesions": None, "false_positives": None, "isolated": None, "reason": reason}
    lesions = find_lesions(truth == TUMOR, truth_mpp, merge_um=options.merge_um, itc_um=options.itc_um)
    hits = match_detections(found, lesions, truth_mpp / slide_mpp)
    return {
        "lesions": list(hits.lesions),
        "false_positives": list(hits.false_positives),
        "isolated": len(lesions.isolated),
        "reason": None,
    }


def _said(content: dict[str, object]) -> str:
    lesions, misses = content["lesions"], content["false_positives"]
    if not isinstance(lesions, list) or not isinstance(misses, list):
        return f"lesions not scored: {content['reason']}"
    return f"{sum(c > 0 for c in lesions)} of {len(lesions)} lesions hit, {len(misses)} false positives"


def _feature(found: Detection) -> Feature:
    return feature(
        shapely.Point(found.x, found.y),
        "Tumor detection",
        TUMOR_COLOR,
        name=f"tumour {found.confidence:.3f}",
        measurements={"confidence": found.confidence},
    )
