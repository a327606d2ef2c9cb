"""What a stored heatmap is: its steps and its grid, for those who read one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Grid
from wsi_pipeline.receipts import Facts

# Probabilities are stored as multiples of 1/65535, so that a histogram of 65,536 bins holds them exactly.
STEPS = 65535


def grid_of(receipt: Facts) -> Grid:
    """The grid that a heatmap's receipt describes."""
    return Grid(**receipt["grid"])


def to_values(steps: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities as the heatmap stores them (float32), so that a threshold means the same here and there."""
    return (steps.astype(np.float32) / np.float32(STEPS)).astype(np.float64)
