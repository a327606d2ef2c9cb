"""Detections on a heatmap and the lesions they hit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import shapely

from wsi_pipeline.config import LesionLevelOptions
from wsi_pipeline.geometry import Grid
from wsi_pipeline.masks.geojson import Feature, feature
from wsi_pipeline.masks.label_images import IGNORE, TRUTH_LABELS, TUMOR
from wsi_pipeline.metrics.lesions import (
    Detection,
    SlideHits,
    component_maxima,
    find_lesions,
    match_detections,
    non_maximum_suppression,
)
from wsi_pipeline.pyramid.ome_zarr import Image


def find_detections(heat: Image, grid: Grid, options: LesionLevelOptions) -> list[Detection]:
    """The detections on a heatmap, highest confidence first, at the centres of their patches."""
    if options.method == "components":
        peaks = component_maxima(heat.data, options.min_score)
    else:
        peaks = non_maximum_suppression(heat.data, options.radius_um / heat.mpp, options.min_score)
    x, y = grid.x() + grid.patch_px / 2, grid.y() + grid.patch_px / 2
    return [Detection(score, float(x[column]), float(y[row])) for score, column, row in peaks]


def detections_csv(found: Sequence[Detection]) -> str:
    """Rows `confidence,x,y` in level-0 pixels, without a header, as Camelyon16 specifies."""
    return "".join(f"{d.confidence:.6f},{d.x:.1f},{d.y:.1f}\n" for d in found)


def detection_feature(found: Detection) -> Feature:
    """A detection as a point annotation."""
    return feature(
        shapely.Point(found.x, found.y),
        "Tumor detection",
        TRUTH_LABELS[TUMOR].rgba[:3],
        name=f"tumour {found.confidence:.3f}",
        measurements={"confidence": found.confidence},
    )


@dataclass(frozen=True, slots=True)
class LesionMatch:
    """Hits of a slide's detections, and its number of isolated tumour cells, which count neither way."""

    hits: SlideHits
    isolated: int


def match_lesions(
    found: Sequence[Detection], truth: Image, slide_mpp: float, options: LesionLevelOptions
) -> LesionMatch | None:
    """Match detections with the lesions of a truth image; None for a slide that is not annotated completely."""
    if (truth.data == IGNORE).any():
        return None
    lesions = find_lesions(truth.data == TUMOR, truth.mpp, merge_um=options.merge_um, itc_um=options.itc_um)
    return LesionMatch(match_detections(found, lesions, truth.mpp / slide_mpp), len(lesions.isolated))
