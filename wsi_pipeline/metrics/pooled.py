"""Scores of many slides together: exact figures of all of them, and figures of resamples of slides.

Slides are added one by one and only their sums are kept: the exact histogram of all, and for each slide
one of some 1,300 bins, narrow near 0 and 1 where most scores lie. Figures of resamples come from
the bins, moved by what binning changes in the figure of all slides. Sums are of whole numbers below
2**53 and so exact, in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.metrics.calibration import CalibrationSums, PooledCalibration
from wsi_pipeline.metrics.curves import Histogram, auc
from wsi_pipeline.metrics.intervals import Weights
from wsi_pipeline.metrics.steps import STEPS, bin_sums, dequantize

_LOGIT_BINS = 2048
_RESAMPLES_AT_ONCE = 100

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
# Figures (resamples,) of normal and tumour histograms (resamples, bins); not a number where there is none.
Statistic = Callable[[Floats, Floats], Floats]


def _bin_edges() -> NDArray[np.int64]:
    """First steps of bins, evenly spaced in log odds, so that the first and the last steps have one each."""
    reach = np.log(2.0 * STEPS)
    edges = np.rint(STEPS / (1 + np.exp(-np.linspace(-reach, reach, _LOGIT_BINS))))
    return np.unique(np.append(edges, (0, STEPS + 1))).astype(np.int64)


_EDGES = _bin_edges()


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """What is kept of the scores of one slide: counts in bins, sums for calibration, and its own AUC (or NaN)."""

    normal: NDArray[np.int32]
    tumor: NDArray[np.int32]
    calibration: CalibrationSums
    auc: float

    @classmethod
    def of(cls, steps: Counts, normal: Counts, tumor: Counts) -> Self:
        """Of the distinct scores of a slide in steps of 1 / 65535, ascending, and how often each has either truth."""
        in_bins = [bin_sums(_EDGES, steps, counts).astype(np.int32) for counts in (normal, tumor)]
        area = auc(Histogram(dequantize(steps), normal, tumor))
        return cls(
            in_bins[0],
            in_bins[1],
            CalibrationSums.of(steps, normal, tumor),
            np.nan if area is None else area,
        )


class PooledScores:
    """Counts of the scores of slides by truth; slides are numbered in the order in which they are added."""

    def __init__(self) -> None:
        self._normal, self._tumor = np.zeros((2, STEPS + 1), np.int64)
        self._sketches = list[ScoreSummary]()

    def add(self, steps: Counts, normal: Counts, tumor: Counts, sketch: ScoreSummary) -> None:
        """Add a slide and its sketch, which several collections may share."""
        self._normal[steps] += normal
        self._tumor[steps] += tumor
        self._sketches.append(sketch)

    def __len__(self) -> int:
        return len(self._sketches)

    @property
    def histogram(self) -> Histogram:
        """Of all slides, exact."""
        known = np.flatnonzero(self._normal + self._tumor)
        return Histogram(dequantize(known), self._normal[known], self._tumor[known])

    @property
    def aucs(self) -> Floats:
        """AUC of each slide by itself, not a number where it lacks a class."""
        return np.array([sketch.auc for sketch in self._sketches], np.float64)

    def resampled(self, statistic: Statistic, exact: float, weights: Weights) -> Floats:
        """The statistic, a share, of each resample, (resamples,); `exact` is that of all slides as they are."""
        normal = np.array([sketch.normal for sketch in self._sketches], np.float64)
        tumor = np.array([sketch.tumor for sketch in self._sketches], np.float64)
        found = np.concatenate([statistic(w @ normal, w @ tumor) for w in _parts(weights)])
        of_bins = statistic(normal.sum(axis=0, keepdims=True), tumor.sum(axis=0, keepdims=True))
        moved: Floats = np.clip(found + (exact - of_bins[0]), 0.0, 1.0)
        return moved

    def resampled_rocs(self, rates: Floats, weights: Weights) -> Floats:
        """True positive rate of each resample at false positive rates, (resamples, rates); those with both classes."""
        normal = np.array([sketch.normal for sketch in self._sketches], np.float64)
        tumor = np.array([sketch.tumor for sketch in self._sketches], np.float64)
        return np.concatenate([_rocs_of(w @ normal, w @ tumor, rates) for w in _parts(weights)])

    @property
    def calibration(self) -> PooledCalibration:
        """Sums for calibration."""
        return PooledCalibration([sketch.calibration for sketch in self._sketches])


def histogram_aucs(normal: Floats, tumor: Floats) -> Floats:
    """Area under the ROC curve of each histogram (n, bins) by rising score; not a number where a class is missing."""
    below = np.cumsum(normal, axis=1) - normal
    with np.errstate(invalid="ignore"):
        areas: Floats = (tumor * (2 * below + normal)).sum(axis=1) / (2 * normal.sum(axis=1) * tumor.sum(axis=1))
    return areas


def resampled_aucs(scores: Floats, is_tumor: NDArray[np.bool_], weights: Weights) -> Floats:
    """AUC over slides with one score each, (slides,), of each resample, (resamples,)."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    tumor = is_tumor[order]
    found = []
    for part in _parts(weights):
        drawn = part[:, order]
        normal_counts = np.add.reduceat(np.where(tumor, 0, drawn), starts, axis=1)
        found.append(histogram_aucs(normal_counts, np.add.reduceat(np.where(tumor, drawn, 0), starts, axis=1)))
    return np.concatenate(found)


def _rocs_of(normal: Floats, tumor: Floats, rates: Floats) -> Floats:
    found = []
    for negatives, positives in zip(normal, tumor, strict=True):
        if negatives.any() and positives.any():
            x, y = (np.concatenate(([0.0], np.cumsum(part[::-1]) / part.sum())) for part in (negatives, positives))
            found.append(np.interp(rates, x, y))
    return np.array(found, np.float64).reshape(len(found), len(rates))


def histogram_average_precisions(normal: Floats, tumor: Floats) -> Floats:
    """Sum of precision times step in recall of each histogram (n, bins); not a number without tumour."""
    tp = np.cumsum(tumor[:, ::-1], axis=1)
    called = tp + np.cumsum(normal[:, ::-1], axis=1)
    precision = np.divide(tp, called, out=np.ones_like(tp), where=called > 0)
    with np.errstate(invalid="ignore"):
        found: Floats = (precision * tumor[:, ::-1]).sum(axis=1) / tumor.sum(axis=1)
    return found


def _parts(weights: Weights) -> Iterator[Floats]:
    for start in range(0, len(weights), _RESAMPLES_AT_ONCE):
        yield weights[start : start + _RESAMPLES_AT_ONCE].astype(np.float64)
