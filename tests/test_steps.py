"""Steps of log odds: what they keep of the scores of a network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn import metrics as sk

from wsi_pipeline.metrics.curves import Histogram, auc, average_precision, confusion_counts
from wsi_pipeline.metrics.steps import STEPS, centres, dequantize, log_odds_of, log_odds_of_mean, quantize

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(finite, st.integers(0, STEPS))
def test_a_score_is_at_or_above_the_edges_of_its_step_and_of_those_below(score: float, step: int) -> None:
    assert (score >= dequantize(np.array([step]))[0]) == (quantize(np.array([score]))[0] >= step)


def test_steps_ascend_and_hold_their_centres() -> None:
    steps = np.arange(STEPS + 1)
    assert (np.diff(dequantize(steps)) > 0).all()
    assert quantize(dequantize(steps)).tolist() == steps.tolist()
    assert quantize(centres(steps)).tolist() == steps.tolist()


@pytest.mark.parametrize(("at", "least"), [(0, 98_000), (0.5, 5_900), (12, 240), (32, 90), (-12, 240), (-32, 90)])
def test_steps_are_as_narrow_as_documented(at: float, least: int) -> None:
    step = quantize(np.array([float(at)]))
    assert dequantize(step + 1) - dequantize(step - 1) <= 2 / least


@pytest.mark.parametrize("share", [*(k / 100 for k in range(1, 100)), *(k / 15 for k in range(1, 15))])
def test_counts_at_whole_percents_and_at_the_bins_of_the_reliability_curve_are_exact(share: float) -> None:
    threshold = log_odds_of(share)
    scores = np.nextafter(np.float32(threshold), np.array([-np.inf, np.inf], np.float32))
    histogram = Histogram.of(dequantize(quantize(scores)), np.array([False, True]))
    counts = confusion_counts(histogram, threshold)
    assert (counts.tp, counts.fp) == (1, 0)


def test_every_finite_score_lies_between_the_log_odds_of_0_and_1() -> None:
    largest = float(np.finfo(np.float32).max)
    assert log_odds_of(0) < dequantize(np.zeros(1, np.int64))[0] <= -largest
    assert largest < log_odds_of(1)


@pytest.mark.parametrize("shift", [-12, 0, 12])
@pytest.mark.parametrize("confidence", [1, 2, 4, 8])
def test_pooled_figures_lose_nothing_that_matters(confidence: int, shift: int) -> None:
    """AUC and average precision of 400,000 patches against float64, at both tails, up to log odds of ±200."""
    rng = np.random.default_rng([confidence, shift + 12])
    truth = rng.random(400_000) < 0.01
    odds = confidence * rng.normal(np.where(truth, shift + 1.5, shift - 1.5), 1.5)
    histogram = Histogram.of(dequantize(quantize(odds)), truth)
    assert auc(histogram) == pytest.approx(sk.roc_auc_score(truth, odds), abs=5e-6)
    assert average_precision(histogram) == pytest.approx(sk.average_precision_score(truth, odds), abs=4e-4)
    if confidence > 2 and shift > 0:
        # Probabilities, even in float64, tie.
        assert abs(sk.roc_auc_score(truth, expit(odds)) - sk.roc_auc_score(truth, odds)) > 0.01


@pytest.mark.parametrize("scale", [1e-2, 1e-3, 1e-4])
def test_scores_of_a_network_that_has_hardly_learnt_do_not_tie(scale: float) -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(400_000) < 0.01
    odds = scale * rng.normal(np.where(truth, 1.5, -1.5), 1.5)
    histogram = Histogram.of(dequantize(quantize(odds)), truth)
    assert auc(histogram) == pytest.approx(sk.roc_auc_score(truth, odds), abs=2e-4)
    assert average_precision(histogram) == pytest.approx(sk.average_precision_score(truth, odds), abs=0.01)


@given(st.lists(st.tuples(st.floats(-15, 15), st.integers(1, 9)), min_size=1))
def test_the_mean_probability_of_scores(scores: list[tuple[float, int]]) -> None:
    odds, counts = np.array([odds for odds, _ in scores]), np.array([count for _, count in scores])
    wanted = np.average(expit(odds), weights=counts)
    assert expit(log_odds_of_mean(odds, counts)) == pytest.approx(wanted, rel=1e-9)
    assert log_odds_of_mean(np.repeat(odds, counts)) == pytest.approx(log_odds_of_mean(odds, counts), abs=1e-9)


def test_the_mean_of_confident_scores_does_not_round_to_1() -> None:
    # 1 - p is exp(-log odds) to 17 digits.
    assert log_odds_of_mean(np.array([700.0, 50.0])) == pytest.approx(50 + np.log(2))
    assert log_odds_of_mean(np.array([-700.0, -50.0])) == pytest.approx(-50 - np.log(2))
    assert log_odds_of_mean(np.array([logit(0.25)])) == pytest.approx(logit(0.25))
