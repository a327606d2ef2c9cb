"""ROC and precision-recall from histograms of scores, exact with ties.

Curves and areas follow Fawcett (Pattern Recognit. Lett. 27, 2006). Average precision is the step-wise sum without
interpolation, as in scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.metrics.exact import exact


@dataclass(frozen=True, slots=True)
class Histogram:
    """Numbers of normal and tumour positions at each distinct score; `values` ascending."""

    values: NDArray[np.float64]
    normal: NDArray[np.int64]
    tumor: NDArray[np.int64]

    @classmethod
    def of(cls, scores: NDArray[Any], is_tumor: NDArray[np.bool_]) -> Histogram:
        """Count scores (n,) with their labels (n,)."""
        values, index = np.unique(np.asarray(scores, np.float64), return_inverse=True)
        tumor = np.bincount(index[is_tumor], minlength=len(values))
        return cls(values, np.bincount(index, minlength=len(values)) - tumor, tumor)

    @property
    def n_normal(self) -> int:
        return int(self.normal.sum())

    @property
    def n_tumor(self) -> int:
        return int(self.tumor.sum())


@dataclass(frozen=True, slots=True)
class ConfusionCounts:
    """Confusion matrix at a threshold: positive where score >= threshold."""

    tp: int
    fp: int
    fn: int
    tn: int

    def __add__(self, other: ConfusionCounts) -> ConfusionCounts:
        return ConfusionCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def total(self) -> int:
        return self.tp + self.fp + self.fn + self.tn


def confusion_counts(histogram: Histogram, threshold: float) -> ConfusionCounts:
    """Confusion matrix of a histogram at a threshold."""
    is_positive = histogram.values >= threshold
    tp, fp = int(histogram.tumor[is_positive].sum()), int(histogram.normal[is_positive].sum())
    return ConfusionCounts(tp=tp, fp=fp, fn=histogram.n_tumor - tp, tn=histogram.n_normal - fp)


def auc(histogram: Histogram) -> float | None:
    """Area under the ROC curve; None where a class is missing."""
    if not histogram.n_normal or not histogram.n_tumor:
        return None
    pairs = 2 * histogram.n_normal * histogram.n_tumor
    normal, tumor = exact(histogram.normal, pairs), exact(histogram.tumor, pairs)
    below = np.cumsum(normal) - normal
    return int((tumor * (2 * below + normal)).sum()) / pairs


def average_precision(histogram: Histogram) -> float | None:
    """Average precision: sum of precision times increase in recall; None without positives."""
    if not histogram.n_tumor:
        return None
    return float((pr_curve(histogram).y * histogram.tumor[::-1]).sum() / histogram.n_tumor)


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a curve, by descending threshold."""

    threshold: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Band:
    """Pointwise confidence band of a curve: `low` to `high` at each `x`, at confidence `level`."""

    x: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    level: float


def roc_curve(histogram: Histogram) -> Curve:
    """ROC curve: false positive rate (x) and true positive rate (y), from (0, 0) at an infinite threshold."""
    tpr = np.concatenate([[0.0], np.cumsum(histogram.tumor[::-1]) / max(histogram.n_tumor, 1)])
    fpr = np.concatenate([[0.0], np.cumsum(histogram.normal[::-1]) / max(histogram.n_normal, 1)])
    return Curve(np.concatenate([[np.inf], histogram.values[::-1]]), fpr, tpr)


def pr_curve(histogram: Histogram) -> Curve:
    """Precision-recall curve: recall (x) and precision (y) at each distinct score, highest first."""
    tp = np.cumsum(histogram.tumor[::-1])
    predicted = tp + np.cumsum(histogram.normal[::-1])
    precision = np.divide(tp, predicted, out=np.ones(len(tp)), where=predicted > 0)
    return Curve(histogram.values[::-1], tp / max(histogram.n_tumor, 1), precision)


def thin_curve(curve: Curve, points: int) -> Curve:
    """Reduce a curve to about `points` points, evenly spaced along its length; keeps both ends."""
    if len(curve.x) <= points:
        return curve
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(curve.x)) + np.abs(np.diff(curve.y)))])
    targets = np.linspace(0, length[-1], points)
    keep = np.unique(
        np.concatenate([[0], np.searchsorted(length, targets), [len(length) - 1]]).clip(0, len(length) - 1)
    )
    return Curve(curve.threshold[keep], curve.x[keep], curve.y[keep])
