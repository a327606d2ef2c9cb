"""Stage predict: what the network says of every patch position with tissue, of one slide or of many in turn.

It is kept beside the heatmap (`raw_scores`), where the stage heatmap finds it; that stage asks the network itself for
what is not there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.config import PredictionOptions, PredictRun
from wsi_pipeline.errors import ModelError, PipelineError
from wsi_pipeline.geometry import Grid, PatchSpec
from wsi_pipeline.io.digests import digest_bytes, digest_json
from wsi_pipeline.io.receipts import Facts, write_receipt
from wsi_pipeline.masks.label_images import grid_fractions
from wsi_pipeline.model.device import pick_device
from wsi_pipeline.model.inference import run_inference
from wsi_pipeline.model.model_dir import ModelMetadata, load_network, read_model_json, weights_digest
from wsi_pipeline.model.prediction_cache import PredictionCache
from wsi_pipeline.model.predictor import Predictor
from wsi_pipeline.pyramid.ome_zarr import read_image
from wsi_pipeline.pyramid.patch_reader import PatchReader
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.pyramid.stain import stain_normalizer
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.slides import ConvertReceipt, StainFacts

log = logging.getLogger(__name__)

_SAVE_SECONDS = 10.0
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
    receipt: Path,
    options: PredictionOptions,
    threads: int = 1,
) -> None:
    """Predict slides whose stores and receipts lie in `slides_folder`/<slide>, with a model that is loaded once.

    A slide that cannot be predicted is left to its own stage heatmap, which says why and fails.
    """
    model = Model(weights, model_json, options)
    done = {}
    for slide in slides:
        try:
            found = predict_slide(slide, slides_folder / slide, model, output, threads)
            done[slide] = len(found.walk)
        except PipelineError as error:
            log.warning("%s: left out here: %s", slide, error)
    content = {"model_sha256": model.facts.weights_sha256, "positions": done}
    write_receipt(receipt, "predict", content, options)


class Model:
    """A model that is made ready for prediction when it is first needed."""

    def __init__(self, weights: Path, model_json: Path, options: PredictionOptions) -> None:
        """Raises `ModelError` where weights and `model.json` do not belong together."""
        self.weights, self.options = weights, options
        self.facts: ModelMetadata = read_model_json(model_json)
        if weights_digest(weights) != self.facts.weights_sha256:
            raise ModelError(
                f"{weights}: not the weights that {model_json} describes", remedy="Take both from the same model folder"
            )
        # The threads of a CPU each run a batch of their own.
        self.device = pick_device(1, options.precision)
        self._predictor: Predictor | None = None

    @property
    def predictor(self) -> Predictor:
        if self._predictor is None:
            self._predictor = Predictor(
                load_network(self.weights, self.facts),
                self.facts.size_px,
                self.facts.tumor,
                self.device,
                batch_size=self.options.batch_size,
                orientations=self.options.orientations,
            )
        return self._predictor


@dataclass(frozen=True, slots=True)
class Positions:
    """The patches of a slide that are to be predicted: row and column in its grid, and how they are read."""

    pyramid: Pyramid
    spec: PatchSpec
    grid: Grid
    rows: Index
    columns: Index
    stains: StainFacts | None
    normalise: Callable[[Pixels], Pixels]

    @classmethod
    def of(cls, slide: str, folder: Path, facts: ModelMetadata, options: PredictionOptions) -> Self:
        """Of the slide whose pyramid and tissue lie in `folder`; `StoreError` where it is too coarse for the model."""
        pyramid = Pyramid(folder / "pyramid.ome.zarr")
        spec = pyramid.patch_spec(facts.size_px, facts.mpp, allow_upsampling=options.allow_upsampling)
        grid = pyramid.grid(spec, options.stride_um)
        tissue = read_image(folder / "tissue.ome.zarr", pyramid.mpp)
        wanted = grid_fractions(tissue.data > 0, tissue.mpp, grid, pyramid.mpp) > options.min_tissue
        if not wanted.any():
            log.warning("%s: no position has more than %g tissue, the map is empty", slide, options.min_tissue)
        normalise, stains = stain_normalizer(facts.stain_normalisation, slide, pyramid, tissue)
        rows, columns = np.nonzero(wanted)
        return cls(pyramid, spec, grid, rows, columns, stains, normalise)

    def walk(self, start: int = 0, some: Index | None = None) -> PatchReader:
        """All of them, or `some`."""
        chosen = slice(None) if some is None else some
        x, y = self.grid.x()[self.columns[chosen]], self.grid.y()[self.rows[chosen]]
        return PatchReader(self.pyramid, self.spec, x, y, start=start, transform=self.normalise)

    def facts(self) -> Facts:
        """What tells them from those of other inputs."""
        return {
            "positions": digest_bytes(np.stack([self.rows, self.columns]).tobytes()),
            "grid": [self.grid.stride_px, self.grid.patch_px],
            "patch": [self.spec.size_px, self.spec.level, self.spec.read_px],
            "stains": None if self.stains is None else self.stains.model_dump(mode="json"),
        }


@dataclass(frozen=True, slots=True)
class Predicted:
    """What the network said of a slide's positions, in the order of the walk."""

    positions: Positions
    walk: PatchReader
    scores: PredictionCache


