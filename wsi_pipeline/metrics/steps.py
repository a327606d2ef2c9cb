"""Probabilities are stored as multiples of 1/65535, so that a histogram of 65,536 bins holds them exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = 65535


def bin_sums(edges: NDArray[np.int64], steps: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of the counts whose step, ascending, is from one edge up to the next, (edges - 1,)."""
    total = np.concatenate([[0], np.cumsum(counts)])
    sums: NDArray[np.int64] = np.diff(total[np.searchsorted(steps, edges)])
    return sums


def dequantize(steps: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities as the heatmap stores them (float32), so that a threshold means the same here and there."""
    return (steps.astype(np.float32) / np.float32(STEPS)).astype(np.float64)


def quantize(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """The nearest steps."""
    return np.rint(probabilities.astype(np.float64) * STEPS).astype(np.int64)
