"""Percentile bootstrap over slides (Efron and Tibshirani, 1993, chapter 13).

Resampling patches would underestimate the variance, as the patches of a slide are not independent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.seeds import generator

# Number of draws of each slide, (resamples, slides) or (slides,).
Weights = NDArray[np.integer[Any]]


def bootstrap_weights(slides: int, resamples: int, seed: int, figure: str) -> Weights:
    """Number of draws of each slide in each resample, (resamples, slides); `figure` is part of the seed."""
    rng = generator(seed, "bootstrap", figure)
    return rng.multinomial(slides, np.full(slides, 1 / slides), size=resamples).astype(np.int32)


def percentile_interval(values: NDArray[np.float64], level: float) -> list[float] | None:
    """Percentile interval of values (resamples,); None where more than half are not finite."""
    finite = values[np.isfinite(values)]
    if len(finite) < len(values) / 2 or not len(values):
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return [float(low), float(high)]
