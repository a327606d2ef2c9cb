"""FROC against the published protocol of Camelyon16, written out here, and against counting by definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.challenge import LIMITS, Case, official_case, official_curve, official_score
from wsi_pipeline.config import IntervalOptions, LesionLevelOptions
from wsi_pipeline.errors import PredictionError
from wsi_pipeline.evaluation.cohort_metrics import lesion_figures
from wsi_pipeline.evaluation.detections import match_lesions
from wsi_pipeline.evaluation.external import external_froc
from wsi_pipeline.masks.label_images import TUMOR
from wsi_pipeline.metrics.lesions import Detection, FrocCurves, Lesions, PooledHits, SlideHits, match_detections
from wsi_pipeline.morphology import Runs
from wsi_pipeline.pyramid.ome_zarr import Image

# Multiples of 1/8 are exact in float32, in which the official script keeps hits, and in float64.
EIGHTHS = np.arange(9) / 8
INTERVAL = IntervalOptions()


def hits_of(cases: list[Case], pixel: int = 1) -> list[SlideHits]:
    matched = []
    for case in cases:
        counted = tuple(sorted(set(range(1, int(case.labels.max(initial=0)) + 1)) - case.isolated))
        runs = Runs.of(case.labels > 0)
        of_run = case.labels[runs.rows, runs.starts]
        lesions = Lesions(runs, of_run, Runs.of(case.labels < 0), counted, tuple(case.isolated))
        matched.append(match_detections([Detection(*point) for point in case.points], lesions, pixel))
    return matched


def random_cases(rng: np.random.Generator) -> list[Case]:
    cases = []
    for _ in range(rng.integers(1, 7)):
        labels = np.zeros((3, 8), int)
        count = int(rng.integers(0, 5))
        # A lesion in every other column, so that some are missed; the last row is outside.
        labels[:2, : 2 * count : 2] = np.arange(1, count + 1)
        isolated = {k for k in range(1, count + 1) if rng.random() < 0.3}
        confidences = rng.choice(EIGHTHS[rng.integers(0, 8) :], rng.integers(0, 7))
        cases.append(Case(labels, isolated, [(float(c), *rng.integers(0, (8, 3))) for c in confidences]))
    return cases


@pytest.mark.slow
def test_the_official_curve_in_10_000_random_cohorts() -> None:
    rng = np.random.default_rng(0)
    seen = dict.fromkeys(("no lesion", "no detection", "nothing missed", "isolated, nothing missed", "tie"), 0)
    for _ in range(10_000):
        cases = random_cases(rng)
        hits = hits_of(cases)
        found = PooledHits(hits, missed=0.0).froc()
        confidences = [c for one in hits for c in (*one.hits, *one.false_positives)]
        lesions = [c for one in hits for c in one.lesions]
        complete = bool(lesions) and None not in lesions
        seen["no lesion"] += not lesions
        seen["no detection"] += not confidences
        seen["nothing missed"] += complete
        seen["isolated, nothing missed"] += complete and any(one.isolated for one in hits)
        seen["tie"] += len({*confidences}) < len(confidences)
        per_slide, sensitivity = official_curve(cases)
        assert (found is None) == (not lesions)
        if found is not None:
            curve = found.camelyon16
            assert np.array_equal(curve.false_positives, per_slide)
            assert np.array_equal(curve.sensitivity, sensitivity)
            assert curve.interpolated_score == official_score(cases)
            assert curve.step_score == np.mean([sensitivity[per_slide <= limit].max() for limit in LIMITS])
    assert min(seen.values()) > 50, seen


def disks(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Disks and rings of 3 to 40 px, some of them close together."""
    mask = np.zeros(shape, bool)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for _ in range(rng.integers(1, 6)):
        distance = np.hypot(y - rng.uniform(0, shape[0]), x - rng.uniform(0, shape[1]))
        radius = rng.uniform(3, 40)
        mask |= (distance < radius) & (distance > rng.choice((-1, radius - 3)))
    return mask


