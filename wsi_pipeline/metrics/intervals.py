"""Percentile bootstrap over slides (Efron and Tibshirani, 1993, chapter 13).

Slides and not patches are drawn, because the patches of a slide are not independent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.seeds import generator

Weights = NDArray[np.int64]


def slide_weights(slides: int, resamples: int, seed: int, figure: str) -> Weights:
    """How often each slide is drawn in each resample, (resamples, slides)."""
    rng = generator(seed, "bootstrap", figure)
    return rng.multinomial(slides, np.full(slides, 1 / slides), size=resamples).astype(np.int64)


def percentile_interval(
    statistic: Callable[[Weights], float | None], weights: Weights, level: float
) -> list[float] | None:
    """Interval of `statistic` over resamples; None where most resamples do not define it."""
    values = [v for row in weights if (v := statistic(row)) is not None]
    if len(values) < len(weights) / 2:
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return [float(low), float(high)]


def pair_wins(normal: NDArray[np.int64], tumor: NDArray[np.int64]) -> NDArray[np.float64]:
    """Twice the pairs that slide `i`'s tumour positions win over slide `j`'s normal ones, ties half.

    `normal` and `tumor` are (slides, scores) counts by rising score. With them the pooled AUC of any
    weighting of slides is a quadratic form; all entries are whole numbers below 2**53 and so exact.
    """
    below = np.cumsum(normal, axis=1) - normal
    wins: NDArray[np.float64] = tumor.astype(np.float64) @ (2 * below + normal).astype(np.float64).T
    return wins


def weighted_auc(wins: NDArray[np.float64], normals: Weights, tumors: Weights, w: Weights) -> float | None:
    """Pooled AUC with slide `i` counted `w[i]` times; None where a class is missing."""
    pairs = float(w @ normals) * float(w @ tumors)
    return float(w @ wins @ w) / (2 * pairs) if pairs else None
