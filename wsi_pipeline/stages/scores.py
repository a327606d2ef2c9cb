"""Stage scores: what a heatmap says of its slide, whatever the operating point will be.

Counts of its scores by truth, from which every curve over any slides is a sum, and features for the score
of the slide.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from wsi_pipeline.config import PatchLevelOptions
from wsi_pipeline.evaluation.labelled_heatmap import JudgedHeatmap
from wsi_pipeline.evaluation.score_histogram import ScoreCounts
from wsi_pipeline.evaluation.slide_features import slide_features
from wsi_pipeline.io.receipts import read_receipt, write_receipt
from wsi_pipeline.masks.label_images import IGNORE

log = logging.getLogger(__name__)


def run(
    slide: str,
    truth_path: Path,
    truth_receipt: Path,
    heatmap_path: Path,
    heatmap_receipt: Path,
    counts: Path,
    receipt: Path,
    options: PatchLevelOptions,
) -> None:
    """Count the scores of one slide."""
    judged = JudgedHeatmap.read(slide, heatmap_path, heatmap_receipt, truth_path, options)
    found = ScoreCounts.of(judged.heat.data, judged.labels)
    found.write(counts)
    # An annotation may be smaller than a pixel of the truth image.
    annotated = read_receipt(truth_receipt, "truth")["tumor_mm2"] > 0
    normal, tumor, ignored = (int(column.sum()) for column in (found.normal, found.tumor, found.ignored))
    content = {
        "slide": slide,
        "model_sha256": judged.facts["model_sha256"],
        "counts_sha256": found.digest,
        "positions": {"normal": normal, "tumor": tumor, "ignored": ignored},
        "unread_positions": judged.facts["unread_positions"],
        "truth": {
            "tumor": annotated,
            "ignored": bool((judged.truth.data == IGNORE).any()),
        },
        "features": slide_features(judged.heat),
    }
    write_receipt(receipt, "scores", content, options)
    highest = np.nanmax(judged.heat.data, initial=0)
    log.info("%s: %d tumour, %d normal patches, highest probability %.3f", slide, tumor, normal, highest)
