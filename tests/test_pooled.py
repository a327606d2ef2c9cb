"""Pooled scores of many slides: exact over all slides, nearly exact for weighted slides, small in memory."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics

from wsi_pipeline.metrics.calibration import RELIABILITY_BINS
from wsi_pipeline.metrics.curves import auc, average_precision
from wsi_pipeline.metrics.intervals import leave_out_weights
from wsi_pipeline.metrics.pooled import (
    PooledScores,
    ScoreSummary,
    bin_edges,
    histogram_aucs,
    histogram_average_precisions,
)
from wsi_pipeline.metrics.steps import STEPS, centres, quantize


def draw(rng: np.random.Generator, count: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Scores in steps and truth of a slide; most probabilities are near 0 or 1, like those of a network."""
    truth = rng.random(count) < rng.choice((0, 0.02, 0.3))
    logits = rng.normal(np.where(truth, 1.5, -2.5), 2) * sharpness
    return quantize(logits), truth


def counted(steps: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values, index = np.unique(steps, return_inverse=True)
    return values, np.bincount(index[~truth], minlength=len(values)), np.bincount(index[truth], minlength=len(values))


def pooled_of(slides: list[tuple[np.ndarray, np.ndarray]]) -> PooledScores:
    pooled = PooledScores()
    edges = bin_edges(*counted(*(np.concatenate(part) for part in zip(*slides, strict=True))))
    for steps, truth in slides:
        found = counted(steps, truth)
        pooled.add(f"s{len(pooled)}", *found, ScoreSummary.of(*found, edges))
    return pooled


@pytest.mark.parametrize("sharpness", [0.3, 1, 3])
def test_metrics_of_weighted_slides_are_close_to_those_of_the_exact_scores(sharpness: float) -> None:
    rng = np.random.default_rng(1)
    slides = [draw(rng, 400, sharpness) for _ in range(12)]
    pooled = pooled_of(slides)
    scores, truth = (np.concatenate([s[k] for s in slides]) for k in (0, 1))
    histogram = pooled.histogram
    area, precision = auc(histogram), average_precision(histogram)
    assert area is not None
    assert precision is not None
    assert area == pytest.approx(metrics.roc_auc_score(truth, scores), abs=1e-12)
    assert precision == pytest.approx(metrics.average_precision_score(truth, scores), abs=1e-12)
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=40)
    # Binning affects average precision more than AUC, especially with few tumour patches.
    for statistic, exact, reference, largest, mean in (
        (histogram_aucs, area, metrics.roc_auc_score, 5e-4, 1e-4),
        (histogram_average_precisions, precision, metrics.average_precision_score, 5e-3, 5e-4),
    ):
        wanted = []
        for w in weights:
            picked = np.repeat(np.arange(12), w)
            s, t = (np.concatenate([slides[k][part] for k in picked]) for part in (0, 1))
            wanted.append(reference(t, s))
        differences = np.abs(pooled.weighted(statistic, exact, weights) - wanted)
        assert differences.max() < largest
        assert differences.mean() < mean
    # Weights of one give the exact value.
    assert pooled.weighted(histogram_aucs, area, np.ones((1, 12), np.int64))[0] == pytest.approx(area, abs=1e-15)


@pytest.mark.parametrize(("middle", "scale"), [(0, 1e-3), (-3, 0.02), (8, 0.05), (300, 60), (-40, 0.5)])
def test_leave_outs_are_close_to_the_exact_ones_for_scores_of_any_scale(middle: float, scale: float) -> None:
    """Scores of networks that have learnt little, or are very sure, may lie within a few of the fixed bins."""
    rng = np.random.default_rng(5)
    slides = []
    for _ in range(20):
        truth = rng.random(400) < rng.choice((0, 0.1, 0.4))
        odds = rng.normal(np.where(truth, 1.5, -0.5) + rng.normal(0, 0.7), 1)
        slides.append((quantize(middle + scale * odds), truth))
    pooled = pooled_of(slides)
    exact = auc(pooled.histogram), average_precision(pooled.histogram)
    left_out = leave_out_weights(20)
    for statistic, whole, reference in zip(
        (histogram_aucs, histogram_average_precisions),
        exact,
        (metrics.roc_auc_score, metrics.average_precision_score),
        strict=True,
    ):
        assert whole is not None
        wanted = []
        for kept in left_out.astype(bool):
            steps, truth = (
                np.concatenate([s[k] for s, keep in zip(slides, kept, strict=True) if keep]) for k in (0, 1)
            )
            wanted.append(reference(truth, steps))
        changes = pooled.weighted(statistic, whole, left_out) - whole
        assert np.square(changes).sum() == pytest.approx(np.square(np.array(wanted) - whole).sum(), rel=0.02)


