"""Metrics of counts whose products exceed int64, and exact decimal shares, against Python's integers and fractions."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import expit

from wsi_pipeline.config import PatchesRun
from wsi_pipeline.evaluation.score_histogram import ScoreHistogram
from wsi_pipeline.metrics.curves import Histogram, auc
from wsi_pipeline.metrics.exact import share_of
from wsi_pipeline.metrics.lesions import SlideHits
from wsi_pipeline.metrics.operating_points import at_false_positives, at_sensitivity, youden
from wsi_pipeline.metrics.steps import centres, quantize
from wsi_pipeline.model.patch_selection import draw_candidates

# A million slides of a million positions have 10**12; a bin may hold ten times that.
MOST = 10**13
columns = st.lists(st.tuples(st.integers(0, MOST), st.integers(0, MOST)), min_size=1, max_size=40).filter(
    lambda rows: any(normal for normal, _ in rows) and any(tumor for _, tumor in rows)
)


def histogram_of(rows: list[tuple[int, int]]) -> Histogram:
    normal, tumor = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    return Histogram(np.arange(len(rows)) / len(rows), normal, tumor)


@given(columns)
@settings(max_examples=300, deadline=None)
def test_auc_matches_python_integers(rows: list[tuple[int, int]]) -> None:
    below = [0, *accumulate(normal for normal, _ in rows)]
    wins = sum(tumor * (2 * below[k] + normal) for k, (normal, tumor) in enumerate(rows))
    pairs = 2 * sum(normal for normal, _ in rows) * sum(tumor for _, tumor in rows)
    assert auc(histogram_of(rows)) == pytest.approx(float(Fraction(wins, pairs)), abs=1e-15)


@given(columns)
@settings(max_examples=300, deadline=None)
def test_youden_matches_python_integers(rows: list[tuple[int, int]]) -> None:
    histogram = histogram_of(rows)
    normals, tumors = (sum(column) for column in zip(*rows, strict=True))

    def merit(k: int) -> Fraction:
        tp, fp = (sum(row[i] for row in rows[k:]) for i in (1, 0))
        return Fraction(tp, tumors) - Fraction(fp, normals)

    best = max(range(len(rows)), key=lambda k: (merit(k), k))
    assert youden(histogram) == histogram.values[best]


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_ten_thousand_slides_of_a_million_positions(share: float) -> None:
    # Normal counts fall off from score 0, tumour counts from 1; the same shape with small counts is the reference.
    shape = np.linspace(1, 0, 101) ** 20
    shape /= shape.sum()

    def histogram(positions: int) -> Histogram:
        values = np.linspace(0, 1, 101)
        normal, tumor = (np.rint(positions * part) for part in ((1 - share) * shape, share * shape[::-1]))
        return Histogram(values, normal.astype(np.int64), tumor.astype(np.int64))

    small, large = histogram(10**8), histogram(10**10)
    assert auc(large) == pytest.approx(auc(small), abs=1e-6)
    assert auc(large) > 0.9
    # Symmetric shapes: the best threshold is in the middle, whatever the share of tumour.
    assert youden(large) == pytest.approx(0.5, abs=0.02)


@given(st.integers(1, 999), st.integers(1, 3000))
@example(540, 450)
@settings(max_examples=500, deadline=None)
def test_sensitivity_is_an_exact_decimal(thousandths: int, tumors: int) -> None:
    # One tumour position at each score, so that the threshold gives the number of positives.
    histogram = Histogram(np.arange(tumors, dtype=np.float64), np.zeros(tumors, np.int64), np.ones(tumors, np.int64))
    called = tumors - at_sensitivity(histogram, thousandths / 1000)
    assert called == -(-thousandths * tumors // 1000)


def test_binary_rounding_does_not_raise_the_required_count() -> None:
    assert 0.54 * 450 > 243
    assert share_of(0.54, 450) == 243
    histogram = Histogram(np.arange(450.0), np.zeros(450, np.int64), np.ones(450, np.int64))
    assert 450 - at_sensitivity(histogram, 0.54) == 243


@given(st.integers(0, 300), st.integers(1, 300), st.integers(0, 80))
@example(29, 100, 40)
@settings(max_examples=300, deadline=None)
def test_false_positives_per_slide_are_an_exact_decimal(hundredths: int, slides: int, made: int) -> None:
    confidences = tuple((k + 1) / 1000 for k in range(made))
    hits = [SlideHits((0.5,), confidences), *[SlideHits((), ())] * (slides - 1)]
    threshold = at_false_positives(hits, hundredths / 100)
    assert threshold is not None
    allowed = Decimal(hundredths) / 100 * slides
    assert sum(c >= threshold for c in confidences) <= allowed
    # The next lower threshold would exceed the allowed number, unless all are allowed.
    lower = [c for c in (*confidences, 0.5) if c < threshold]
    assert not lower or sum(c >= max(lower) for c in confidences) > allowed


@given(st.integers(1, 1000), st.lists(st.integers(0, MOST), min_size=1, max_size=30).filter(any))
@example(540, [300, 150])
@settings(max_examples=300, deadline=None)
def test_the_top_share_matches_python_integers(thousandths: int, counts: list[int]) -> None:
    steps = quantize(np.linspace(-20, 20, len(counts)))
    zero = np.zeros(len(counts), np.int64)
    wanted = left = -(-thousandths * sum(counts) // 1000)
    tumor = normal = Fraction(0)
    # Log odds of up to 20, where 1 - p is not rounded away in float64.
    for odds, count in zip(centres(steps)[::-1].tolist(), counts[::-1], strict=True):
        tumor += min(left, count) * Fraction(float(expit(odds)))
        normal += min(left, count) * Fraction(float(expit(-odds)))
        left -= min(left, count)
    assert left == 0
    found = ScoreHistogram(steps, np.array(counts, np.int64), zero, zero).top_mean(thousandths / 1000)
    assert found == pytest.approx(math.log(tumor / wanted) - math.log(normal / wanted), rel=1e-12, abs=1e-12)


def test_normal_patches_per_tumour_patch_are_an_exact_decimal() -> None:
    assert 1.1 * 50 > 55
    labels = np.array([1] * 50 + [0] * 900, np.int8)
    drawn = draw_candidates(labels, "s1", PatchesRun(normal_per_tumor=1.1))
    assert int((labels[drawn] == 0).sum()) == 55
