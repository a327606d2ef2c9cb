"""Stage patches: select the training or validation patches of a slide and store their pixels."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.config import PatchesRun
from wsi_pipeline.config.loading import parse_options
from wsi_pipeline.stages.arguments import (
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


@dataclass(frozen=True, slots=True)
class Inputs:
    pyramid: Path
    tissue: Path
    truth: Path


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
    slide: Slide,
    store: PatchStoreArg,
    index: PatchIndex,
    receipt: ReceiptArg,
    options: Options = "{}",
    threads: Threads = 1,
) -> None:
    """Draw training patches from a slide."""
    outputs = Outputs(store, index, receipt)
    run(slide, Inputs(pyramid, tissue, truth), outputs, parse_options(PatchesRun, options), threads=threads)


def run(slide: str, inputs: Inputs, outputs: Outputs, options: PatchesRun, *, threads: int = 1) -> None:
    """Draw and store the training patches of one slide."""
    from wsi_pipeline.model.patch_selection import draw_candidates, find_candidates, store_patches
    from wsi_pipeline.pyramid.ome_zarr import open_image
    from wsi_pipeline.pyramid.pyramid import Pyramid
    from wsi_pipeline.receipts.base import write_receipt
    from wsi_pipeline.receipts.slides import PatchesReceipt

    pyramid = Pyramid(inputs.pyramid)
    grid = pyramid.grid(pyramid.patch_spec(options.size_px, options.mpp), options.stride_um)
    tissue = open_image(inputs.tissue, pyramid.mpp)
    truth = open_image(inputs.truth, pyramid.mpp)
    candidates = find_candidates(tissue, truth, grid, pyramid.mpp, options)
    drawn = candidates.take(draw_candidates(candidates.label, slide, options))
    found, kept = candidates.counts(), drawn.counts()
    stored = store_patches(
        slide,
        pyramid,
        tissue,
        drawn,
        options,
        store=outputs.store,
        index=outputs.index,
        normal_drawn_as="normal beside tumor" if kept.tumor else "normal",
        threads=threads,
    )
    write_receipt(
        outputs.receipt,
        PatchesReceipt(
            slide=slide,
            size_px=options.size_px,
            border_px=options.border_px,
            mpp=stored.mpp,
            factor=stored.factor,
            grid=(grid.columns, grid.rows),
            candidates=found,
            drawn=kept,
            stains=stored.stains,
            store_sha256=stored.store_sha256,
            index_sha256=stored.index_sha256,
            options=options,
        ),
    )
    log.info("%s: %d tumour patches of %d, %d normal of %d", slide, kept.tumor, found.tumor, kept.normal, found.normal)
