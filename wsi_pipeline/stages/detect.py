"""Stage detect: detections on a heatmap, and the lesions they hit."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.config import DetectRun
from wsi_pipeline.config.loading import parse_options
from wsi_pipeline.stages.arguments import (
    Geojson,
    HeatmapArg,
    HeatmapReceiptArg,
    Options,
    ReceiptArg,
    Slide,
    TruthArg,
    TruthReceiptArg,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    truth: Path
    truth_receipt: Path
    heatmap: Path
    heatmap_receipt: Path


@dataclass(frozen=True, slots=True)
class Outputs:
    detections: Path
    geojson: Path
    receipt: Path


def command(
    *,
    truth: TruthArg,
    truth_receipt: TruthReceiptArg,
    heatmap: HeatmapArg,
    heatmap_receipt: HeatmapReceiptArg,
    slide: Slide,
    detections: Annotated[Path, typer.Option(help="CSV of confidence,x,y to write.")],
    geojson: Geojson,
    receipt: ReceiptArg,
    options: Options = "{}",
) -> None:
    """Find detections on a heatmap and the lesions that they hit."""
    inputs = Inputs(truth=truth, truth_receipt=truth_receipt, heatmap=heatmap, heatmap_receipt=heatmap_receipt)
    run(slide, inputs, Outputs(detections, geojson, receipt), parse_options(DetectRun, options))


def run(slide: str, inputs: Inputs, outputs: Outputs, options: DetectRun) -> None:
    """Write the detections of one slide (`confidence,x,y` in level-0 pixels, no header) and the lesions they hit.

    Raises `StoreError` for the heatmap of another slide.
    """
    from wsi_pipeline.evaluation.detections import (
        detection_feature,
        detections_csv,
        find_detections,
        match_lesions,
        not_scored_reason,
    )
    from wsi_pipeline.io.atomic import write_text
    from wsi_pipeline.io.digests import digest_file
    from wsi_pipeline.masks.geojson import write_features
    from wsi_pipeline.pyramid.heatmap_store import read_log_odds
    from wsi_pipeline.pyramid.ome_zarr import open_image
    from wsi_pipeline.receipts.base import read_receipt, write_receipt
    from wsi_pipeline.receipts.evaluation import DetectReceipt
    from wsi_pipeline.receipts.models import read_heatmap_receipt
    from wsi_pipeline.receipts.slides import TruthReceipt

    facts = read_heatmap_receipt(inputs.heatmap_receipt, slide)
    found = find_detections(read_log_odds(inputs.heatmap, facts.slide_mpp), facts.grid, options)
    write_text(outputs.detections, detections_csv(found))
    truth = read_receipt(inputs.truth_receipt, TruthReceipt)
    write_features(outputs.geojson, map(detection_feature, found), truth.qupath_origin)
    matched, reason = None, not_scored_reason(truth)
    if reason is None:
        matched = match_lesions(found, open_image(inputs.truth, facts.slide_mpp), facts.slide_mpp, options)
    write_receipt(
        outputs.receipt,
        DetectReceipt(
            slide=slide,
            model_sha256=facts.model_sha256,
            detections=len(found),
            detections_sha256=digest_file(outputs.detections),
            truth_sha256=truth.truth_sha256,
            lesions=matched and matched.hits.lesions,
            false_positives=matched and matched.hits.false_positives,
            isolated=matched and matched.hits.isolated,
            ignored=matched and matched.ignored,
            reason=reason,
            options=options,
        ),
    )
    if matched:
        hits = matched.hits
        said = f"{len(hits.hits)} of {len(hits.lesions)} lesions hit, {len(hits.false_positives)} false positives"
    else:
        said = f"lesions not scored: {reason}"
    log.info("%s: %d detections, %s", slide, len(found), said)
