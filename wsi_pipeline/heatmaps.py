"""What a stored heatmap is: its steps and its grid, for those who read one."""

from __future__ import annotations

from wsi_pipeline.geometry import Grid
from wsi_pipeline.receipts import Facts

# Probabilities are stored as multiples of 1/65535, so that a histogram of 65,536 bins holds them exactly.
STEPS = 65535


def grid_of(receipt: Facts) -> Grid:
    """The grid that a heatmap's receipt describes."""
    return Grid(**receipt["grid"])
