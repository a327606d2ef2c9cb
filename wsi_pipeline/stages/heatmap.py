"""Stage heatmap: tumour probability of every patch position with tissue.

Patches lie on a grid of the model's size and scale. What the network says of them comes from the stage predict, or
is asked for here; it may be averaged over overlapping patches and smoothed.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.config import HeatmapRun
from wsi_pipeline.geometry import Grid
from wsi_pipeline.io.digests import digest_bytes
from wsi_pipeline.io.receipts import write_receipt
from wsi_pipeline.metrics.steps import dequantize, quantize
from wsi_pipeline.model.heatmap_filters import gaussian_filtered, overlap_mean
from wsi_pipeline.pyramid.ome_zarr import Image, write_image
from wsi_pipeline.stages.predict import Model, predict_slide

log = logging.getLogger(__name__)


def run(
    slide: str,
    slides_folder: Path,
    weights: Path,
    model_json: Path,
    output: Path,
    options: HeatmapRun,
    threads: int = 1,
) -> None:
    """Write <slide>.ome.zarr and <slide>.json into `output`, for the slide whose stores lie in `slides_folder`/<slide>.

    Raises `ModelError` where weights and `model.json` do not belong together.
    """
    model = Model(weights, model_json, options)
    found = predict_slide(slide, slides_folder / slide, model, output, threads)
    positions, grid, pyramid = found.positions, found.positions.grid, found.positions.pyramid
    order = found.walk.order
    heat = np.full((grid.rows, grid.columns), np.nan, np.float32)
    heat[positions.rows[order], positions.columns[order]] = found.scores.probabilities()
    heat = finished(heat, grid, pyramid.mpp, options)
    image = Image(heat, mpp=grid.stride_px * pyramid.mpp, first_centre_um=positions.spec.um / 2)
    store = output / f"{slide}.ome.zarr"
    write_image(store, image, name="tumour probability", slide_mpp=pyramid.mpp, fill=float("nan"))
    known = np.isfinite(heat)
    write_receipt(
        output / f"{slide}.json",
        "heatmap",
        {
            "slide": slide,
            "model_sha256": model.facts.weights_sha256,
            "slide_mpp": pyramid.mpp,
            "slide_size": [pyramid.size.width, pyramid.size.height],
            "patch_mpp": positions.spec.mpp,
            "grid": {
                "columns": grid.columns,
                "rows": grid.rows,
                "stride_px": grid.stride_px,
                "patch_px": grid.patch_px,
            },
            "stains": None if positions.stains is None else positions.stains.model_dump(mode="json"),
            "precision": found.scores.facts,
            "positions": int(known.sum()),
            "unread_positions": found.scores.unread,
            "maximum": float(heat[known].max()) if known.any() else None,
            "heatmap_sha256": digest_bytes(heat.tobytes()),
        },
        options,
    )
    log.info("%s: %d positions, highest probability %.3f", slide, known.sum(), np.nanmax(heat, initial=0))


def finished(heat: NDArray[np.float32], grid: Grid, slide_mpp: float, options: HeatmapRun) -> NDArray[np.float32]:
    """The network's probabilities averaged and smoothed as the options say, in steps of 1/65535."""
    if options.overlap_mean:
        heat = overlap_mean(heat, grid)
    if options.smoothing_um:
        heat = gaussian_filtered(heat, options.smoothing_um / (grid.stride_px * slide_mpp))
    known = np.isfinite(heat)
    heat[known] = dequantize(quantize(heat[known]))
    return heat
