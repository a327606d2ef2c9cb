"""Temperature scaling: its effect on scores, and the fit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn import metrics as sk

from wsi_pipeline.metrics.calibration import at_temperature, cross_entropy, fit_temperature
from wsi_pipeline.metrics.curves import Histogram
from wsi_pipeline.metrics.steps import STEPS, centres, dequantize, quantize


def drawn(temperature: float, count: int = 200_000) -> Histogram:
    """Scores whose truth is drawn at the probability after dividing their log odds by the temperature."""
    rng = np.random.default_rng(1)
    odds = rng.normal(-1, 3, count)
    truth = rng.random(count) < expit(odds / temperature)
    return Histogram.of(dequantize(quantize(odds)), truth)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_fit_recovers_the_true_temperature(temperature: float) -> None:
    # The standard error at 200,000 patches is under 1 %.
    assert fit_temperature(drawn(temperature)) == pytest.approx(temperature, rel=0.02)


def test_the_fit_minimises_the_cross_entropy() -> None:
    histogram = drawn(2.0, 500)
    found = fit_temperature(histogram)
    best = minimize_scalar(lambda t: cross_entropy(histogram, t), bounds=(0.1, 10), method="bounded").x
    assert found == pytest.approx(best, rel=1e-4)
    assert cross_entropy(histogram, found) < cross_entropy(histogram)


def test_cross_entropy_matches_scikit_learn() -> None:
    histogram = drawn(1.0, 500)
    odds = centres(quantize(histogram.values))
    scores = np.repeat(expit(odds), histogram.normal + histogram.tumor)
    pairs = zip(histogram.normal, histogram.tumor, strict=True)
    truth = np.concatenate([np.r_[np.zeros(n), np.ones(t)] for n, t in pairs])
    assert cross_entropy(histogram) == pytest.approx(sk.log_loss(truth, scores), abs=1e-12)


def test_perfect_and_inverted_scores_give_the_limits_of_the_temperature() -> None:
    perfect = Histogram(np.array([-1.5, 1.5]), normal=np.array([5, 0]), tumor=np.array([0, 5]))
    inverted = Histogram(np.array([-1.5, 1.5]), normal=np.array([0, 5]), tumor=np.array([5, 0]))
    assert fit_temperature(perfect) == 0.01
    assert fit_temperature(inverted) == 100


def test_temperature_scaling_keeps_the_order_and_the_score_one_half() -> None:
    steps = np.arange(STEPS + 1)
    assert at_temperature(steps, 1.0).tolist() == steps.tolist()
    hot = at_temperature(steps, 3.0)
    assert (np.diff(hot) >= 0).all()
    half = quantize(np.array([0.0]))
    assert hot[half] == half
    # The middle of a step is divided; its own step is at most half as wide away.
    assert np.abs(dequantize(hot) - centres(steps) / 3)[1:].max() < np.diff(dequantize(steps)[1:]).max()
