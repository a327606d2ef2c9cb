"""Stage heatmap: the tumour probability of every patch position with tissue.

Patches lie on a grid of the model's size and scale. Their log odds come from the stage predict or from the model; their
probabilities may be averaged over overlapping patches and smoothed.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.config import HeatmapRun
from wsi_pipeline.config.loading import parse_options
from wsi_pipeline.stages.arguments import (
    AllowUpsampling,
    ModelArg,
    Options,
    PredictionCheckpoints,
    Slide,
    SlidesFolder,
    Threads,
    WeightsArg,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """`slides` holds the stores and receipts of each slide in a folder of its name.

    `predictions` is the output folder of the stage predict; by default the model is run here.
    """

    slides: Path
    weights: Path
    model: Path
    predictions: Path | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """`folder` gets <slide>.ome.zarr and <slide>.json; `checkpoints`, by default the same, unfinished predictions."""

    folder: Path
    checkpoints: Path | None = None


def command(
    *,
    slides: SlidesFolder,
    slide: Slide,
    weights: WeightsArg,
    model: ModelArg,
    output: Annotated[Path, typer.Option(help="Folder to write <slide>.ome.zarr and <slide>.json into.")],
    predictions: Annotated[
        Path | None, typer.Option(help="Folder that the stage predict wrote into; else the model is run here.")
    ] = None,
    checkpoints: PredictionCheckpoints = None,
    allow_upsampling: AllowUpsampling = False,
    options: Options = "{}",
    threads: Threads = 1,
) -> None:
    """Predict the tumour probability of every patch of a slide."""
    parsed = parse_options(HeatmapRun, options)
    if allow_upsampling:
        parsed = parsed.model_copy(update={"allow_upsampling": True})
    inputs = Inputs(slides=slides, weights=weights, model=model, predictions=predictions)
    run(slide, inputs, Outputs(output, checkpoints), parsed, threads=threads)


def run(slide: str, inputs: Inputs, outputs: Outputs, options: HeatmapRun, *, threads: int = 1) -> None:
    """Write the heatmap of one slide. Raises `ModelError` unless `model.json` describes the weights."""
    import numpy as np

    from wsi_pipeline.io.digests import digest_bytes
    from wsi_pipeline.model.heatmap_filters import filtered
    from wsi_pipeline.model.slide_prediction import TrainedModel, predict_slide
    from wsi_pipeline.pyramid.heatmap_store import probabilities, write_heatmap
    from wsi_pipeline.pyramid.ome_zarr import Image
    from wsi_pipeline.receipts.base import write_receipt
    from wsi_pipeline.receipts.models import HeatmapReceipt

    model = TrainedModel(inputs.weights, inputs.model, options)
    checkpoints = outputs.checkpoints or outputs.folder
    found = predict_slide(slide, inputs.slides / slide, model, checkpoints, threads, inputs.predictions)
    pyramid = found.patches.pyramid
    grid = found.patches.grid
    spec = found.patches.spec
    heat = filtered(found.heatmap(), grid, pyramid.mpp, options)
    image = Image(heat, mpp=grid.stride_px * pyramid.mpp, first_centre_um=spec.um / 2)
    store = outputs.folder / f"{slide}.ome.zarr"
    write_heatmap(store, image, found.patches.tissue, pyramid.mpp)
    known = np.isfinite(heat)
    write_receipt(
        outputs.folder / f"{slide}.json",
        HeatmapReceipt(
            slide=slide,
            model_sha256=model.metadata.weights_sha256,
            slide_mpp=pyramid.mpp,
            slide_size=(pyramid.size.width, pyramid.size.height),
            patch_mpp=spec.mpp,
            factor=spec.factor,
            grid=grid,
            stains=found.patches.stains,
            precision=found.cache.precision,
            positions=int(known.sum()),
            unread_positions=found.cache.unread,
            maximum_log_odds=float(heat[known].max()) if known.any() else None,
            heatmap_sha256=digest_bytes(heat.tobytes()),
            options=options,
        ),
    )
    highest = np.nanmax(probabilities(heat), initial=0)
    log.info("%s: %d positions, highest probability %.3f", slide, known.sum(), highest)
