"""Receipts of the stages that compare predictions with the truth."""

from __future__ import annotations

from wsi_pipeline.config import CalibrateRun, ConfusionRun, DetectRun, ScoresRun
from wsi_pipeline.receipts.base import Facts, Receipt


class PositionCounts(Facts):
    """Predicted positions of a slide by their truth."""

    normal: int
    tumor: int
    ignored: int


class SlideTruth(Facts):
    """Whether tumour is annotated on a slide, and whether parts of it are to be ignored."""

    tumor: bool
    ignored: bool


class ScoresReceipt(Receipt):
    """The score histogram of a heatmap; `features` is null for a heatmap without predicted positions.

    `labels_sha256` is the digest of the scored positions and their truth, `LabelledHeatmap.labels_sha256`.
    `positions.ignored` includes those with too little tissue to be scored.
    """

    slide: str
    model_sha256: str
    counts_sha256: str
    labels_sha256: str
    positions: PositionCounts
    unread_positions: int
    truth: SlideTruth
    features: dict[str, float] | None
    options: ScoresRun


class DetectReceipt(Receipt):
    """The detections of a slide and the lesions they hit.

    Confidences are log odds. `truth_sha256` is that of the receipt of the truth. `lesions` holds the highest on each
    lesion, null for a miss, and `false_positives` those outside all lesions. `isolated` is the number of isolated
    tumour cells, `ignored` has the centroids of lesions that are mostly ignored, (x, y) in level-0 pixels. All are
    null, with a `reason`, for a slide that cannot be scored.
    """

    slide: str
    model_sha256: str
    detections: int
    detections_sha256: str
    truth_sha256: str
    lesions: tuple[float | None, ...] | None
    false_positives: tuple[float, ...] | None
    isolated: int | None
    ignored: tuple[tuple[float, float], ...] | None
    reason: str | None
    options: DetectRun


class ConfusionCells(Facts):
    """Patches in each cell of a confusion matrix."""

    tp: int
    fp: int
    fn: int
    tn: int


class ConfusionShares(Facts):
    """The cells of a confusion matrix as shares of its total; null for an empty one."""

    tp: float | None
    fp: float | None
    fn: float | None
    tn: float | None


class OperatingPoint(Facts):
    """A threshold and its origin; for one chosen on validation slides, those slides and the figures at the threshold.

    `threshold` is the probability of `threshold_log_odds`, which is the one that scores are compared with.

    Keys ending in `_there` are figures at the threshold on the slides it was chosen on.
    """

    rule: str
    threshold: float
    threshold_log_odds: float
    chosen_on: str
    aim: float | None = None
    slides: tuple[str, ...] = ()
    n_slides: int = 0
    n_normal: int = 0
    n_tumor: int = 0
    counts_there: ConfusionCells | None = None
    sensitivity_there: float | None = None
    specificity_there: float | None = None
    precision_there: float | None = None
    f1_there: float | None = None
    n_slides_with_lesions_known: int = 0
    n_lesions: int = 0
    false_positives_per_slide_there: float | None = None
    lesion_sensitivity_there: float | None = None


class Temperature(Facts):
    """A temperature fitted on validation slides, with the cross-entropy (nats) before and after scaling."""

    value: float
    fitted_on: str
    slides: tuple[str, ...]
    n_slides: int
    n_patches: int
    cross_entropy_before: float
    cross_entropy_after: float


class CalibrateReceipt(Receipt):
    """The operating point of a model; `model_sha256` is null where no slide was read."""

    model_sha256: str | None
    operating_point: OperatingPoint
    temperature: Temperature | None
    options: CalibrateRun


class ConfusionReceipt(Receipt):
    """The confusion of a slide at `threshold_log_odds`, the probability `threshold`.

    Ratios are null where their denominator is 0.
    """

    slide: str
    model_sha256: str
    threshold: float
    threshold_log_odds: float
    counts: ConfusionCells
    share_of_total: ConfusionShares
    sensitivity: float | None
    specificity: float | None
    precision: float | None
    f1: float | None
    ignored: int
    options: ConfusionRun
