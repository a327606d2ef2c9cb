"""Whole numbers of any size, and shares as they are written in decimal."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

_INT64_MAX = 2**63 - 1


def exact(counts: NDArray[np.int64], largest: int) -> NDArray[Any]:
    """`counts` in a type whose arithmetic is exact up to `largest`: int64, else Python's integers (slower)."""
    return counts if largest <= _INT64_MAX else counts.astype(object)


def share_of(share: float, count: int) -> Fraction:
    """`share` times `count` without rounding, for a share that means its shortest decimal form.

    In binary, 0.54 * 450 is above 243, so that a ceiling or a comparison would ask for one more.
    """
    return Fraction(repr(float(share))) * count
