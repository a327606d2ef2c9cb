"""Receipts of the stages that train a model and run it."""

from __future__ import annotations

from pathlib import Path

from wsi_pipeline.config import HeatmapRun, PredictRun, TrainRun
from wsi_pipeline.errors import StoreError
from wsi_pipeline.geometry import Grid
from wsi_pipeline.receipts.base import Facts, Receipt, read_receipt
from wsi_pipeline.receipts.slides import ClassCounts, StainFacts


class PatchSetFacts(ClassCounts):
    """Number of slides of a set, and of their patches by class."""

    slides: int


class ModelReceipt(Receipt):
    """`model.json` of a model folder, the receipt of the stage train.

    `taken` is given for weights that were taken from elsewhere, and the fields after it for weights that were trained
    here. `source_fingerprint` is that of given weights: of those taken, or of those that the training started from.
    `patches_sha256` has (stage, slide, digest of the store) of each set of patches.
    """

    architecture: str
    size_px: int
    mpp: float
    classes: tuple[str, ...]
    normalisation: str
    stain_normalisation: str
    weights_sha256: str
    taken: bool = False
    steps: int | None = None
    kept_step: int | None = None
    training: PatchSetFacts | None = None
    validation: PatchSetFacts | None = None
    patches_sha256: tuple[tuple[str, str, str], ...] | None = None
    options: TrainRun | None = None
    device: str | None = None
    dtype: str | None = None
    went_on_from: str | None = None
    source_fingerprint: str | None = None
    processes: int | None = None
    versions: dict[str, str | None] | None = None


class PredictReceipt(Receipt):
    """Predictions of a batch of `slides`; `positions` is the number of patches of each slide that was predicted."""

    model_sha256: str
    slides: tuple[str, ...]
    positions: dict[str, int]
    options: PredictRun


class PrecisionFacts(Facts):
    """Device kind and dtype of a prediction.

    For a dtype other than float32: the number of patches that were predicted in float32 too, and the largest difference
    of their probabilities (null where none could be read).
    """

    device: str
    dtype: str
    patches_compared: int | None = None
    largest_difference: float | None = None


class HeatmapReceipt(Receipt):
    """A heatmap; scales in µm per pixel, `slide_size` is (width, height) at level 0, `grid` in level-0 pixels.

    `factor` is the number of pixels of a patch for each pixel that was read: above 1 where the slide was upsampled.

    `positions` have a value, `unread_positions` lie on damaged chunks; `maximum_log_odds` is null without any position.
    `heatmap_sha256` is the digest of the log odds.
    """

    slide: str
    model_sha256: str
    slide_mpp: float
    slide_size: tuple[int, int]
    patch_mpp: float
    factor: float
    grid: Grid
    stains: StainFacts | None
    precision: PrecisionFacts
    positions: int
    unread_positions: int
    maximum_log_odds: float | None
    heatmap_sha256: str
    options: HeatmapRun


def read_heatmap_receipt(path: Path, slide: str) -> HeatmapReceipt:
    """The receipt of the heatmap of `slide`. Raises `StoreError` for that of another slide."""
    receipt = read_receipt(path, HeatmapReceipt)
    if receipt.slide != slide:
        raise StoreError(f"{path}: the heatmap of {receipt.slide}, not of {slide}", remedy="Check the arguments")
    return receipt
