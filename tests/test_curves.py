from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from wsi_pipeline.metrics.curves import (
    ConfusionCounts,
    Histogram,
    auc,
    average_precision,
    confusion_counts,
    pr_curve,
    roc_curve,
    thin_curve,
)

scored = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=80).filter(
    lambda rows: len({truth for _, truth in rows}) == 2
)


@given(scored)
@settings(max_examples=200, deadline=None)
def test_curves_and_areas_match_scikit_learn_with_ties(rows: list[tuple[int, bool]]) -> None:
    scores, truth = (np.array(column) for column in zip(*rows, strict=True))
    histogram = Histogram.of(scores / 12, truth)
    assert auc(histogram) == pytest.approx(metrics.roc_auc_score(truth, scores / 12), abs=1e-12)
    assert average_precision(histogram) == pytest.approx(metrics.average_precision_score(truth, scores / 12), abs=1e-12)
    curve = roc_curve(histogram)
    fpr, tpr, _ = metrics.roc_curve(truth, scores / 12, drop_intermediate=False)
    np.testing.assert_allclose(curve.x, fpr, atol=1e-12)
    np.testing.assert_allclose(curve.y, tpr, atol=1e-12)
    precision, recall, _ = metrics.precision_recall_curve(truth, scores / 12)
    pr = pr_curve(histogram)
    np.testing.assert_allclose(pr.x, recall[-2::-1], atol=1e-12)
    np.testing.assert_allclose(pr.y, precision[-2::-1], atol=1e-12)


def test_a_missing_class_gives_none() -> None:
    only_normal = Histogram.of(np.array([0.1, 0.2]), np.array([False, False]))
    assert auc(only_normal) is None
    assert average_precision(only_normal) is None


def test_counts_include_the_threshold_itself() -> None:
    histogram = Histogram.of(np.array([0.2, 0.8, 0.8, 0.9]), np.array([True, False, True, True]))
    assert confusion_counts(histogram, 0.8) == ConfusionCounts(tp=2, fp=1, fn=1, tn=0)
    assert confusion_counts(histogram, 0.81) == ConfusionCounts(tp=1, fp=0, fn=2, tn=1)


def test_a_thinned_curve_keeps_its_shape() -> None:
    rng = np.random.default_rng(0)
    histogram = Histogram.of(rng.normal(0, 1, 40000) + np.arange(40000) % 2, np.arange(40000) % 2 == 1)
    full, thin = roc_curve(histogram), thin_curve(roc_curve(histogram), 500)
    assert len(thin.x) <= 502
    assert (thin.x[0], thin.x[-1]) == (full.x[0], full.x[-1])
    assert np.trapezoid(thin.y, thin.x) == pytest.approx(np.trapezoid(full.y, full.x), abs=1e-4)