def test_groups_of_many_slides_share_out_those_with_tumour_in_any_order() -> None:
    """In two orders, in one of which the only slides with tumour are 1,000 rows apart."""
    steps, one = np.array([30_000, 30_001]), np.array([1, 1])
    edges = bin_edges(steps, one, one)
    names = [f"s{k:04}" for k in range(1010)]
    found = []
    for order in (names, names[::-1]):
        pooled = PooledScores()
        for name in order:
            tumor = one if name in ("s0005", "s1005") else np.zeros(2, np.int64)
            pooled.add(name, steps, one, tumor, ScoreSummary.of(steps, one, tumor, edges))
        left_out = pooled.leave_out()
        assert np.isfinite(pooled.weighted(histogram_aucs, 0.5, left_out)).all()
        found.append({frozenset(np.array(order)[row == 0].tolist()) for row in left_out})
    assert found[0] == found[1]


def test_counts_beyond_32_bits_are_kept() -> None:
    steps, normal, tumor = np.array([30_000, 30_001]), np.array([3 << 32, 5]), np.array([7, 1 << 33])
    pooled = PooledScores()
    for _ in range(2):
        summary = ScoreSummary.of(steps, normal, tumor, bin_edges(steps, normal, tumor))
        assert (summary.normal.sum(), summary.tumor.sum()) == (normal.sum(), tumor.sum())
        pooled.add("s", steps, normal, tumor, summary)
    area = auc(pooled.histogram)
    assert area is not None
    assert pooled.weighted(histogram_aucs, area, np.array([[0, 1]]))[0] == pytest.approx(area, abs=1e-12)


def test_weights_without_a_class_are_nan() -> None:
    steps = np.arange(10)
    pooled = pooled_of([(steps, np.zeros(10, bool)), (steps, np.arange(10) > 6)])
    area = auc(pooled.histogram)
    assert area is not None
    found = pooled.weighted(histogram_aucs, area, np.array([[2, 0], [1, 1], [0, 2]]))
    assert np.isfinite(found).tolist() == [False, True, True]
    rocs = pooled.weighted_rocs(np.linspace(0, 1, 5), np.array([[2, 0], [1, 1], [0, 2]]))
    assert np.isfinite(rocs).all(axis=1).tolist() == [False, True, True]
    assert pooled.slides_by_class == (2, 1)
    assert np.isnan(pooled.aucs).tolist() == [True, False]
    assert pooled.aucs[1] == 1


def test_calibration_matches_the_direct_sum() -> None:
    rng = np.random.default_rng(2)
    slides = [draw(rng, 300, 1) for _ in range(5)]
    pooled = pooled_of(slides)
    steps, truth = (np.concatenate([s[k] for s in slides]) for k in (0, 1))
    values = expit(centres(steps))
    ones = np.ones((1, 5), np.int64)
    assert pooled.calibration.brier_scores(ones)[0] == pytest.approx(metrics.brier_score_loss(truth, values), abs=1e-12)
    place = np.minimum((values * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    wanted = sum(
        abs(values[place == k].mean() - truth[place == k].mean()) * (place == k).mean()
        for k in range(RELIABILITY_BINS)
        if (place == k).any()
    )
    assert pooled.calibration.expected_errors(ones)[0] == pytest.approx(wanted, abs=1e-6)
    weights = np.array([[2, 0, 1, 0, 0]])
    twice = pooled_of([slides[0], slides[0], slides[2]])
    assert pooled.calibration.brier_scores(weights)[0] == pytest.approx(
        twice.calibration.brier_scores(np.ones((1, 3), np.int64))[0]
    )
    assert pooled.calibration.expected_errors(weights)[0] == pytest.approx(
        twice.calibration.expected_errors(np.ones((1, 3), np.int64))[0]
    )
    rows = pooled.calibration.curve()
    assert [low for low, *_ in rows] == pytest.approx(np.arange(15) / 15)
    assert sum(n for _, _, n, _, _ in rows) == len(steps)
    assert sum(n * (share or 0) for _, _, n, _, share in rows) == pytest.approx(truth.sum())
    assert sum(n * (score or 0) for _, _, n, score, _ in rows) == pytest.approx(values.sum(), rel=1e-6)


def test_correct_scores_of_0_and_1_are_calibrated() -> None:
    truth = np.array([True, False, True])
    pooled = pooled_of([(np.where(truth, STEPS, 0), truth)])
    assert pooled.calibration.expected_errors(np.ones((1, 1), np.int64)).tolist() == [0]
    assert pooled.calibration.brier_scores(np.ones((1, 1), np.int64)).tolist() == [0]


def test_score_summaries_are_small() -> None:
    rng = np.random.default_rng(3)
    steps, truth = draw(rng, 200_000, 2)
    found = counted(steps, truth)
    summary = ScoreSummary.of(*found, bin_edges(*found))
    assert summary.normal.nbytes + summary.tumor.nbytes + summary.calibration.bins.nbytes < 20_000
    assert summary.normal.sum() + summary.tumor.sum() == len(steps)
