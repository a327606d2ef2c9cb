"""The prediction of a whole slide: inference on all patches with tissue, resumed from a cache, and the raw heatmap."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.config import PredictionOptions, PredictRun
from wsi_pipeline.errors import ModelError
from wsi_pipeline.geometry import Grid, PatchSpec
from wsi_pipeline.io.digests import digest_bytes, digest_json
from wsi_pipeline.masks.label_images import grid_fractions, is_tissue
from wsi_pipeline.model.device import pick_device
from wsi_pipeline.model.inference import run_inference
from wsi_pipeline.model.model_dir import ModelMetadata, load_network, read_model_json, weights_digest
from wsi_pipeline.model.prediction_cache import PredictionCache
from wsi_pipeline.model.predictor import Predictor
from wsi_pipeline.pyramid.ome_zarr import open_image
from wsi_pipeline.pyramid.patch_reader import PatchReader
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.pyramid.stain import stain_normalizer
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.models import PrecisionFacts
from wsi_pipeline.receipts.slides import ConvertReceipt, StainFacts

log = logging.getLogger(__name__)

_SAVE_SECONDS = 10.0
# Patches of a slide that are predicted in float32 too, to measure the effect of a lower precision.
_COMPARED = 64

Index = NDArray[np.int64]
Pixels = NDArray[np.uint8]


class TrainedModel:
    """A model folder's weights, and the predictor made from them at the first use."""

    def __init__(self, weights: Path, model_json: Path, options: PredictionOptions) -> None:
        """Raises `ModelError` unless `model.json` describes the weights."""
        self.weights = weights
        self.options = options
        self.metadata: ModelMetadata = read_model_json(model_json)
        if weights_digest(weights) != self.metadata.weights_sha256:
            raise ModelError(
                f"{weights}: not the weights that {model_json} describes", remedy="Take both from the same model folder"
            )
        # One process: on a CPU each thread runs batches of its own.
        self.device = pick_device(1, options.precision)

    @cached_property
    def predictor(self) -> Predictor:
        return Predictor(
            load_network(self.weights, self.metadata),
            self.metadata.size_px,
            self.metadata.tumor,
            self.device,
            batch_size=self.options.batch_size,
            orientations=self.options.orientations,
        )


@dataclass(frozen=True, slots=True)
class SlidePatches:
    """The patches of a slide to predict: `rows` and `columns` (n,) of its grid, and how they are read.

    `tissue` (grid rows, grid columns) is the share of tissue of all patches of the grid.
    """

    pyramid: Pyramid
    spec: PatchSpec
    grid: Grid
    rows: Index
    columns: Index
    tissue: NDArray[np.float32]
    stains: StainFacts | None
    normalise: Callable[[Pixels], Pixels]

    @classmethod
    def of(cls, slide: str, folder: Path, metadata: ModelMetadata, options: PredictionOptions) -> Self:
        """The patches with tissue of the slide whose pyramid and tissue mask lie in `folder`.

        Raises `StoreError` for a slide coarser than the model, unless `options.allow_upsampling`.
        """
        pyramid = Pyramid(folder / "pyramid.ome.zarr")
        spec = pyramid.patch_spec(metadata.size_px, metadata.mpp, allow_upsampling=options.allow_upsampling)
        grid = pyramid.grid(spec, options.stride_um)
        tissue = open_image(folder / "tissue.ome.zarr", pyramid.mpp)
        share = grid_fractions(is_tissue(tissue), tissue.mpp, grid, pyramid.mpp)
        wanted = share > options.min_tissue
        if not wanted.any():
            log.warning("%s: no position has more than %g tissue, the map is empty", slide, options.min_tissue)
        normalise, stains = stain_normalizer(metadata.stain_normalisation, slide, pyramid, tissue)
        rows, columns = np.nonzero(wanted)
        return cls(pyramid, spec, grid, rows, columns, share.astype(np.float32), stains, normalise)

    def __len__(self) -> int:
        return len(self.rows)

    def reader(self, start: int = 0) -> PatchReader:
        """A reader of all patches, from index `start` of its order on."""
        return self._reader(self.rows, self.columns, start)

    def sample(self, count: int) -> PatchReader:
        """A reader of at most `count` patches, spread evenly over the slide."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(len(self), count)).astype(np.int64))
        return self._reader(self.rows[chosen], self.columns[chosen], 0)

    def _reader(self, rows: Index, columns: Index, start: int) -> PatchReader:
        x, y = self.grid.x()[columns], self.grid.y()[rows]
        return PatchReader(self.pyramid, self.spec, x, y, start=start, transform=self.normalise)

    def digest(self, model: TrainedModel, pyramid: ConvertReceipt) -> str:
        """SHA-256 of everything that the predictions of these patches depend on."""
        return digest_json(
            {
                "step_version": PredictRun.step_version,
                "model": model.metadata.weights_sha256,
                "pyramid": pyramid.as_json(),
                "orientations": model.options.orientations,
                "torch": torch.__version__,
                "positions": digest_bytes(np.stack([self.rows, self.columns]).tobytes()),
                "grid": [self.grid.stride_px, self.grid.patch_px],
                "patch": [self.spec.size_px, self.spec.level, self.spec.read_px],
                "stains": self.stains and self.stains.as_json(),
            }
        )


@dataclass(frozen=True, slots=True)
class SlidePrediction:
    """The complete predictions of a slide; `order` (n,) are the patch indices in the order of `cache`."""

    patches: SlidePatches
    order: Index
    cache: PredictionCache

    def heatmap(self) -> NDArray[np.float32]:
        """Log odds (rows, columns) on the grid; NaN for positions without tissue and on damaged chunks."""
        grid = self.patches.grid
        heat = np.full((grid.rows, grid.columns), np.nan, np.float32)
        heat[self.patches.rows[self.order], self.patches.columns[self.order]] = self.cache.log_odds
        return heat


def cache_path(folder: Path, slide: str) -> Path:
    """The file of a slide's predictions in `folder`."""
    return folder / f"{slide}.raw.npz"


