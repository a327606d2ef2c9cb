"""Whether scores mean probabilities: reliability in bins, Brier score, and a temperature that mends them.

Expected calibration error: Naeini et al., AAAI 2015. Temperature: Guo et al., ICML 2017; for two classes it
divides the log odds of a score.
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
from wsi_pipeline.metrics.steps import STEPS, bin_sums, dequantize, quantize

RELIABILITY_BINS = 15
# Temperatures outside say that the network knows nothing, or everything.
_RANGE = (0.01, 100.0)

_VALUES = dequantize(np.arange(STEPS + 1))
_SQUARES, _SQUARES_BELOW_1 = _VALUES**2, (1 - _VALUES) ** 2
# The first step of each bin, and one past the last step.
_EDGES = np.append(np.searchsorted(_VALUES, np.arange(RELIABILITY_BINS) / RELIABILITY_BINS), STEPS + 1)

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]
# From, to, number of scores, their mean, share of tumour.
Bin = tuple[float, float, int, float | None, float | None]


@dataclass(frozen=True, slots=True)
class CalibrationSums:
    """Of the scores of one slide.

    `bins` is (3, bins): number of scores, their sum in steps, and number of tumour among them, whole numbers;
    `squares` the sum of squared differences of score and truth.
    """

    bins: Floats
    squares: float

    @classmethod
    def of(cls, steps: Counts, normal: Counts, tumor: Counts) -> Self:
        """Of scores in steps, ascending, and how often each has either truth."""
        both = normal + tumor
        bins = np.stack([bin_sums(_EDGES, steps, counts) for counts in (both, both * steps, tumor)])
        return cls(bins.astype(np.float64), float((normal * _SQUARES[steps] + tumor * _SQUARES_BELOW_1[steps]).sum()))


class PooledCalibration:
    """The sums of many slides."""

    def __init__(self, slides: Sequence[CalibrationSums]) -> None:
        self._bins = np.array([one.bins for one in slides]).reshape(len(slides), 3, RELIABILITY_BINS)
        self._squares = np.array([one.squares for one in slides], np.float64)

    def curve(self) -> list[Bin]:
        """The bins of the reliability curve."""
        rows: list[Bin] = []
        for k, (n, steps, tumor) in enumerate(self._bins.sum(axis=0).T.tolist()):
            low, high = k / RELIABILITY_BINS, (k + 1) / RELIABILITY_BINS
            rows.append((low, high, int(n), steps / STEPS / n if n else None, tumor / n if n else None))
        return rows

    def expected_errors(self, weights: Weights) -> Floats:
        """Expected calibration error of each resample, (resamples,)."""
        drawn: Floats = (weights @ self._bins.reshape(len(self._bins), -1)).reshape(-1, 3, RELIABILITY_BINS)
        with np.errstate(invalid="ignore"):
            errors: Floats = np.abs(drawn[:, 1] / STEPS - drawn[:, 2]).sum(axis=1) / drawn[:, 0].sum(axis=1)
        return errors

    def brier_scores(self, weights: Weights) -> Floats:
        """Mean squared difference of score and truth of each resample, (resamples,)."""
        counts = self._bins[:, 0].sum(axis=1)
        with np.errstate(invalid="ignore"):
            # These are no whole numbers: how many threads share the sum must not decide its last bits.
            scores: Floats = (weights * self._squares).sum(axis=1) / (weights @ counts)
        return scores


def fit_temperature(histogram: Histogram) -> float:
    """The temperature with the least cross-entropy, from 0.01 to 100; both classes have to be there."""
    odds = _log_odds(quantize(histogram.values))
    counts = histogram.normal + histogram.tumor

    def slope(log_temperature: float) -> float:
        # Of the cross-entropy by the inverse of the temperature; it falls with rising temperature.
        return float((odds * (counts * expit(odds / np.exp(log_temperature)) - histogram.tumor)).sum())

    low, high = np.log(_RANGE)
    if slope(low) <= 0:
        return _RANGE[0]
    if slope(high) >= 0:
        return _RANGE[1]
    return float(np.exp(brentq(slope, low, high, xtol=1e-12)))


def cross_entropy(histogram: Histogram, temperature: float = 1.0) -> float:
    """Mean negative log likelihood of the truth, nats."""
    odds = _log_odds(quantize(histogram.values)) / temperature
    total = -(histogram.tumor * log_expit(odds) + histogram.normal * log_expit(-odds)).sum()
    return float(total / (histogram.n_normal + histogram.n_tumor))


def at_temperature(steps: Counts, temperature: float) -> Counts:
    """Scores in steps, divided by a temperature, in steps again."""
    return quantize(expit(_log_odds(steps) / temperature))


def _log_odds(steps: Counts) -> Floats:
    # The first and the last step stand for what rounds to them.
    odds: Floats = logit(np.clip(steps, 0.25, STEPS - 0.25) / STEPS)
    return odds