def test_the_official_score_from_masks_of_level_5(tmp_path: Path) -> None:
    """By the command `froc`, and by the stage at the scale of another scanner."""
    rng = np.random.default_rng(1)
    options = LesionLevelOptions(protocol="camelyon16")
    isolated = 0
    for trial in range(25):
        folders = tmp_path / f"{trial}" / "detections", tmp_path / f"{trial}" / "masks"
        for folder in folders:
            folder.mkdir(parents=True)
        cases, by_stage = [], []
        for slide in range(4):
            mask = disks(rng, (120, 160)) if slide else np.zeros((120, 160), bool)
            # Some detections at random, some in tumour.
            anywhere = rng.integers(0, (120, 160), (3, 2))
            inside = np.argwhere(mask)
            chosen = [*anywhere, *inside[rng.integers(0, len(inside), 4)]] if slide else anywhere
            points = [(float(rng.choice(EIGHTHS)), int(32 * x + 7), int(32 * y + 30)) for y, x in chosen]
            cases.append(official_case(mask, points))
            isolated += len(cases[-1].isolated)
            truth = Image.from_corner(mask * np.uint8(TUMOR), 0.226 * 32)
            by_stage.append(match_lesions([Detection(*point) for point in points], truth, 0.226, options).hits)
            (folders[0] / f"s{slide}.csv").write_text("".join(f"{c},{x},{y}\n" for c, x, y in points))
            if slide:
                tifffile.imwrite(folders[1] / f"s{slide}_mask.tif", mask * np.uint8(255))
        wanted = official_score(cases, pixel=32)
        judged = external_froc(*folders, mpp=0.243, level=5, exclude=(), options=options, interval=INTERVAL)
        assert (judged["froc"], judged["protocol"]) == (wanted, "camelyon16")
        assert lesion_figures(by_stage, INTERVAL)["froc"] == wanted
    assert isolated > 10


def test_the_protocol_decides_which_lesions_are_isolated_cells() -> None:
    """A disk with a major axis of 36.5 px of level 5: 284 um at 0.243 um per pixel, 264 um at 0.226."""
    y, x = np.ogrid[:100, :100]
    truth = Image.from_corner((np.hypot(y - 50, x - 50) < 14).astype(np.uint8), 0.226 * 32)
    point = Detection(0.9, 50 * 32, 50 * 32)
    hits = {
        protocol: match_lesions([point], truth, 0.226, LesionLevelOptions(protocol=protocol)).hits
        for protocol in ("slide_scale", "camelyon16")
    }
    assert hits["slide_scale"] == SlideHits((), (), isolated=1)
    assert hits["camelyon16"] == SlideHits((0.9,), (), isolated=0)


def test_the_protocol_draws_a_finer_truth_at_level_5() -> None:
    """A truth image of 2 um: the same hits as from a mask of level 5, whose pixels have the value at their centre."""
    rng = np.random.default_rng(2)
    options = LesionLevelOptions(protocol="camelyon16")
    for mpp, slide_mpp in ((2.0, 0.226), (0.243 * 8, 0.243), (16.0, 0.25)):
        mask = disks(rng, (500, 600))
        truth = Image.from_corner(mask.astype(np.uint8), mpp)
        width, height = (round(length * mpp / slide_mpp / 32) for length in (600, 500))
        column, row = ((np.arange(length) + 0.5) * 32 * slide_mpp / mpp for length in (width, height))
        coarse = mask[np.minimum(row.astype(int), 499)[:, None], np.minimum(column.astype(int), 599)]
        points = [
            (float(c), int(x), int(y))
            for c, x, y in zip(
                rng.choice(EIGHTHS[1:], 40),
                rng.uniform(0, width * 32, 40),
                rng.uniform(0, height * 32, 40),
                strict=True,
            )
        ]
        (wanted,) = hits_of([official_case(coarse, points)], pixel=32)
        found = match_lesions([Detection(*point) for point in points], truth, slide_mpp, options).hits
        assert sorted(found.hits) == sorted(wanted.hits)
        assert (len(found.lesions), found.isolated) == (len(wanted.lesions), wanted.isolated)
        assert sorted(found.false_positives) == sorted(wanted.false_positives)


@pytest.mark.parametrize("decimal", ["0.941176", "0.627451"])
def test_a_hit_and_a_false_positive_with_the_same_decimal_tie(tmp_path: Path, decimal: str) -> None:
    """Hits in float32, as in the challenge's script, would be below or above false positives in float64."""
    assert float(np.float32(decimal)) != float(decimal)
    for folder in ("detections", "masks"):
        (tmp_path / folder).mkdir()
    mask = np.zeros((100, 100), np.uint8)
    mask[:50] = 255
    tifffile.imwrite(tmp_path / "masks" / "a.tif", mask)
    (tmp_path / "detections" / "a.csv").write_text(f"{decimal},100,100\n{decimal},100,3000\n0.5,100,3000\n")
    judged = external_froc(
        tmp_path / "detections",
        tmp_path / "masks",
        mpp=0.243,
        level=5,
        exclude=(),
        options=LesionLevelOptions(),
        interval=INTERVAL,
    )
    # One point at 1 false positive per slide, none with fewer.
    assert judged["sensitivity"] == judged["all_thresholds"]["sensitivity"] == [0, 0, 1, 1, 1, 1]


