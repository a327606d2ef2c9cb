"""Log odds of tumour, log p / (1 - p), and the 65,536 bins ("steps") in which histograms count them.

Scores are ranked and compared with thresholds as log odds: in float32 every probability of more than 17 log odds is 1.
A step is 1/98,800 wide at 0 and, from ±0.1 on, 1/2,965 of the log odds: 1/240 at ±12, 1/90 at ±32 (asinh spacing). So
scores of a network that has hardly begun to learn do not tie either. The outermost two take what lies beyond ±945.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_expit, logit, logsumexp

# The highest step.
STEPS = 65535
# Bins of the reliability curve. The log odds of their limits, and of all whole percents, are edges of steps, so that
# counts at these thresholds are exact.
RELIABILITY_BINS = 15
# The same numbers are in view/static/panels.js.
_LINEAR, _PER_UNIT, _ZERO = 0.03, 2965, 32768

Floats = NDArray[np.float64]


def _edges_and_centres() -> tuple[Floats, Floats]:
    edges = _LINEAR * np.sinh((np.arange(STEPS + 1) - _ZERO) / _PER_UNIT)
    shares = np.concatenate([np.arange(1, n) / n for n in (100, RELIABILITY_BINS)])
    edges[np.rint(_ZERO + _PER_UNIT * np.arcsinh(logit(shares) / _LINEAR)).astype(np.int64)] = logit(shares)
    # The outermost steps have no middle.
    middle = np.concatenate([edges[:1], (edges[1:-1] + edges[2:]) / 2, edges[-1:]])
    # The lowest step has no lower edge; a finite number can be written as JSON.
    edges[0] = np.finfo(np.float32).min
    return edges, middle


_EDGES, _CENTRES = _edges_and_centres()


def log_odds_of(probability: float) -> float:
    """Log odds of a probability; for 0 and 1 the extreme floats, which are finite and beyond every score."""
    return float(np.nan_to_num(logit(probability)))


def log_odds_of_mean(log_odds: NDArray[np.floating[Any]], counts: NDArray[np.integer[Any]] | None = None) -> float:
    """Log odds of the mean probability of scores (n,), each counted `counts` times; without rounding near 0 and 1."""
    odds = log_odds.astype(np.float64)
    return float(logsumexp(log_expit(odds), b=counts) - logsumexp(log_expit(-odds), b=counts))


def bin_sums(edges: NDArray[np.int64], steps: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of counts in each bin, (edges - 1,); `steps` ascending, a bin includes its lower edge only."""
    total = np.concatenate([[0], np.cumsum(counts)])
    return np.diff(total[np.searchsorted(steps, edges)])


def quantize(log_odds: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """The step of each score: the highest whose lower edge is not above it."""
    found: NDArray[np.int64] = np.searchsorted(_EDGES[1:], log_odds.astype(np.float64), side="right")
    return found


def count_beyond(steps: NDArray[np.int64], counts: NDArray[np.int64]) -> int:
    """How many scores lie in the outermost steps, where different ones tie; `counts` of the scores in `steps`."""
    return int(counts[(steps == 0) | (steps == STEPS)].sum())


def dequantize(steps: NDArray[Any]) -> Floats:
    """Lower edges of steps: a score is at or above one of these thresholds exactly where its step is at or above."""
    edges: Floats = _EDGES[steps]
    return edges


def centres(steps: NDArray[Any]) -> Floats:
    """Log odds in the middle of steps, for means and errors of scores."""
    middle: Floats = _CENTRES[steps]
    return middle
