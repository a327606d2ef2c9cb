"""Thresholds chosen on the scores of validation slides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from wsi_pipeline.metrics.curves import Histogram
from wsi_pipeline.metrics.lesions import SlideHits
from wsi_pipeline.metrics.operating_points import at_false_positives, at_sensitivity, max_f1, youden

# Positives at or above .9: 4 of 10 tumour and 0 of 20 normal patches; .7: 7 and 2; .5: 9 and 5; .3: 10 and 12; .1: all.
BY_HAND = Histogram(
    np.array([0.1, 0.3, 0.5, 0.7, 0.9]), normal=np.array([8, 7, 3, 2, 0]), tumor=np.array([0, 1, 2, 3, 4])
)


def test_rules_by_hand() -> None:
    # Sensitivity - (1 - specificity): .4 at .9; .7 - .1 = .6 at .7; .9 - .25 = .65 at .5; 1 - .6 = .4 at .3.
    assert youden(BY_HAND) == 0.5
    # 2 TP / (TP + FP + 10): 8/14 = .571 at .9; 14/19 = .737 at .7; 18/24 = .75 at .5; 20/32 = .625 at .3.
    assert max_f1(BY_HAND) == 0.5
    # With 3 more false positives at .5, F1 at .5 is 18/27 = .667, and .7 is the best threshold.
    more = Histogram(BY_HAND.values, BY_HAND.normal + np.array([0, 0, 3, 0, 0]), BY_HAND.tumor)
    assert max_f1(more) == 0.7
    assert at_sensitivity(BY_HAND, 0.7) == 0.7
    assert at_sensitivity(BY_HAND, 0.71) == 0.5
    assert at_sensitivity(BY_HAND, 1.0) == 0.3


def test_of_equally_good_thresholds_the_highest_is_chosen() -> None:
    # At .8: 1 of 2 tumour and 0 of 2 normal; at .4: 2 and 1. Both differ by a half.
    histogram = Histogram(np.array([0.2, 0.4, 0.8]), normal=np.array([1, 1, 0]), tumor=np.array([0, 1, 1]))
    assert youden(histogram) == 0.8


@given(st.lists(st.tuples(st.sampled_from((0.0, 0.2, 0.5, 0.9, 1.0)), st.booleans()), min_size=2, max_size=40))
def test_rules_match_a_search_over_all_scores(patches: list[tuple[float, bool]]) -> None:
    scores, truth = (np.array(column) for column in zip(*patches, strict=True))
    if truth.all() or not truth.any():
        return
    histogram = Histogram.of(scores, truth)
    j = {t: (scores[truth] >= t).mean() - (scores[~truth] >= t).mean() for t in np.unique(scores)}
    f1 = {t: sk.f1_score(truth, scores >= t) for t in np.unique(scores)}
    assert j[youden(histogram)] == pytest.approx(max(j.values()))
    assert f1[max_f1(histogram)] == pytest.approx(max(f1.values()))
    enough = [t for t in np.unique(scores) if (scores[truth] >= t).mean() >= 0.6]
    assert at_sensitivity(histogram, 0.6) == max(enough)


def test_false_positives_per_slide_by_hand() -> None:
    # False detections on 4 slides, at or above each score: .3: 4 (1 per slide); .6: 3 (.75); .7, .8 and .9: 1 (.25).
    slides = [
        SlideHits((0.8, None), (0.9,)),
        SlideHits((0.7,), (0.6, 0.6)),
        SlideHits((), (0.3,)),
        SlideHits((), ()),
    ]
    assert at_false_positives(slides, 1.0) == 0.3
    assert at_false_positives(slides, 0.99) == 0.6
    assert at_false_positives(slides, 0.5) == 0.7
    assert at_false_positives(slides, 0.25) == 0.7
    # No false positive allowed: the next float32 above the highest.
    assert at_false_positives(slides, 0.0) == np.nextafter(np.float32(0.9), np.float32(1))
    assert at_false_positives([SlideHits((None,), ())], 1.0) is None
