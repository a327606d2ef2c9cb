"""ROC and precision-recall from histograms of scores, exact with ties.

Scores are counted by value: `values` ascending and distinct, `normal` and `tumor` the numbers of
negatives and positives at each. Curves and areas follow Fawcett (Pattern Recognit. Lett. 27, 2006);
average precision is the step-wise sum that scikit-learn computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of scores by truth; `values` ascending."""

    values: NDArray[np.float64]
    normal: NDArray[np.int64]
    tumor: NDArray[np.int64]

    @classmethod
    def of(cls, scores: NDArray[Any], is_tumor: NDArray[np.bool_]) -> Histogram:
        """Count scores; one entry a position."""
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
    """Confusion at a threshold: called tumour where score >= threshold."""

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
    """Confusion counts of a histogram at a threshold."""
    called = histogram.values >= threshold
    tp, fp = int(histogram.tumor[called].sum()), int(histogram.normal[called].sum())
    return ConfusionCounts(tp=tp, fp=fp, fn=histogram.n_tumor - tp, tn=histogram.n_normal - fp)


def auc(histogram: Histogram) -> float | None:
    """Area under the ROC curve; None where a class is missing."""
    if not histogram.n_normal or not histogram.n_tumor:
        return None
    below = np.cumsum(histogram.normal) - histogram.normal
    twice = int((histogram.tumor * (2 * below + histogram.normal)).sum())
    return twice / (2 * histogram.n_normal * histogram.n_tumor)


def average_precision(histogram: Histogram) -> float | None:
    """Sum of precision times step in recall; None without positives."""
    if not histogram.n_tumor:
        return None
    tp = np.cumsum(histogram.tumor[::-1])
    called = tp + np.cumsum(histogram.normal[::-1])
    precision = np.divide(tp, called, out=np.ones(len(tp)), where=called > 0)
    return float((precision * histogram.tumor[::-1]).sum() / histogram.n_tumor)


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of a curve by falling threshold."""

    threshold: NDArray[np.float64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Band:
    """An interval of a curve's height, `low` to `high`, at each `x`."""

    x: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    level: float


def roc_curve(histogram: Histogram) -> Curve:
    """False positive rate and true positive rate; starts at (0, 0) with an infinite threshold."""
    tpr = np.concatenate([[0.0], np.cumsum(histogram.tumor[::-1]) / max(histogram.n_tumor, 1)])
    fpr = np.concatenate([[0.0], np.cumsum(histogram.normal[::-1]) / max(histogram.n_normal, 1)])
    return Curve(np.concatenate([[np.inf], histogram.values[::-1]]), fpr, tpr)


def pr_curve(histogram: Histogram) -> Curve:
    """Recall and precision at each distinct score, highest first."""
    tp = np.cumsum(histogram.tumor[::-1])
    called = tp + np.cumsum(histogram.normal[::-1])
    precision = np.divide(tp, called, out=np.ones(len(tp)), where=called > 0)
    return Curve(histogram.values[::-1], tp / max(histogram.n_tumor, 1), precision)


def thin_curve(curve: Curve, points: int) -> Curve:
    """At most about `points` points of a curve, evenly along its length, ends kept."""
    if len(curve.x) <= points:
        return curve
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(curve.x)) + np.abs(np.diff(curve.y)))])
    targets = np.linspace(0, length[-1], points)
    keep = np.unique(
        np.concatenate([[0], np.searchsorted(length, targets), [len(length) - 1]]).clip(0, len(length) - 1)
    )
    return Curve(curve.threshold[keep], curve.x[keep], curve.y[keep])
