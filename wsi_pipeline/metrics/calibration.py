"""Calibration of scores: reliability curve, Brier score and temperature scaling.

Expected calibration error: Naeini et al., AAAI 2015. Temperature scaling: Guo et al., ICML 2017; for two classes the
temperature divides the log odds of a score. Scores are in steps of log odds (see `steps`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, log_expit, logit

from wsi_pipeline.metrics.curves import Histogram
from wsi_pipeline.metrics.intervals import Weights
from wsi_pipeline.metrics.steps import RELIABILITY_BINS, STEPS, bin_sums, centres, quantize

# Bounds of the fit: the optimum is 0 for scores without errors, and infinite for scores without skill.
_TEMPERATURE_RANGE = (0.01, 100.0)

# Sums of probabilities are of integers, which are exact in any order: below 2**53 for 10**10 positions.
_UNIT = 2**19
_VALUES = expit(centres(np.arange(STEPS + 1)))
_UNITS = np.rint(_VALUES * _UNIT).astype(np.int64)
_SQUARED_ERROR_NORMAL = _VALUES**2
_SQUARED_ERROR_TUMOR = expit(-centres(np.arange(STEPS + 1))) ** 2
# The first step of each bin, then one past the last step.
_EDGES = np.concatenate([[0], quantize(logit(np.arange(1, RELIABILITY_BINS) / RELIABILITY_BINS)), [STEPS + 1]])

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
# Lower and upper bound, number of scores, mean score, fraction of tumour; the last two None in an empty bin.
Bin = tuple[float, float, int, float | None, float | None]


@dataclass(frozen=True, slots=True)
class CalibrationSums:
    """Calibration sums of one slide.

    `bins` is (3, bins), integers as float64: number of scores, sum of probabilities in 1 / 2**19, number of tumour
    positions. `squares` is the sum of squared differences between score and truth.
    """

    bins: Floats
    squares: float

    @classmethod
    def of(cls, steps: Counts, normal: Counts, tumor: Counts) -> Self:
        """Sums of distinct scores in steps, ascending, with the number of normal and tumour positions at each."""
        both = normal + tumor
        bins = np.stack([bin_sums(_EDGES, steps, counts) for counts in (both, both * _UNITS[steps], tumor)])
        squares = normal * _SQUARED_ERROR_NORMAL[steps] + tumor * _SQUARED_ERROR_TUMOR[steps]
        return cls(bins.astype(np.float64), float(squares.sum()))


class PooledCalibration:
    """The calibration sums of many slides, for figures of all slides and of weighted slides."""

    def __init__(self, slides: Sequence[CalibrationSums]) -> None:
        self._bins = np.array([one.bins for one in slides]).reshape(len(slides), 3, RELIABILITY_BINS)
        self._squares = np.array([one.squares for one in slides], np.float64)

    def curve(self) -> list[Bin]:
        """The bins of the reliability curve."""
        rows: list[Bin] = []
        for k, (n, units, tumor) in enumerate(self._bins.sum(axis=0).T.tolist()):
            low, high = k / RELIABILITY_BINS, (k + 1) / RELIABILITY_BINS
            rows.append((low, high, int(n), units / _UNIT / n if n else None, tumor / n if n else None))
        return rows

    def expected_errors(self, weights: Weights) -> Floats:
        """Expected calibration error for each row of weights, (rows,)."""
        drawn: Floats = (weights @ self._bins.reshape(len(self._bins), -1)).reshape(-1, 3, RELIABILITY_BINS)
        with np.errstate(invalid="ignore"):
            errors: Floats = np.abs(drawn[:, 1] / _UNIT - drawn[:, 2]).sum(axis=1) / drawn[:, 0].sum(axis=1)
        return errors

    def brier_scores(self, weights: Weights) -> Floats:
        """Brier score (mean squared difference between score and truth) for each row of weights, (rows,)."""
        counts = self._bins[:, 0].sum(axis=1)
        with np.errstate(invalid="ignore"):
            # Not `weights @ squares`: the sum of a BLAS product of non-integers depends on the number of threads.
            scores: Floats = (weights * self._squares).sum(axis=1) / (weights @ counts)
        return scores


def fit_temperature(histogram: Histogram) -> float:
    """The temperature that minimises cross-entropy, from 0.01 to 100; requires both classes."""
    odds = centres(quantize(histogram.values))
    counts = histogram.normal + histogram.tumor

    def slope(log_temperature: float) -> float:
        # Derivative of cross-entropy with respect to 1 / temperature; it decreases with the temperature.
        return float((odds * (counts * expit(odds / np.exp(log_temperature)) - histogram.tumor)).sum())

    low, high = np.log(_TEMPERATURE_RANGE)
    if slope(low) <= 0:
        return _TEMPERATURE_RANGE[0]
    if slope(high) >= 0:
        return _TEMPERATURE_RANGE[1]
    return float(np.exp(brentq(slope, low, high, xtol=1e-12)))


def cross_entropy(histogram: Histogram, temperature: float = 1.0) -> float:
    """Mean negative log likelihood of the truth, in nats."""
    odds = centres(quantize(histogram.values)) / temperature
    total = -(histogram.tumor * log_expit(odds) + histogram.normal * log_expit(-odds)).sum()
    return float(total / (histogram.n_normal + histogram.n_tumor))


def at_temperature(steps: Counts, temperature: float) -> Counts:
    """Apply a temperature to scores in steps; returns steps."""
    return quantize(centres(steps) / temperature)
