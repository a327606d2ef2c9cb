"""Detections on a heatmap and the lesions they hit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import shapely
from scipy.special import expit

from wsi_pipeline.config import LesionLevelOptions
from wsi_pipeline.geometry import Grid
from wsi_pipeline.masks.geojson import Feature, feature
from wsi_pipeline.masks.label_images import TRUTH_LABELS, TUMOR, AnyImage, is_ignored, resample_labels
from wsi_pipeline.metrics.lesions import (
    CAMELYON16_LEVEL,
    CAMELYON16_MPP,
    Detection,
    SlideHits,
    component_maxima,
    find_lesions,
    match_detections,
    non_maximum_suppression,
)
from wsi_pipeline.metrics.steps import log_odds_of
from wsi_pipeline.morphology import MappedRows
from wsi_pipeline.pyramid.ome_zarr import Image
from wsi_pipeline.receipts.slides import TruthReceipt


def find_detections(heat: Image, grid: Grid, options: LesionLevelOptions) -> list[Detection]:
    """The detections on a heatmap, highest first, at the centres of their patches; confidences are its log odds."""
    min_score = log_odds_of(options.min_score)
    if options.method == "components":
        peaks = component_maxima(heat.data, min_score)
    else:
        peaks = non_maximum_suppression(heat.data, options.radius_um / heat.mpp, min_score)
    x, y = grid.x() + grid.patch_px / 2, grid.y() + grid.patch_px / 2
    return [Detection(score, float(x[column]), float(y[row])) for score, column, row in peaks]


def detections_csv(found: Sequence[Detection]) -> str:
    """Rows `confidence,x,y` in level-0 pixels, without a header, as Camelyon16 specifies.

    The confidence is the probability, in all digits of a float64.
    """
    return "".join(f"{float(expit(d.confidence))!r},{d.x:.1f},{d.y:.1f}\n" for d in found)


def detection_feature(found: Detection) -> Feature:
    """A detection as a point annotation."""
    return feature(
        shapely.Point(found.x, found.y),
        "Tumor detection",
        TRUTH_LABELS[TUMOR].rgba[:3],
        name=f"tumour {expit(found.confidence):.3f}",
        measurements={"confidence": float(expit(found.confidence)), "log odds": found.confidence},
    )


@dataclass(frozen=True, slots=True)
class LesionMatch:
    """Hits of a slide's detections, and the centroids (x, y), in level-0 pixels, of lesions that are mostly ignored."""

    hits: SlideHits
    ignored: tuple[tuple[float, float], ...]


def not_scored_reason(truth: TruthReceipt) -> str | None:
    """Why the lesions of a slide are not known; None where they are. Ignored parts are no reason."""
    if not truth.exhaustive:
        return "not all tumour is annotated"
    return None if truth.annotation_sha256 or truth.label == "normal" else "the slide has no annotation"


def match_lesions(
    found: Sequence[Detection], truth: AnyImage, slide_mpp: float, options: LesionLevelOptions
) -> LesionMatch:
    """Match detections with the lesions of a truth image, which has ignored tumour as TUMOR | IGNORE."""
    mpp = truth.mpp
    if options.protocol == "camelyon16":
        mpp = CAMELYON16_MPP * 2**CAMELYON16_LEVEL
        truth = resample_labels(truth, slide_mpp * 2**CAMELYON16_LEVEL)
    tumor = MappedRows(truth.data, lambda values: values & TUMOR > 0)
    ignored = is_ignored(truth)
    lesions = find_lesions(tumor, mpp, merge_um=options.merge_um, itc_um=options.itc_um, ignored=ignored)
    pixel_px = truth.mpp / slide_mpp
    centroids = tuple((round((x + 0.5) * pixel_px, 1), round((y + 0.5) * pixel_px, 1)) for x, y in lesions.ignored)
    return LesionMatch(match_detections(found, lesions, pixel_px), centroids)