def predict_slide(slide: str, folder: Path, model: Model, output: Path, threads: int) -> Predicted:
    """Predict what is not yet in `output`/<slide>.raw.npz, and keep it there."""
    positions = Positions.of(slide, folder, model.facts, model.options)
    inputs = digest_json(
        {
            "step_version": PredictRun.step_version,
            "model": model.facts.weights_sha256,
            "pyramid": read_receipt(folder / "pyramid.json", ConvertReceipt).as_json(),
            "orientations": model.options.orientations,
            "torch": torch.__version__,
            **positions.facts(),
        }
    )
    path, count = output / f"{slide}.raw.npz", len(positions.rows)
    scores = PredictionCache.open(path, inputs, count)
    if not scores.facts or not _goes_with(scores.facts, model, is_whole=scores.done == count):
        scores = PredictionCache(path, inputs, count)
        scores.facts = precision(model, positions)
    if 0 < scores.done < count:
        log.info("%s: resuming from patch %d of %d", slide, scores.done, count)
    walk = positions.walk(scores.done)
    predict(walk, model, scores, threads)
    if not scores.whole.all():
        log.warning("%s: %d of %d patches touch damaged chunks and are left out", slide, scores.unread, count)
    return Predicted(positions, walk, scores)


def _goes_with(facts: Facts, model: Model, *, is_whole: bool) -> bool:
    """Whether scores are what the model would give, by where and in which numbers they were made."""
    has_its_numbers: bool = facts["dtype"] == model.device.precision
    if is_whole:
        return has_its_numbers or model.options.precision == "auto"
    # A map whose parts come from two kinds of device would be neither's.
    return has_its_numbers and bool(facts["device"] == model.device.kind)


def predict(walk: PatchReader, model: Model, scores: PredictionCache, threads: int) -> None:
    """Add the scores that are missing, and keep them now and then. Raises `ModelError` where one is not finite."""
    if scores.done == len(walk):
        return
    saved = time.monotonic()
    try:
        for part in run_inference(walk, model.predictor, threads, scores.done):
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


def precision(model: Model, positions: Positions) -> Facts:
    """The kind of device, the type of its numbers and, where that is not float32, how far it takes probabilities of
    some patches, all over the slide, from those of float32."""
    facts: Facts = {"device": model.device.kind, "dtype": model.device.precision}
    count = len(positions.rows)
    if model.device.dtype == torch.float32 or not count:
        return facts
    walk = positions.walk(some=np.unique(np.linspace(0, count - 1, min(count, _COMPARED)).astype(np.int64)))
    pixels = torch.empty((len(walk), *walk.shape), dtype=torch.uint8)
    whole = torch.from_numpy(walk.read(0, pixels.numpy()))
    found = model.predictor.max_difference_from_float32(pixels[whole]) if whole.any() else None
    return {**facts, "patches_compared": int(whole.sum()), "largest_difference": found}