def predict_slide(
    slide: str, folder: Path, model: TrainedModel, checkpoints: Path, threads: int, predictions: Path | None = None
) -> SlidePrediction:
    """Predict the slide whose stores and receipts lie in `folder`.

    Predictions in the folder `predictions` are taken where they are complete and of the same inputs. Otherwise the
    model is run on the patches missing in `checkpoints`/<slide>.raw.npz, which is kept up to date.
    """
    patches = SlidePatches.of(slide, folder, model.metadata, model.options)
    inputs = patches.digest(model, read_receipt(folder / "pyramid.json", ConvertReceipt))
    count = len(patches)
    if predictions is not None:
        # Patches on damaged chunks stay unread: the job that predicts has the GPU, this one may have none.
        made = PredictionCache.open(cache_path(predictions, slide), inputs, count, retry=False)
        if made.done == count and made.precision and _is_compatible(made.precision, model, is_complete=True):
            return SlidePrediction(patches, patches.reader(count).order, made)
        log.warning("%s: %s has no complete predictions of these inputs, so they are made here", slide, predictions)
    path = cache_path(checkpoints, slide)
    cache = PredictionCache.open(path, inputs, count)
    if not cache.precision or not _is_compatible(cache.precision, model, is_complete=cache.done == count):
        cache = PredictionCache(path, inputs, count)
        cache.precision = measure_precision(model, patches)
    if 0 < cache.done < count:
        log.info("%s: resuming from patch %d of %d", slide, cache.done, count)
    reader = patches.reader(cache.done)
    fill_cache(cache, reader, model, threads)
    if not cache.whole.all():
        log.warning("%s: %d of %d patches touch damaged chunks and are left out", slide, cache.unread, count)
    return SlidePrediction(patches, reader.order, cache)


def _is_compatible(precision: PrecisionFacts, model: TrainedModel, *, is_complete: bool) -> bool:
    """Whether cached predictions may stand for those that the model would make on its device."""
    if is_complete:
        return precision.dtype == model.device.precision or model.options.precision == "auto"
    # Never mix two kinds of device in one heatmap: their last bits differ.
    return (precision.dtype, precision.device) == (model.device.precision, model.device.kind)


def fill_cache(cache: PredictionCache, reader: PatchReader, model: TrainedModel, threads: int) -> None:
    """Predict the patches missing in the cache and save it now and then. Raises `ModelError` for NaN and infinity."""
    if cache.done == len(reader):
        return
    saved = time.monotonic()
    try:
        for part in run_inference(reader, model.predictor, threads, cache.done):
            if not np.isfinite(part.log_odds[part.whole]).all():
                raise ModelError(
                    f"{model.weights}: the network gives values that are not finite",
                    remedy="Train again, with a lower learning rate",
                )
            cache.add(part.first, part.log_odds, part.whole)
            if time.monotonic() - saved > _SAVE_SECONDS:
                cache.save()
                saved = time.monotonic()
    finally:
        cache.save()


def measure_precision(model: TrainedModel, patches: SlidePatches) -> PrecisionFacts:
    """Device kind and dtype of the model; for another dtype than float32, its difference on a sample of the patches."""
    device = model.device
    if device.dtype == torch.float32 or not len(patches):
        return PrecisionFacts(device=device.kind, dtype=device.precision)
    reader = patches.sample(_COMPARED)
    pixels = torch.empty((len(reader), *reader.shape), dtype=torch.uint8)
    whole = torch.from_numpy(reader.read(0, pixels.numpy()))
    return PrecisionFacts(
        device=device.kind,
        dtype=device.precision,
        patches_compared=int(whole.sum()),
        largest_difference=model.predictor.max_difference_from_float32(pixels[whole]) if whole.any() else None,
    )
