"""Stage heatmap: tumour probability of every patch position with tissue.

Patches lie on a grid of the model's size and scale. Reading and predicting overlap; memory is
bounded by the batches in flight.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.config import HeatmapOptions
from wsi_pipeline.errors import ModelError
from wsi_pipeline.files import digest_bytes, digest_file
from wsi_pipeline.geometry import Grid
from wsi_pipeline.masks import grid_shares
from wsi_pipeline.metrics.steps import STEPS
from wsi_pipeline.model.augment import to_input, to_unit
from wsi_pipeline.model.device import Device, pick_device
from wsi_pipeline.model.folder import load_network, read_model_json
from wsi_pipeline.model.inception import InceptionV3, folded
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.receipts import write_receipt
from wsi_pipeline.stain import normaliser
from wsi_pipeline.store import Image, read_image, write_image

log = logging.getLogger(__name__)

_LOG_SECONDS = 30.0
_READ_AHEAD = 2

Position = tuple[int, int]
# The patch whose top left corner is at the level-0 pixel (x, y), (size, size, 3).
ReadPatch = Callable[[int, int], NDArray[np.uint8]]


def run(
    slide: str,
    pyramid_path: Path,
    tissue_path: Path,
    weights: Path,
    model_json: Path,
    store: Path,
    receipt: Path,
    options: HeatmapOptions,
    threads: int = 1,
) -> None:
    """Predict one slide. Raises `ModelError` where weights and `model.json` do not belong together."""
    facts = read_model_json(model_json)
    if digest_file(weights) != facts.weights_sha256:
        raise ModelError(
            f"{weights}: not the weights that {model_json} describes", remedy="Take both from the same model folder"
        )
    device = pick_device(options.cpu_threads)
    network = folded(load_network(weights, facts)).to(device.device)
    pyramid = Pyramid(pyramid_path)
    spec = pyramid.patch_spec(facts.size_px, facts.mpp)
    grid = pyramid.grid(spec, options.stride_um)
    tissue = read_image(tissue_path, pyramid.mpp)
    wanted = grid_shares(tissue.data > 0, tissue.mpp, grid, pyramid.mpp) > options.min_tissue
    if not wanted.any():
        log.warning("%s: no position has more than %g tissue, the map is empty", slide, options.min_tissue)
    normalise, stains = normaliser(facts.stain_normalisation, slide, pyramid, tissue)

    def read(x: int, y: int) -> NDArray[np.uint8]:
        return normalise(pyramid.read_patch(x, y, spec))

    heat = np.full(wanted.shape, np.nan, np.float32)
    heat[wanted] = predict(network, facts.tumor, device, read, grid, wanted, options.batch_size, threads)
    image = Image(heat, mpp=grid.stride_px * pyramid.mpp, first_centre_um=spec.um / 2)
    write_image(store, image, name="tumour probability", slide_mpp=pyramid.mpp, fill=float("nan"))
    write_receipt(
        receipt,
        "heatmap",
        {
            "slide": slide,
            "model_sha256": facts.weights_sha256,
            "slide_mpp": pyramid.mpp,
            "slide_size": [pyramid.size.width, pyramid.size.height],
            "patch_mpp": spec.mpp,
            "grid": {
                "columns": grid.columns,
                "rows": grid.rows,
                "stride_px": grid.stride_px,
                "patch_px": grid.patch_px,
            },
            "stains": stains,
            "positions": int(wanted.sum()),
            "maximum": None if not wanted.any() else float(np.nanmax(heat)),
            "heatmap_sha256": digest_bytes(heat.tobytes()),
        },
        options,
    )
    log.info("%s: %d positions, highest probability %.3f", slide, wanted.sum(), np.nanmax(heat, initial=0))


def predict(
    network: InceptionV3,
    tumor: int,
    device: Device,
    read: ReadPatch,
    grid: Grid,
    wanted: NDArray[np.bool_],
    batch_size: int,
    threads: int,
) -> NDArray[np.float32]:
    """Tumour probability at the positions of `wanted` (rows, columns), row by row, in steps of 1/65535."""
    rows, columns = np.nonzero(wanted)
    corners = list(zip(grid.x()[columns].tolist(), grid.y()[rows].tolist(), strict=True))
    out = np.empty(len(corners), np.float32)
    done, started = 0, time.monotonic()
    logged = started
    with torch.inference_mode():
        for pixels in _read_batches(read, corners, batch_size, threads):
            with device.autocast():
                logits = network(to_input(to_unit(pixels, device.device)))
            scores = logits.float().softmax(1)[:, tumor].cpu().numpy()
            out[done : done + len(scores)] = np.rint(scores * STEPS) / STEPS
            done += len(scores)
            if time.monotonic() - logged > _LOG_SECONDS:
                logged = time.monotonic()
                rate = done / (logged - started)
                log.info("%d of %d patches, %.1f/s, %.1f min left", done, len(out), rate, (len(out) - done) / rate / 60)
    return out


def _read_batches(
    read: ReadPatch, corners: list[Position], batch_size: int, threads: int
) -> Iterator[NDArray[np.uint8]]:
    parts = (corners[start : start + batch_size] for start in range(0, len(corners), batch_size))
    with ThreadPoolExecutor(threads) as pool:

        def submit(part: list[Position]) -> list[Future[NDArray[np.uint8]]]:
            return [pool.submit(read, x, y) for x, y in part]

        pending = [submit(part) for part in islice(parts, _READ_AHEAD)]
        while pending:
            batch = pending.pop(0)
            following = next(parts, None)
            if following is not None:
                pending.append(submit(following))
            yield np.stack([future.result() for future in batch])
