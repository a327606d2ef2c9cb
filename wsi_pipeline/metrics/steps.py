"""Probabilities are quantized to multiples of 1/65535 (steps), so that a histogram of 65,536 bins is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = 65535


def bin_sums(edges: NDArray[np.int64], steps: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of counts in each bin, (edges - 1,); `steps` ascending, a bin includes its lower edge only."""
    total = np.concatenate([[0], np.cumsum(counts)])
    return np.diff(total[np.searchsorted(steps, edges)])


def dequantize(steps: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities with the values of float32 heatmaps, so that a threshold gives the same result on both."""
    return (steps.astype(np.float32) / np.float32(STEPS)).astype(np.float64)


def quantize(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Round probabilities to the nearest steps."""
    return np.rint(probabilities.astype(np.float64) * STEPS).astype(np.int64)
