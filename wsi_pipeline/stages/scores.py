"""Stage scores: the score histogram and the slide features of a heatmap.

Neither depends on the operating point. Histograms are additive, so curves over any set of slides come from their sum.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.config import ScoresRun
from wsi_pipeline.config.loading import parse_options
from wsi_pipeline.stages.arguments import (
    HeatmapArg,
    HeatmapReceiptArg,
    Options,
    ReceiptArg,
    Slide,
    TruthArg,
    TruthReceiptArg,
)

log = logging.getLogger(__name__)
# Figures of patches lose little where scores lie in more steps, or hardly tie.
_FEW_STEPS, _MANY_A_STEP = 64, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    truth: Path
    truth_receipt: Path
    heatmap: Path
    heatmap_receipt: Path


@dataclass(frozen=True, slots=True)
class Outputs:
    histogram: Path
    receipt: Path


def command(
    *,
    truth: TruthArg,
    truth_receipt: TruthReceiptArg,
    heatmap: HeatmapArg,
    heatmap_receipt: HeatmapReceiptArg,
    slide: Slide,
    counts: Annotated[Path, typer.Option(help="Score histogram (Parquet) to write.")],
    receipt: ReceiptArg,
    options: Options = "{}",
) -> None:
    """Count the scores of a heatmap by truth."""
    inputs = Inputs(truth=truth, truth_receipt=truth_receipt, heatmap=heatmap, heatmap_receipt=heatmap_receipt)
    run(slide, inputs, Outputs(counts, receipt), parse_options(ScoresRun, options))


def run(slide: str, inputs: Inputs, outputs: Outputs, options: ScoresRun) -> None:
    """Write the score histogram of one slide. Raises `StoreError` for the heatmap of another slide."""
    import numpy as np

    from wsi_pipeline.evaluation.labelled_heatmap import LabelledHeatmap
    from wsi_pipeline.evaluation.score_histogram import ScoreHistogram
    from wsi_pipeline.evaluation.slide_features import slide_features
    from wsi_pipeline.metrics.steps import count_beyond
    from wsi_pipeline.pyramid.heatmap_store import probabilities
    from wsi_pipeline.receipts.base import read_receipt, write_receipt
    from wsi_pipeline.receipts.evaluation import PositionCounts, ScoresReceipt, SlideTruth
    from wsi_pipeline.receipts.slides import TruthReceipt

    labelled = LabelledHeatmap.read(slide, inputs.heatmap, inputs.heatmap_receipt, inputs.truth, options)
    histogram = ScoreHistogram.of(labelled.heat.data, labelled.labels)
    histogram.write(outputs.histogram)
    # From the receipt, as an annotation may be smaller than a pixel of the truth image.
    drawn = read_receipt(inputs.truth_receipt, TruthReceipt)
    annotated = drawn.tumor_mm2 + drawn.ignored_tumor_mm2 > 0
    positions = PositionCounts(
        normal=int(histogram.normal.sum()), tumor=int(histogram.tumor.sum()), ignored=int(histogram.ignored.sum())
    )
    write_receipt(
        outputs.receipt,
        ScoresReceipt(
            slide=slide,
            model_sha256=labelled.receipt.model_sha256,
            counts_sha256=histogram.digest,
            labels_sha256=labelled.labels_sha256,
            positions=positions,
            unread_positions=labelled.receipt.unread_positions,
            truth=SlideTruth(tumor=annotated, ignored=drawn.pixels.ignore > 0),
            features=slide_features(labelled.heat),
            options=options,
        ),
    )
    beyond = count_beyond(histogram.steps, histogram.normal + histogram.tumor)
    if beyond:
        log.warning(
            "%s: the log odds of %d patches lie beyond ±945, where they tie: the training may have diverged",
            slide,
            beyond,
        )
    distinct = len(np.unique(labelled.heat.data[np.isfinite(labelled.heat.data)]))
    if distinct > _MANY_A_STEP * len(histogram.steps) and len(histogram.steps) < _FEW_STEPS:
        log.warning(
            "%s: %d different log odds tie in %d steps: the network may have learnt nothing",
            slide,
            distinct,
            len(histogram.steps),
        )
    highest = np.nanmax(probabilities(labelled.heat.data), initial=0)
    log.info(
        "%s: %d tumour, %d normal patches, highest probability %.3f", slide, positions.tumor, positions.normal, highest
    )
