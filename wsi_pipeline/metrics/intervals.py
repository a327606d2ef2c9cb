"""Confidence intervals of figures over slides, by a jackknife that leaves out one slide at a time.

Slides are left out and not patches, as the patches of a slide are not independent. All figures are between 0 and 1.

- Variance: sum over slides of the squared change of the figure without the slide (the conservative form of the
  jackknife: Efron and Stein, Ann. Stat. 9, 1981).
- Quantile: Student's t with (sum of squares)^2 / (sum of fourth powers) of these changes as degrees of freedom: how
  many slides the variance rests on. A few slides hold most of the tumour, and the normal quantile would take a
  variance for known that rests on them. It is a third of Satterthwaite's number (Biometrics Bull. 2, 1946) for changes
  that are normally distributed, so it is conservative.
- Interval of a figure: Wilson's (J. Am. Stat. Assoc. 22, 1927) with the effective sample size p (1 - p) / variance, as
  for surveys in Franco et al., J. Surv. Stat. Methodol. 7, 2019. It stays between 0 and 1. Without variance the sample
  size is the number of slides.
- Difference of a figure between two models: the same variance and quantile, of the changes of the difference, so that
  what makes a slide easy or hard for both models cancels out. The interval is symmetric, and the p value is that of
  the same t, so that it is below 1 - level exactly where the interval does not contain 0.

`benchmarks/coverage.py` measures the coverage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Difference of a figure of two models on the same slides, its standard error, limits and two-sided p value.

    Without variance the limits are None, and the p value is 1 for models that do not differ and None for others.
    """

    difference: float
    standard_error: float
    limits: tuple[float, float] | None
    p_value: float | None


def leave_out_weights(slides: int, ranks: NDArray[np.int64] | None = None) -> Weights:
    """Weights 0 and 1, (parts, slides): each row leaves out one slide, or one of 1,000 groups of slides.

    `ranks` (slides,) are the places of the slides in an order in which the groups take turns; by default their own.
    """
    parts = min(slides, _MAX_PARTS)
    places = np.arange(slides) if ranks is None else ranks
    kept: NDArray[np.bool_] = places % parts != np.arange(parts)[:, None]
    return kept.astype(np.int32)


def jackknife_interval(figure: Floats, left_out: Floats, slides: int, level: float) -> tuple[Floats, Floats]:
    """Lower and upper limits (...) of figures (...) between 0 and 1 from those of each leave-out, (parts, ...).

    `slides` is how many slides the figures rest on. At 0 and at 1 the other limit is one-sided, at (1 + level) / 2. NaN
    where a figure of a leave-out is NaN.
    """
    variance, changing_slides = _variance_and_freedom(left_out - figure)
    varies = (figure > 0) & (figure < 1) & ~(variance < _SMALLEST_CHANGE**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = np.where(varies, changing_slides, slides)
        size = np.where(varies, figure * (1 - figure) / variance, slides)
    ratio = stats.t.ppf((1 + level) / 2, freedom) ** 2 / size
    middle = (figure + ratio / 2) / (1 + ratio)
    half_width = np.sqrt(ratio * figure * (1 - figure) + ratio**2 / 4) / (1 + ratio)
    return (
        np.where(figure == 0, 0.0, np.maximum(middle - half_width, 0.0)),
        np.where(figure == 1, 1.0, np.minimum(middle + half_width, 1.0)),
    )


def paired_difference(difference: float, changes: Floats, level: float) -> PairedDifference:
    """A difference of two figures between 0 and 1 with the interval at `level`.

    `changes` (parts,) are those of the difference without each slide, or any parts whose squares add up to its
    variance. Neither their order nor that of the models matters.
    """
    variance, freedom = _variance_and_freedom(np.sort(np.abs(changes)))
    if variance < _SMALLEST_CHANGE**2:
        return PairedDifference(difference, 0.0, None, None if abs(difference) > _SMALLEST_CHANGE else 1.0)
    error = float(np.sqrt(variance))
    reach = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    limits = max(difference - reach, -1.0), min(difference + reach, 1.0)
    return PairedDifference(difference, error, limits, float(2 * stats.t.sf(abs(difference) / error, freedom)))


def _variance_and_freedom(changes: Floats) -> tuple[Floats, Floats]:
    """Sum of the squares of changes (parts, ...), and the number of slides that it rests on, both (...)."""
    squares = changes**2
    variance = squares.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return variance, variance**2 / (squares**2).sum(axis=0)


def is_constant(changes: Floats) -> bool:
    """Whether a figure is the same without each slide, given its changes (parts,)."""
    return bool((np.abs(changes) < _SMALLEST_CHANGE).all())


def no_interval_reason(found: PairedDifference) -> str | None:
    """Why a difference has no limits; None where it has."""
    if found.limits is not None:
        return None
    if found.p_value is None:
        return "the difference is the same without each slide"
    return "no slide tells the models apart"


def holm(p_values: Sequence[float]) -> list[float]:
    """P values of one family of tests, adjusted by Holm's step-down procedure (S. Holm, Scand. J. Stat. 6, 1979)."""
    ascending = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[ascending] = np.minimum(np.maximum.accumulate(factors * np.asarray(p_values)[ascending]), 1.0)
    found: list[float] = adjusted.tolist()
    return found


def too_few_slides(slides: int) -> str | None:
    """Why a figure that rests on so few slides, or so few of a class, has no interval; None where it has one."""
    if slides >= MIN_SLIDES:
        return None
    return f"too few slides for an interval: {slides}, at least {MIN_SLIDES} are needed"
