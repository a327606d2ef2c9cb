"""Percentile bootstrap over slides (Efron and Tibshirani, 1993, chapter 13).

Slides and not patches are drawn, because the patches of a slide are not independent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.seeds import generator

# How often each slide is drawn.
Weights = NDArray[np.integer[Any]]


def bootstrap_weights(slides: int, resamples: int, seed: int, figure: str) -> Weights:
    """How often each slide is drawn in each resample, (resamples, slides)."""
    rng = generator(seed, "bootstrap", figure)
    return rng.multinomial(slides, np.full(slides, 1 / slides), size=resamples).astype(np.int32)


def percentile_interval(values: NDArray[np.float64], level: float) -> list[float] | None:
    """Interval of the values of resamples, (resamples,); None where most of them are not a number."""
    known = values[np.isfinite(values)]
    if len(known) < len(values) / 2 or not len(values):
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return [float(low), float(high)]
