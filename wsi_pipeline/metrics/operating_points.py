"""Thresholds by rule, from the scores of validation slides. Of equally good ones the highest is taken.

Youden's J: Cancer 3, 1950. A position is called tumour at or above the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.metrics.curves import Histogram
from wsi_pipeline.metrics.lesions import SlideHits
from wsi_pipeline.metrics.steps import STEPS, dequantize, quantize


def youden(histogram: Histogram) -> float:
    """The score with the highest sensitivity + specificity; both classes have to be there."""
    tp, fp = _called(histogram)
    # In whole numbers: of two thresholds that are equally good none may win by rounding.
    return _best(histogram, tp * histogram.n_normal - fp * histogram.n_tumor)


def max_f1(histogram: Histogram) -> float:
    """The score with the highest F1; tumour has to be there."""
    tp, fp = _called(histogram)
    return _best(histogram, 2 * tp / (tp + fp + histogram.n_tumor))


def at_sensitivity(histogram: Histogram, sensitivity: float) -> float:
    """The highest score at which at least that share of tumour is called; tumour has to be there."""
    tp, _ = _called(histogram)
    return float(histogram.values[np.flatnonzero(tp >= sensitivity * histogram.n_tumor)[-1]])


def at_false_positives(slides: Sequence[SlideHits], per_slide: float) -> float | None:
    """The lowest confidence of a detection at which no more false ones are made on the mean of the slides.

    The next step above all confidences where each makes too many; None where nothing was detected.
    """
    wrong = np.sort(np.array([c for s in slides for c in s.false_positives], np.float64))
    right = [c for s in slides for c in s.lesions if c > 0]
    confidences = np.unique(np.concatenate([wrong, right]))
    if not len(confidences):
        return None
    made = len(wrong) - np.searchsorted(wrong, confidences)
    allowed = np.flatnonzero(made <= per_slide * len(slides))
    if len(allowed):
        return float(confidences[allowed[0]])
    above = np.minimum(quantize(confidences[-1:]) + 1, STEPS)
    return float(dequantize(above)[0])


def _called(histogram: Histogram) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and false positives at each score."""
    return np.cumsum(histogram.tumor[::-1])[::-1], np.cumsum(histogram.normal[::-1])[::-1]


def _best(histogram: Histogram, merit: NDArray[np.floating | np.int64]) -> float:
    return float(histogram.values[len(merit) - 1 - int(np.argmax(merit[::-1]))])
