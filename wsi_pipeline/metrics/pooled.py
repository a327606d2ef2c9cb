"""Pooled scores of many slides: exact figures over all slides, and figures of weighted slides.

Slides are added one at a time. Only two things are kept: the exact histogram of all slides, and per slide a histogram
of some 1,600 bins, half of which are as narrow as the scores of the slides are close together (`bin_edges`). Figures of
weighted slides come from the binned histograms, shifted by the binning error of the figure over all slides. All sums
are of integers below 2**53, so they are exact in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.metrics.calibration import CalibrationSums, PooledCalibration
from wsi_pipeline.metrics.curves import Histogram, auc
from wsi_pipeline.metrics.intervals import Weights, leave_out_weights
from wsi_pipeline.metrics.steps import STEPS, bin_sums, dequantize, quantize

# Bins wherever scores may lie, and bins with equal shares of a class.
_FIXED_BINS, _EQUAL_BINS = 800, 400
# Numbers of false positives that average precision depends on are few: shares of the highest normal scores.
_TOP_SHARES = np.logspace(-7, -2, 60)
_RESAMPLES_AT_ONCE = 100

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
# Maps normal and tumour histograms (rows, bins) to figures (rows,), NaN where undefined.
Statistic = Callable[[Floats, Floats], Floats]


_FIXED_EDGES = np.unique([0, *quantize(1.5 * np.sinh(np.linspace(-5, 5, _FIXED_BINS))), STEPS + 1])


def bin_edges(steps: Counts, normal: Counts, tumor: Counts) -> Counts:
    """The first step of each bin, then one past the last step.

    Half of the bins are fixed, half have equal shares of the normal and of the tumour positions of a sample of slides,
    given as in `ScoreSummary.of`: scores may all lie within a few of the fixed ones.
    """
    edges = [_FIXED_EDGES]
    for counts, shares in (
        (normal, np.linspace(0, 1, _EQUAL_BINS, endpoint=False)),
        (normal, 1 - _TOP_SHARES),
        (tumor, np.linspace(0, 1, _EQUAL_BINS, endpoint=False)),
    ):
        if counts.any():
            cumulative = np.cumsum(counts)
            edges.append(steps[np.searchsorted(cumulative, shares * cumulative[-1], side="right")])
    return np.unique(np.concatenate(edges))


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """Summary of the scores of one slide: counts in bins, calibration sums, and the AUC of the slide (or NaN)."""

    normal: NDArray[np.integer[Any]]
    tumor: NDArray[np.integer[Any]]
    calibration: CalibrationSums
    auc: float

    @classmethod
    def of(cls, steps: Counts, normal: Counts, tumor: Counts, edges: Counts) -> Self:
        """Summarise distinct scores in steps of log odds, ascending, with the normal and tumour positions at each.

        `edges` are the `bin_edges` of the slides of a pool.
        """
        binned_normal, binned_tumor = (_narrow(bin_sums(edges, steps, counts)) for counts in (normal, tumor))
        area = auc(Histogram(dequantize(steps), normal, tumor))
        return cls(
            normal=binned_normal,
            tumor=binned_tumor,
            calibration=CalibrationSums.of(steps, normal, tumor),
            auc=np.nan if area is None else area,
        )


def _narrow(counts: Counts) -> NDArray[np.integer[Any]]:
    """In half the memory, where no count is too large for that."""
    return counts.astype(np.int32) if counts.max(initial=0) <= np.iinfo(np.int32).max else counts


class PooledScores:
    """Scores of slides by truth; slides are numbered in the order of `add`."""

    def __init__(self) -> None:
        self._normal, self._tumor = np.zeros((2, STEPS + 1), np.int64)
        self._names = list[str]()
        self._summaries = list[ScoreSummary]()

    def add(self, slide: str, steps: Counts, normal: Counts, tumor: Counts, summary: ScoreSummary) -> None:
        """Add a slide: distinct scores in steps, counts by truth, and its summary, which several pools may share."""
        self._names.append(slide)
        self._normal[steps] += normal
        self._tumor[steps] += tumor
        self._summaries.append(summary)

    def __len__(self) -> int:
        return len(self._summaries)

    @property
    def histogram(self) -> Histogram:
        """The exact histogram of all slides."""
        known = np.flatnonzero(self._normal + self._tumor)
        return Histogram(dequantize(known), self._normal[known], self._tumor[known])

    @property
    def slides_by_class(self) -> tuple[int, int]:
        """Number of slides with normal and with tumour positions."""
        return sum(bool(s.normal.any()) for s in self._summaries), sum(bool(s.tumor.any()) for s in self._summaries)

    @property
    def scored_slides(self) -> int:
        """Number of slides with positions."""
        return sum(bool(s.normal.any() or s.tumor.any()) for s in self._summaries)

    def leave_out(self) -> Weights:
        """`leave_out_weights` of the slides; groups depend on no order, and each has its share of those with tumour."""
        keys = [(bool(s.tumor.any()), name) for s, name in zip(self._summaries, self._names, strict=True)]
        ranks = np.empty(len(keys), np.int64)
        ranks[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
        return leave_out_weights(len(keys), ranks)

    @property
    def aucs(self) -> Floats:
        """AUC of each slide, (slides,); NaN where a class is missing."""
        return np.array([summary.auc for summary in self._summaries], np.float64)

    def weighted(self, statistic: Statistic, exact: float, weights: Weights) -> Floats:
        """A statistic between 0 and 1 for each row of weights, (rows,); `exact` is its exact value over all slides."""
        normal = np.array([summary.normal for summary in self._summaries], np.float64)
        tumor = np.array([summary.tumor for summary in self._summaries], np.float64)
        found = np.concatenate([statistic(w @ normal, w @ tumor) for w in _batches(weights)])
        binned = statistic(normal.sum(axis=0, keepdims=True), tumor.sum(axis=0, keepdims=True))
        shifted: Floats = np.clip(found + (exact - binned[0]), 0.0, 1.0)
        return shifted

    def weighted_rocs(self, rates: Floats, weights: Weights) -> Floats:
        """True positive rates at false positive `rates`, (rows, rates); NaN without both classes."""
        normal = np.array([summary.normal for summary in self._summaries], np.float64)
        tumor = np.array([summary.tumor for summary in self._summaries], np.float64)
        return np.concatenate([_rocs(w @ normal, w @ tumor, rates) for w in _batches(weights)])

    @property
    def calibration(self) -> PooledCalibration:
        """The calibration sums of all slides."""
        return PooledCalibration([summary.calibration for summary in self._summaries])


def histogram_aucs(normal: Floats, tumor: Floats) -> Floats:
    """AUC (n,) of histograms (n, bins) with ascending scores; NaN where a class is missing."""
    below = np.cumsum(normal, axis=1) - normal
    with np.errstate(invalid="ignore"):
        areas: Floats = (tumor * (2 * below + normal)).sum(axis=1) / (2 * normal.sum(axis=1) * tumor.sum(axis=1))
    return areas


def _rocs(normal: Floats, tumor: Floats, rates: Floats) -> Floats:
    found = np.full((len(normal), len(rates)), np.nan)
    for number, (negatives, positives) in enumerate(zip(normal, tumor, strict=True)):
        if negatives.any() and positives.any():
            x, y = (np.concatenate(([0.0], np.cumsum(part[::-1]) / part.sum())) for part in (negatives, positives))
            found[number] = np.interp(rates, x, y)
    return found


def histogram_average_precisions(normal: Floats, tumor: Floats) -> Floats:
    """Average precision (n,) of histograms (n, bins) with ascending scores; NaN without tumour."""
    tp = np.cumsum(tumor[:, ::-1], axis=1)
    predicted = tp + np.cumsum(normal[:, ::-1], axis=1)
    precision = np.divide(tp, predicted, out=np.ones_like(tp), where=predicted > 0)
    with np.errstate(invalid="ignore"):
        found: Floats = (precision * tumor[:, ::-1]).sum(axis=1) / tumor.sum(axis=1)
    return found


def _batches(weights: Weights) -> Iterator[Floats]:
    for start in range(0, len(weights), _RESAMPLES_AT_ONCE):
        yield weights[start : start + _RESAMPLES_AT_ONCE].astype(np.float64)
