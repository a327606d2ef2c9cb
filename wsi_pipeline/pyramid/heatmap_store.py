"""The store of a heatmap: an OME-Zarr image of probabilities, and two arrays of the same shape for the later stages.

Viewers show the image of the multiscale, probabilities (float32). `log_odds` (float32) has the scores that are ranked
and compared with thresholds: probabilities near 1 are equal after rounding. Both are NaN without a prediction.
`tissue` (float32) is the share of tissue of each patch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from wsi_pipeline.pyramid.ome_zarr import Image, read_image, write_image


def probabilities(log_odds: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of log odds, of the same shape; NaN stays."""
    found: NDArray[np.float32] = expit(log_odds.astype(np.float64)).astype(np.float32)
    return found


def write_heatmap(path: Path, log_odds: Image, tissue: NDArray[np.float32], slide_mpp: float) -> None:
    """Write a heatmap atomically; `tissue` (rows, columns) is the share of tissue of each patch."""
    image = Image(probabilities(log_odds.data), log_odds.mpp, log_odds.first_centre_um)
    more = {"log_odds": log_odds.data, "tissue": tissue}
    write_image(path, image, name="tumour probability", slide_mpp=slide_mpp, fill=float("nan"), more=more)


def read_log_odds(path: Path, slide_mpp: float) -> Image:
    """The log odds of a heatmap. Raises `StoreError` for damaged files, and for heatmaps of earlier versions."""
    return read_image(path, slide_mpp, "log_odds")


def read_tissue(path: Path, slide_mpp: float) -> NDArray[np.float32]:
    """The share of tissue of each patch of a heatmap, (rows, columns). Raises `StoreError` as `read_log_odds`."""
    found: NDArray[np.float32] = read_image(path, slide_mpp, "tissue").data
    return found
