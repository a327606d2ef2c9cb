"""Operating points: thresholds chosen by a rule on the scores of validation slides. Ties go to the highest threshold.

Youden's J: Cancer 3, 1950. A position is positive at or above the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.metrics.curves import Histogram
from wsi_pipeline.metrics.exact import exact, share_of
from wsi_pipeline.metrics.lesions import SlideHits


def youden(histogram: Histogram) -> float:
    """The score with the highest sensitivity + specificity; requires both classes."""
    tp, fp = _positives(histogram)
    # Integer arithmetic: with rates, rounding could decide between thresholds that tie.
    pairs = histogram.n_normal * histogram.n_tumor
    return _best(histogram, exact(tp, pairs) * histogram.n_normal - exact(fp, pairs) * histogram.n_tumor)


def max_f1(histogram: Histogram) -> float:
    """The score with the highest F1; requires tumour."""
    tp, fp = _positives(histogram)
    return _best(histogram, 2 * tp / (tp + fp + histogram.n_tumor))


def at_sensitivity(histogram: Histogram, sensitivity: float) -> float:
    """The highest score with at least `sensitivity` (0 to 1); requires tumour."""
    tp, _ = _positives(histogram)
    return float(histogram.values[np.flatnonzero(tp >= math.ceil(share_of(sensitivity, histogram.n_tumor)))[-1]])


def at_false_positives(slides: Sequence[SlideHits], per_slide: float) -> float | None:
    """The lowest detection confidence with at most `per_slide` false positives on average over `slides`.

    The float32 next above the highest confidence where none qualifies; None without detections.
    """
    false_confidences = np.sort(np.array([c for s in slides for c in s.false_positives], np.float64))
    true_confidences = [c for s in slides for c in s.hits]
    confidences = np.unique(np.concatenate([false_confidences, true_confidences]))
    if not len(confidences):
        return None
    false_positives = len(false_confidences) - np.searchsorted(false_confidences, confidences)
    allowed = np.flatnonzero(false_positives <= math.floor(share_of(per_slide, len(slides))))
    if len(allowed):
        return float(confidences[allowed[0]])
    return float(np.nextafter(np.float32(confidences[-1]), np.float32(np.inf)))


def _positives(histogram: Histogram) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of true and of false positives with each score as the threshold."""
    return np.cumsum(histogram.tumor[::-1])[::-1], np.cumsum(histogram.normal[::-1])[::-1]


def _best(histogram: Histogram, merit: NDArray[np.floating | np.int64]) -> float:
    return float(histogram.values[len(merit) - 1 - int(np.argmax(merit[::-1]))])