def test_the_protocol_has_its_own_lengths_and_scale(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the protocol camelyon16 has merge_um 75 and itc_um 275"):
        LesionLevelOptions(protocol="camelyon16", itc_um=200)
    with pytest.raises(PredictionError, match=r"has 0\.243 um per pixel and masks of level 5, not 0\.25 and 5"):
        external_froc(
            tmp_path,
            tmp_path,
            mpp=0.25,
            level=5,
            exclude=(),
            options=LesionLevelOptions(protocol="camelyon16"),
            interval=INTERVAL,
        )


confidences = st.sampled_from((-3.5, -1.0, 0.0, 0.25, 7.0))
cohorts = st.lists(
    st.builds(
        lambda lesions, false, isolated: SlideHits(tuple(lesions), tuple(false), isolated),
        st.lists(st.none() | confidences, max_size=3),
        st.lists(confidences, max_size=4),
        st.integers(0, 1),
    ),
    max_size=5,
)


def curves_of(slides: list[SlideHits]) -> FrocCurves:
    found = PooledHits(slides).froc()
    assert found is not None
    return found


def assert_equal_curves(found: FrocCurves, wanted: FrocCurves) -> None:
    for one, other in zip(found, wanted, strict=True):
        for name in ("threshold", "false_positives", "sensitivity"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@given(cohorts)
@settings(max_examples=300, deadline=None)
def test_all_thresholds_by_definition(slides: list[SlideHits]) -> None:
    """Confidences are any real numbers, and a missed lesion has none."""
    lesions = [c for one in slides for c in one.lesions]
    if not lesions:
        assert PooledHits(slides).froc() is None
        return
    false = [c for one in slides for c in one.false_positives]
    hits = [c for c in lesions if c is not None]
    curve = curves_of(slides).all_thresholds
    assert curve.threshold[:-1].tolist() == sorted({*false, *hits})
    for threshold, per_slide, sensitivity in zip(
        curve.threshold, curve.false_positives, curve.sensitivity, strict=True
    ):
        assert per_slide == sum(c >= threshold for c in false) / len(slides)
        assert sensitivity == sum(c >= threshold for c in hits) / len(lesions)
    assert curve.step_score == np.mean(
        [max(s for p, s in zip(curve.false_positives, curve.sensitivity, strict=True) if p <= at) for at in LIMITS]
    )


@given(cohorts.filter(lambda slides: any(one.lesions for one in slides)), st.randoms())
@settings(max_examples=200, deadline=None)
def test_point_estimates_depend_on_no_order_and_no_duplication(slides: list[SlideHits], random: object) -> None:
    shuffled = list(slides)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    wanted = curves_of(slides)
    assert_equal_curves(curves_of(shuffled), wanted)
    assert_equal_curves(curves_of(slides * 2), wanted)
    # A confidence is a rank: any increasing function of it has the same curve.
    increased = [
        SlideHits(
            tuple(None if c is None else float(np.exp(c)) for c in one.lesions),
            tuple(float(np.exp(c)) for c in one.false_positives),
            one.isolated,
        )
        for one in slides
    ]
    for one, other in zip(curves_of(increased), wanted, strict=True):
        np.testing.assert_array_equal(one.false_positives, other.false_positives)
        np.testing.assert_array_equal(one.sensitivity, other.sensitivity)


@given(cohorts, st.lists(st.integers(0, 3), min_size=5, max_size=5))
@settings(max_examples=200, deadline=None)
def test_froc_of_weighted_slides_equals_froc_of_its_slides(slides: list[SlideHits], weights: list[int]) -> None:
    repeated = [one for one, times in zip(slides, weights, strict=False) for _ in range(times)]
    found = PooledHits(slides).froc(np.array(weights[: len(slides)], np.int32))
    wanted = PooledHits(repeated).froc()
    assert (found is None) == (wanted is None)
    if found is not None and wanted is not None:
        assert_equal_curves(found, wanted)
        drawn = PooledHits(slides).weighted(np.array([weights[: len(slides)]]))
        scores = [[curve.interpolated_score, curve.step_score] for curve in wanted]
        np.testing.assert_array_equal(drawn[..., 0], scores)


def test_a_perfect_detector_has_1_over_all_thresholds() -> None:
    """All lesions, no false positive, one confidence: the challenge leaves out its only threshold."""
    figures = lesion_figures([SlideHits((0.9, 0.9), ()), *[SlideHits((0.9,), ())] * 2, SlideHits((), ())], INTERVAL)
    plain = figures["all_thresholds"]
    assert (plain["froc"], plain["froc_step_rule"]) == (1, 1)
    # A one-sided bound: three slides that are all found say little of others.
    low, high = plain["froc_interval"]
    assert 0 < low < 0.5
    assert high == 1
    assert (figures["froc"], figures["froc_step_rule"]) == (0, 0)
    assert plain["sensitivity"] == [1] * 6


def test_a_label_of_isolated_cells_keeps_the_lowest_confidence() -> None:
    """Nothing is missed, so the lowest entry of the challenge's list is 0 only through the isolated cells."""
    slides = [SlideHits((0.5, 0.5), ()), SlideHits((), (0.75, 0.75), isolated=1)]
    # At 0.75: none of the lesions and 1 false positive per slide; at 0.5: both at 1.
    figures = lesion_figures(slides, INTERVAL)
    assert figures["froc_step_rule"] == pytest.approx(4 / 6)
    assert figures["n_isolated_tumor_cells"] == 1
    without = lesion_figures([slides[0], SlideHits((), (0.75, 0.75))], INTERVAL)
    assert without["froc_step_rule"] == 0
    assert without["all_thresholds"]["froc_step_rule"] == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("slides", "reason"),
    [
        ([], "the slides have no lesions"),
        ([SlideHits((), (0.5,))], "the slides have no lesions"),
        ([SlideHits((None,), ())], None),
        ([SlideHits((0.5,), ()), SlideHits((), ())], None),
    ],
)
def test_few_slides_and_no_lesions(slides: list[SlideHits], reason: str | None) -> None:
    figures = lesion_figures(slides, INTERVAL)
    for one in (figures, figures["all_thresholds"]):
        assert one["reason"] == reason
        assert (one["froc"] is None) == (one["sensitivity"] is None) == (reason is not None)
        assert one["froc_interval"] is None
        assert (one["froc_interval_reason"] is None) == (one["froc"] is None)
    assert figures["n_slides"] == len(slides)


def test_a_curve_by_hand() -> None:
    # Two tumour slides with 4 lesions (one missed) and two normal slides; 3 false positives on 4 slides.
    slides = [
        SlideHits((0.9, 0.7), (0.8,)),
        SlideHits((0.6, None), ()),
        SlideHits((), (0.65, 0.3)),
        SlideHits((), ()),
    ]
    # Thresholds 0.3 0.6 0.65 0.7 0.8 0.9, then the zero point. The lowest entry of the challenge's list is the miss.
    # False positives at or above: 3 2 2 1 1 0, 0 -> per slide .75 .5 .5 .25 .25 0, 0
    # Lesions at or above:         3 3 2 2 1 1, 0 -> sensitivity .75 .75 .5 .5 .25 .25, 0
    for curve in curves_of(slides):
        assert curve.false_positives.tolist() == [0.75, 0.5, 0.5, 0.25, 0.25, 0, 0]
        assert curve.sensitivity.tolist() == [0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0]
        # Step rule at 1/4 1/2 1 2 4 8: .5 .75 .75 .75 .75 .75.
        assert curve.step_score == pytest.approx((0.5 + 5 * 0.75) / 6)
        # numpy.interp over rising false positives 0 0 .25 .25 .5 .5 .75 takes the last of equal points.
        assert curve.interpolated_score == pytest.approx((0.5 + 5 * 0.75) / 6)


def test_ties_by_hand() -> None:
    # A hit and a false positive at .8, two hits and a false positive at .5: equal confidences share a threshold.
    slides = [SlideHits((0.8, 0.5), (0.8,)), SlideHits((0.5,), (0.5, 0.3))]
    # Without the lowest (.3): 2 false positives on 2 slides and 3 of 3 lesions at .5; 1 and 1 at .8.
    curves = curves_of(slides)
    result = curves.camelyon16
    assert curves.all_thresholds.threshold[:-1].tolist() == [0.3, 0.5, 0.8]
    assert result.threshold[:-1].tolist() == [0.5, 0.8]
    assert result.false_positives.tolist() == [1, 0.5, 0]
    assert result.sensitivity.tolist() == pytest.approx([1, 1 / 3, 0])
    # At 1/4, 1/2, 1 and more: by steps 0, 1/3, 1; between the points 1/6, 1/3, 1.
    assert result.step_score == pytest.approx((0 + 1 / 3 + 4) / 6)
    assert result.interpolated_score == pytest.approx((1 / 6 + 1 / 3 + 4) / 6)
