"""Stage heatmap: tumour probability of every patch position with tissue.

Patches lie on a grid of the model's size and scale. What the network says of them is kept beside the heatmap
while a slide is predicted and after it, so that nothing is predicted twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.config import STEP_VERSIONS, HeatmapRun
from wsi_pipeline.errors import ModelError, PipelineError
from wsi_pipeline.files import digest_bytes, digest_file, digest_json
from wsi_pipeline.geometry import Grid, PatchSpec
from wsi_pipeline.heatmap_filters import overlap_mean, smoothed
from wsi_pipeline.masks import grid_shares
from wsi_pipeline.metrics.steps import to_steps, to_values
from wsi_pipeline.model.device import pick_device
from wsi_pipeline.model.folder import ModelFacts, load_network, read_model_json
from wsi_pipeline.model.prediction import Predictor
from wsi_pipeline.model.scan import scan
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.raw_scores import RawScores
from wsi_pipeline.receipts import Facts, read_receipt, write_receipt
from wsi_pipeline.stain import normaliser
from wsi_pipeline.store import Image, read_image, write_image
from wsi_pipeline.walk import Walk

log = logging.getLogger(__name__)

_SAVE_SECONDS = 30.0
# Patches of a slide whose probabilities are compared with those of float32.
_COMPARED = 64

Index = NDArray[np.int64]
Pixels = NDArray[np.uint8]


def run(
    slides: Sequence[str],
    slides_folder: Path,
    weights: Path,
    model_json: Path,
    output: Path,
    options: HeatmapRun,
    threads: int = 1,
) -> None:
    """Predict slides whose stores and receipts lie in `slides_folder`/<slide>.

    Writes <slide>.ome.zarr and <slide>.json into `output`. Raises `ModelError` where weights and `model.json` do not
    belong together; where one of several slides cannot be predicted the others are all the same.
    """
    facts = read_model_json(model_json)
    if digest_file(weights) != facts.weights_sha256:
        raise ModelError(
            f"{weights}: not the weights that {model_json} describes", remedy="Take both from the same model folder"
        )
    model = Model(weights, facts, options)
    failed = []
    for slide in slides:
        try:
            predict_slide(slide, slides_folder / slide, model, output, options, threads)
        except PipelineError as error:
            if len(slides) == 1:
                raise
            log.error("error: %s", error)
            failed.append(slide)
    if failed:
        raise PipelineError(f"{len(failed)} of {len(slides)} slides could not be predicted: {', '.join(failed)}")


class Model:
    """A model that is made ready for prediction when it is first needed."""

    def __init__(self, weights: Path, facts: ModelFacts, options: HeatmapRun) -> None:
        self.weights, self.facts, self._options = weights, facts, options
        # The threads of a CPU each run a batch of their own.
        self.device = pick_device(1)
        self._predictor: Predictor | None = None

    @property
    def predictor(self) -> Predictor:
        if self._predictor is None:
            self._predictor = Predictor(
                load_network(self.weights, self.facts), self.facts.size_px, self.facts.tumor, self.device,
                batch_size=self._options.batch_size, orientations=self._options.orientations,
            )  # fmt: skip
        return self._predictor


def predict_slide(slide: str, folder: Path, model: Model, output: Path, options: HeatmapRun, threads: int) -> None:
    """Predict one slide."""
    facts = model.facts
    pyramid = Pyramid(folder / "pyramid.ome.zarr")
    spec = pyramid.patch_spec(facts.size_px, facts.mpp, allow_upsampling=options.allow_upsampling)
    grid = pyramid.grid(spec, options.stride_um)
    tissue = read_image(folder / "tissue.ome.zarr", pyramid.mpp)
    wanted = grid_shares(tissue.data > 0, tissue.mpp, grid, pyramid.mpp) > options.min_tissue
    if not wanted.any():
        log.warning("%s: no position has more than %g tissue, the map is empty", slide, options.min_tissue)
    normalise, stains = normaliser(facts.stain_normalisation, slide, pyramid, tissue)
    rows, columns = np.nonzero(wanted)
    x, y = grid.x()[columns], grid.y()[rows]
    inputs = digest_json(
        {
            "step_version": STEP_VERSIONS["heatmap"],
            "model": facts.weights_sha256,
            "pyramid": read_receipt(folder / "pyramid.json", "convert"),
            "positions": digest_bytes(np.stack([x, y]).tobytes()),
            "stains": stains,
            "orientations": options.orientations,
            "batch_size": options.batch_size if model.device.is_cuda else None,
            "patch": [spec.size_px, spec.level, spec.read_px],
            "torch": [torch.__version__, model.device.kind],
        }
    )
    scores = RawScores.open(output / f"{slide}.raw.npz", inputs, len(x))
    if 0 < scores.done < len(x):
        log.info("%s: going on from patch %d of %d", slide, scores.done, len(x))
    walk = Walk(pyramid, spec, x, y, start=scores.done, change=normalise)
    if not scores.facts:
        scores.facts = precision(model, pyramid, spec, x, y, normalise)
    predict(walk, model, scores, threads)
    heat = np.full(wanted.shape, np.nan, np.float32)
    heat[rows[walk.order], columns[walk.order]] = scores.probabilities()
    unread = int((~scores.whole).sum())
    if unread:
        log.warning("%s: %d of %d patches touch damaged chunks and are left out", slide, unread, len(x))
    heat = finished(heat, grid, pyramid.mpp, options)
    image = Image(heat, mpp=grid.stride_px * pyramid.mpp, first_centre_um=spec.um / 2)
    write_image(
        output / f"{slide}.ome.zarr", image, name="tumour probability", slide_mpp=pyramid.mpp, fill=float("nan")
    )
    known = np.isfinite(heat)
    write_receipt(
        output / f"{slide}.json",
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
            "precision": scores.facts,
            "positions": int(known.sum()),
            "unread_positions": unread,
            "maximum": float(heat[known].max()) if known.any() else None,
            "heatmap_sha256": digest_bytes(heat.tobytes()),
        },
        options,
    )
    log.info("%s: %d positions, highest probability %.3f", slide, known.sum(), np.nanmax(heat, initial=0))


def predict(walk: Walk, model: Model, scores: RawScores, threads: int) -> None:
    """Add the scores that are missing, and keep them now and then. Raises `ModelError` where one is not finite."""
    if scores.done == len(walk):
        return
    saved = time.monotonic()
    try:
        for part in scan(walk, model.predictor, threads, scores.done):
            if not np.isfinite(part.probabilities[part.whole]).all():
                raise ModelError(
                    f"{model.weights}: the network gives values that are not finite",
                    remedy="Train again, with a lower learning rate",
                )
            scores.add(part.first, part.probabilities, part.whole)
            if time.monotonic() - saved > _SAVE_SECONDS:
                scores.save()
                saved = time.monotonic()
    finally:
        scores.save()


def precision(
    model: Model, pyramid: Pyramid, spec: PatchSpec, x: Index, y: Index, change: Callable[[Pixels], Pixels]
) -> Facts:
    """The type of the network's numbers and, where it is not float32, how far that takes probabilities of some
    patches, all over the slide, from those of float32."""
    if not model.device.is_cuda:
        return {"dtype": "float32"}
    some = np.unique(np.linspace(0, len(x) - 1, min(len(x), _COMPARED)).astype(np.int64))
    walk = Walk(pyramid, spec, x[some], y[some], change=change)
    pixels = torch.empty((len(walk), *walk.shape), dtype=torch.uint8)
    whole = torch.from_numpy(walk.read(0, pixels.numpy()))
    found = model.predictor.difference(pixels[whole]) if whole.any() else None
    return {"dtype": "bfloat16", "patches_compared": int(whole.sum()), "largest_difference": found}


def finished(heat: NDArray[np.float32], grid: Grid, slide_mpp: float, options: HeatmapRun) -> NDArray[np.float32]:
    """The network's probabilities averaged and smoothed as the options say, in steps of 1/65535."""
    if options.overlap_mean:
        heat = overlap_mean(heat, grid)
    if options.smoothing_um:
        heat = smoothed(heat, options.smoothing_um / (grid.stride_px * slide_mpp))
    known = np.isfinite(heat)
    heat[known] = to_values(to_steps(heat[known]))
    return heat
