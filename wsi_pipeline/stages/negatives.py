"""Stage negatives: normal patches of a training slide with high tumour scores, as further training patches."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.config import NegativesRun
from wsi_pipeline.config.loading import parse_options
from wsi_pipeline.stages.arguments import (
    HeatmapArg,
    HeatmapReceiptArg,
    Options,
    PatchIndex,
    PatchStoreArg,
    PyramidArg,
    ReceiptArg,
    Slide,
    Threads,
    TissueArg,
    TruthArg,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    pyramid: Path
    tissue: Path
    truth: Path
    heatmap: Path
    heatmap_receipt: Path


@dataclass(frozen=True, slots=True)
class Outputs:
    """`index` is a Parquet table with one row per patch of `store`, in the same order."""

    store: Path
    index: Path
    receipt: Path


def command(
    *,
    pyramid: PyramidArg,
    tissue: TissueArg,
    truth: TruthArg,
    heatmap: HeatmapArg,
    heatmap_receipt: HeatmapReceiptArg,
    slide: Slide,
    store: PatchStoreArg,
    index: PatchIndex,
    receipt: ReceiptArg,
    options: Options = "{}",
    threads: Threads = 1,
) -> None:
    """Draw the normal patches of a slide with the highest tumour scores (hard negatives)."""
    inputs = Inputs(pyramid=pyramid, tissue=tissue, truth=truth, heatmap=heatmap, heatmap_receipt=heatmap_receipt)
    run(slide, inputs, Outputs(store, index, receipt), parse_options(NegativesRun, options), threads=threads)


def run(slide: str, inputs: Inputs, outputs: Outputs, options: NegativesRun, *, threads: int = 1) -> None:
    """Store the normal patches of one slide with the highest scores, at positions of its heatmap.

    Raises `StoreError` for the heatmap of another slide.
    """
    import numpy as np

    from wsi_pipeline.metrics.steps import log_odds_of
    from wsi_pipeline.model.patch_selection import find_candidates, highest_scores, scores_of, store_patches
    from wsi_pipeline.pyramid.heatmap_store import read_log_odds
    from wsi_pipeline.pyramid.ome_zarr import open_image
    from wsi_pipeline.pyramid.pyramid import Pyramid
    from wsi_pipeline.receipts.base import write_receipt
    from wsi_pipeline.receipts.models import read_heatmap_receipt
    from wsi_pipeline.receipts.slides import NegativesReceipt

    pyramid = Pyramid(inputs.pyramid)
    facts = read_heatmap_receipt(inputs.heatmap_receipt, slide)
    heatmap = read_log_odds(inputs.heatmap, pyramid.mpp)
    tissue = open_image(inputs.tissue, pyramid.mpp)
    truth = open_image(inputs.truth, pyramid.mpp)
    grid = facts.grid
    candidates = find_candidates(tissue, truth, grid, pyramid.mpp, options)
    normal = candidates.take(np.flatnonzero(candidates.label == 0))
    scores = scores_of(heatmap.data, grid, normal)
    drawn = normal.take(highest_scores(scores, log_odds_of(options.min_score), options.per_slide))
    stored = store_patches(
        slide,
        pyramid,
        tissue,
        drawn,
        options,
        store=outputs.store,
        index=outputs.index,
        normal_drawn_as="hard normal",
        threads=threads,
    )
    write_receipt(
        outputs.receipt,
        NegativesReceipt(
            slide=slide,
            model_sha256=facts.model_sha256,
            size_px=options.size_px,
            border_px=options.border_px,
            mpp=stored.mpp,
            factor=stored.factor,
            candidates=normal.counts(),
            drawn=drawn.counts(),
            stains=stored.stains,
            store_sha256=stored.store_sha256,
            index_sha256=stored.index_sha256,
            options=options,
        ),
    )
    log.info("%s: %d of %d normal patches at %g or above", slide, len(drawn.x), len(scores), options.min_score)
