"""Confidence intervals of figures over slides, by a jackknife that leaves out one slide at a time.

Slides are left out and not patches, as the patches of a slide are not independent. All figures are between 0 and 1.

- Variance: sum over slides of the squared change of the figure without the slide (the conservative form of the
  jackknife: Efron and Stein, Ann. Stat. 9, 1981).
- Quantile: Student's t with (sum of squares)^2 / (sum of fourth powers) of these changes as degrees of freedom: how
  many slides the variance rests on. A few slides hold most of the tumour, and the normal quantile would take a
  variance for known that rests on them. It is a third of Satterthwaite's number (Biometrics Bull. 2, 1946) for changes
  that are normally distributed, so it is conservative.
- Interval: Wilson's (J. Am. Stat. Assoc. 22, 1927) with the effective sample size p (1 - p) / variance, as for surveys
  in Franco et al., J. Surv. Stat. Methodol. 7, 2019. It stays between 0 and 1. Without variance the sample size is the
  number of slides.

`benchmarks/coverage.py` measures the coverage.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]
# Number of times that each slide is counted, (parts, slides).
Weights = NDArray[np.integer[Any]]

MIN_SLIDES = 3
# Above this number of slides, groups of slides are left out together.
_MAX_PARTS = 1000
# Smaller changes of a figure are rounding.
_SMALLEST_CHANGE = 1e-12


def leave_out_weights(slides: int) -> Weights:
    """Weights 0 and 1, (parts, slides): each row leaves out one slide, or one of 1,000 groups of slides."""
    parts = min(slides, _MAX_PARTS)
    kept: NDArray[np.bool_] = np.arange(slides) % parts != np.arange(parts)[:, None]
    return kept.astype(np.int32)


def jackknife_interval(figure: Floats, left_out: Floats, slides: int, level: float) -> tuple[Floats, Floats]:
    """Lower and upper limits (...) of figures (...) between 0 and 1 from those of each leave-out, (parts, ...).

    `slides` is how many slides the figures rest on. At 0 and at 1 the other limit is one-sided, at (1 + level) / 2. NaN
    where a figure of a leave-out is NaN.
    """
    squares = (left_out - figure) ** 2
    variance = squares.sum(axis=0)
    varies = (figure > 0) & (figure < 1) & ~(variance < _SMALLEST_CHANGE**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = np.where(varies, variance**2 / (squares**2).sum(axis=0), slides)
        size = np.where(varies, figure * (1 - figure) / variance, slides)
    ratio = stats.t.ppf((1 + level) / 2, freedom) ** 2 / size
    middle = (figure + ratio / 2) / (1 + ratio)
    half_width = np.sqrt(ratio * figure * (1 - figure) + ratio**2 / 4) / (1 + ratio)
    return (
        np.where(figure == 0, 0.0, np.maximum(middle - half_width, 0.0)),
        np.where(figure == 1, 1.0, np.minimum(middle + half_width, 1.0)),
    )


def too_few_slides(slides: int) -> str | None:
    """Why a figure that rests on so few slides, or so few of a class, has no interval; None where it has one."""
    if slides >= MIN_SLIDES:
        return None
    return f"too few slides for an interval: {slides}, at least {MIN_SLIDES} are needed"
