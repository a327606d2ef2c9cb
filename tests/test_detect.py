from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from scipy.special import expit
from skimage import measure

from helpers.annotations import square, write_asap
from helpers.evaluated import detect_inputs, log_odds, maps
from helpers.receipts import write_heatmap_receipt, write_truth_receipt
from wsi_pipeline.config import DetectRun, IntervalOptions, TruthRun
from wsi_pipeline.errors import StoreError
from wsi_pipeline.evaluation.cohort_metrics import lesion_figures
from wsi_pipeline.evaluation.detections import not_scored_reason
from wsi_pipeline.geometry import Grid
from wsi_pipeline.metrics.lesions import (
    Detection,
    SlideHits,
    component_maxima,
    find_lesions,
    match_detections,
    non_maximum_suppression,
)
from wsi_pipeline.pyramid.heatmap_store import write_heatmap
from wsi_pipeline.pyramid.ome_zarr import Image
from wsi_pipeline.receipts.base import read_receipt
from wsi_pipeline.receipts.slides import TruthReceipt
from wsi_pipeline.stages import detect, truth

NAN = np.nan
# Scores below, at and above the minimum of 0.5, exact in float32, with ties.
LEVELS = (0.25, 0.5, 0.75, 0.875, NAN)


def disk(shape: tuple[int, int], y: float, x: float, radius: float) -> np.ndarray:
    yy, xx = np.ogrid[: shape[0], : shape[1]]
    return (yy - y) ** 2 + (xx - x) ** 2 <= radius**2


def lesions_of(mask: np.ndarray, mpp: float = 10.0):
    return find_lesions(mask, mpp, merge_um=75, itc_um=275)


def test_suppression_takes_the_maxima_and_clears_a_circle_around_each() -> None:
    heat = np.full((9, 9), 0.1, np.float32)
    heat[2, 2], heat[2, 4], heat[2, 5], heat[8, 8] = 0.9, 0.8, 0.7, 0.6
    heat[0, 0] = NAN
    # 0.8 lies 2 pixels from 0.9 and is suppressed; 0.7 lies 3 pixels away and is kept.
    found = non_maximum_suppression(heat, radius=2, min_score=0.5)
    assert [(round(s, 3), x, y) for s, x, y in found] == [(0.9, 2, 2), (0.7, 5, 2), (0.6, 8, 8)]
    assert non_maximum_suppression(heat, 2, 0.95) == []
    assert non_maximum_suppression(np.full((3, 3), NAN, np.float32), 2, 0.5) == []


def test_each_connected_area_is_one_detection_at_its_maximum() -> None:
    heat = np.full((9, 9), 0.1, np.float32)
    heat[1, 1:4], heat[2, 4], heat[1, 2] = 0.6, 0.7, 0.9  # connected diagonally
    heat[5, 5] = heat[5, 6] = 0.9  # a tie: the first in reading order
    heat[8, 0] = 0.5
    heat[3, 8] = NAN
    found = component_maxima(heat, min_score=0.5)
    assert [(round(s, 3), x, y) for s, x, y in found] == [(0.9, 2, 1), (0.9, 5, 5), (0.5, 0, 8)]
    assert component_maxima(heat, 0.95) == []
    assert component_maxima(np.full((3, 3), NAN, np.float32), 0.5) == []


scored_maps = arrays(np.float32, st.tuples(st.integers(1, 7), st.integers(1, 9)), elements=st.sampled_from(LEVELS))


@given(scored_maps)
@settings(deadline=None)
def test_component_maxima_match_scikit_image_with_8_connectivity(heat: np.ndarray) -> None:
    known = np.nan_to_num(heat, nan=-1)
    labels = measure.label(known >= 0.5, connectivity=2)
    wanted = []
    for area in range(1, labels.max() + 1):
        inside = np.argwhere(labels == area)
        row, column = max(inside.tolist(), key=lambda at: known[tuple(at)])
        wanted.append((float(known[row, column]), column, row))
    wanted.sort(key=lambda one: (-one[0], one[2], one[1]))
    assert component_maxima(heat, 0.5) == wanted


@given(scored_maps, st.sampled_from((0.5, 1.0, 1.5, 2.0, math.sqrt(5))))
@settings(deadline=None)
def test_suppression_matches_a_plain_loop_over_all_positions(heat: np.ndarray, radius: float) -> None:
    left = {(y, x): float(heat[y, x]) for y, x in np.argwhere(heat >= 0.5).tolist()}
    wanted = []
    while left:
        y, x = max(sorted(left), key=lambda at: left[at])
        wanted.append((left[y, x], x, y))
        left = {at: score for at, score in left.items() if math.dist(at, (y, x)) > radius}
    assert non_maximum_suppression(heat, radius, 0.5) == wanted


def test_foci_closer_than_75_um_are_one_lesion() -> None:
    # Two squares of 400 um. The distance transform counts from pixel centres: with a gap of 6 pixels of
    # 10 um the middle pixels are 30 um from the nearest tumour pixel, less than 37.5, and all join; with a
    # gap of 8 pixels the middle ones are 40 um away and stay outside.
    for gap, number in ((6, 1), (8, 2)):
        mask = np.zeros((60, 120), bool)
        mask[10:50, 5:45] = True
        mask[10:50, 45 + gap : 85 + gap] = True
        assert len(lesions_of(mask).counted) == number


def test_holes_belong_to_the_lesion() -> None:
    mask = disk((100, 100), 50, 50, 40) & ~disk((100, 100), 50, 50, 20)
    assert lesions_of(mask).labels_at(np.array([50]), np.array([50])) == [1]


def test_isolated_tumour_cells_are_below_275_um() -> None:
    # The major axis of a disk of radius r pixels is about 2r. Dilation by less than 37.5 um adds 3 pixels of 10 um
    # on each side: r = 10 gives about 26 pixels = 260 um, r = 11.5 about 29 pixels = 290 um.
    assert lesions_of(disk((60, 60), 30, 30, 10)).isolated == (1,)
    assert lesions_of(disk((60, 60), 30, 30, 11.5)).isolated == ()


def test_lesions_are_hit_once_and_isolated_cells_are_not_counted() -> None:
    mask = disk((100, 200), 50, 40, 20) | disk((100, 200), 50, 150, 6)
    lesions = lesions_of(mask)
    assert len(lesions.counted) == 1
    # A mask pixel is 4 level-0 pixels wide.
    points = [
        Detection(0.7, 40 * 4, 50 * 4),
        Detection(0.9, 45 * 4, 52 * 4),  # the same lesion again
        Detection(0.8, 150 * 4, 50 * 4),  # isolated tumour cells
        Detection(0.6, 100 * 4, 90 * 4),  # outside all lesions
        Detection(0.5, 9999, 9999),  # off the slide
    ]
    hits = match_detections(points, lesions, 4.0)
    assert hits == SlideHits(lesions=(0.9,), false_positives=(0.6, 0.5), isolated=1)


def test_ignored_parts_of_lesions() -> None:
    """Lesions of 40 x 40 px of 10 um: ignored by half, by more than half, and a detection in each part."""
    tumor = np.zeros((60, 160), bool)
    ignored = np.zeros_like(tumor)
    tumor[10:50, 10:50] = tumor[10:50, 100:140] = True
    ignored[:, 30:60] = ignored[:, 100:121] = True
    lesions = find_lesions(tumor, 10, merge_um=75, itc_um=275, ignored=ignored)
    assert (lesions.counted, lesions.isolated, lesions.ignored) == ((1,), (), ((119.5, 29.5),))
    points = [
        Detection(0.9, 40, 30),  # the ignored half of the first lesion
        Detection(0.6, 20, 30),  # its other half
        Detection(0.7, 57, 5),  # ignored, outside
        Detection(0.8, 130, 30),  # the part of the second lesion that is not ignored
        Detection(0.5, 80, 5),
    ]
    assert match_detections(points, lesions, 1) == SlideHits((0.6,), (0.5,))
    assert find_lesions(tumor, 10, merge_um=75, itc_um=275).counted == (1, 2)
    # All of the tumour, or all of the slide, may be ignored.
    for hidden in (tumor, np.ones_like(tumor)):
        of_hidden = find_lesions(tumor, 10, merge_um=75, itc_um=275, ignored=hidden)
        assert (of_hidden.counted, len(of_hidden.ignored)) == ((), 2)


def test_a_slide_with_an_ignored_margin_is_scored(tissue_slide: Path, tmp_path: Path) -> None:
    """The lesions are those without the margin: tumour of 400 um, and one of 60 um, which is isolated cells."""
    pyramid = tissue_slide / "pyramid.ome.zarr"
    annotation = write_asap(tmp_path / "a.xml", [("_0", square(300, 300, 800)), ("_0", square(1300, 900, 120))])
    heat = np.full((6, 8), -1, np.float32)
    # Centres at (500, 500), in tumour; (300, 700), on its border; (1300, 300), outside.
    heat[2, 2], heat[3, 1], heat[1, 6] = 0.75, 0.875, 0.625
    write_heatmap(tmp_path / "h.ome.zarr", Image(heat, 100, 50), np.ones_like(heat), 0.5)
    write_heatmap_receipt(tmp_path / "h.json", "s1", Grid(columns=8, rows=6, stride_px=200, patch_px=200))
    found = {}
    for margin, exhaustive in ((0, True), (25, True), (25, False)):
        folder = tmp_path / f"{margin} {exhaustive}"
        drawn = truth.Outputs(
            store=folder / "t.ome.zarr",
            receipt=folder / "t.json",
            picture=folder / "t.png",
            geojson=folder / "t.geojson",
        )
        options = TruthRun(mpp=4, ignore_margin_um=margin)
        truth.run("s1", truth.Inputs(pyramid, annotation), drawn, options, label="tumor", exhaustive=exhaustive)
        inputs = detect.Inputs(
            truth=drawn.store,
            truth_receipt=drawn.receipt,
            heatmap=tmp_path / "h.ome.zarr",
            heatmap_receipt=tmp_path / "h.json",
        )
        outputs = detect.Outputs(folder / "d.csv", folder / "d.geojson", folder / "d.json")
        detect.run("s1", inputs, outputs, DetectRun(radius_um=100))
        facts = json.loads(outputs.receipt.read_text())
        assert facts["truth_sha256"] == read_receipt(drawn.receipt, TruthReceipt).truth_sha256
        found[margin, exhaustive] = [facts[name] for name in ("lesions", "false_positives", "isolated", "reason")]
    assert found[0, True] == [[0.875], [0.625], 1, None]
    assert found[25, True] == [[0.75], [0.625], 1, None]
    assert found[25, False] == [None, None, None, "not all tumour is annotated"]


@pytest.mark.parametrize(
    ("label", "annotated", "exhaustive", "reason"),
    [
        ("tumor", True, True, None),
        (None, True, True, None),
        ("normal", False, True, None),
        ("tumor", False, True, "the slide has no annotation"),
        (None, False, True, "the slide has no annotation"),
        ("tumor", True, False, "not all tumour is annotated"),
        ("normal", False, False, "not all tumour is annotated"),
    ],
)
def test_slides_with_known_lesions(
    tmp_path: Path, label: str | None, annotated: bool, exhaustive: bool, reason: str | None
) -> None:
    write_truth_receipt(tmp_path / "t.json", "s1", 1.0, exhaustive=exhaustive)
    receipt = read_receipt(tmp_path / "t.json", TruthReceipt)
    changed = {"label": label, "annotation_sha256": receipt.annotation_sha256 if annotated else None}
    assert not_scored_reason(receipt.model_copy(update=changed)) == reason


def test_detections_are_in_level_0_pixels(scored: Path) -> None:
    heat, _ = maps("t1")
    first = (scored / "detections" / "t1.csv").read_text().splitlines()[0].split(",")
    row, column = divmod(int(np.nanargmax(heat)), heat.shape[1])
    assert float(first[0]) == expit(np.float64(log_odds(np.nanmax(heat))))
    assert [float(v) for v in first[1:]] == [(column + 0.5) * 200, (row + 0.5) * 200]
    points = json.loads((scored / "detections" / "t1.geojson").read_text())["features"]
    assert points[0]["geometry"]["coordinates"] == [(column + 0.5) * 200, (row + 0.5) * 200]


def test_geojson_counts_from_the_origin_of_qupath(scored: Path, tmp_path: Path) -> None:
    """Detections and confusion on a slide whose scanned part starts at (1000, 800); the CSV stays on the canvas."""
    found = detect_inputs(scored, "t1")
    facts = json.loads(found.truth_receipt.read_text())
    receipt = tmp_path / "truth.json"
    receipt.write_text(json.dumps(facts | {"qupath_origin": [1000, 800]}))
    moved = replace(found, truth_receipt=receipt)
    outputs = detect.Outputs(tmp_path / "t1.csv", tmp_path / "t1.geojson", tmp_path / "t1.json")
    detect.run("t1", moved, outputs, DetectRun(radius_um=100))
    assert (tmp_path / "t1.csv").read_bytes() == (scored / "detections" / "t1.csv").read_bytes()

    def points(path: Path) -> np.ndarray:
        return np.array([one["geometry"]["coordinates"] for one in json.loads(path.read_text())["features"]])

    shifted = points(tmp_path / "t1.geojson")
    assert len(shifted)
    np.testing.assert_array_equal(shifted + np.array((1000, 800)), points(scored / "detections" / "t1.geojson"))


def test_detections_may_be_connected_areas(scored: Path, tmp_path: Path) -> None:
    _, areas = ndimage.label(maps("t1")[0] >= 0.6, structure=np.ones((3, 3)))
    outputs = detect.Outputs(tmp_path / "t1.csv", tmp_path / "t1.geojson", tmp_path / "t1.json")
    detect.run("t1", detect_inputs(scored, "t1"), outputs, DetectRun(method="components", min_score=0.6))
    rows = (tmp_path / "t1.csv").read_text().splitlines()
    assert 0 < len(rows) == areas != len((scored / "detections" / "t1.csv").read_text().splitlines())


def test_the_heatmap_of_another_slide_is_refused(scored: Path, tmp_path: Path) -> None:
    outputs = detect.Outputs(tmp_path / "d.csv", tmp_path / "d.geojson", tmp_path / "d.json")
    with pytest.raises(StoreError, match="the heatmap of t1, not of t2"):
        detect.run("t2", detect_inputs(scored, "t1"), outputs, DetectRun())
    assert not list(tmp_path.iterdir())


@given(
    st.lists(
        st.tuples(st.lists(st.none() | st.integers(-3, 3), max_size=4), st.lists(st.integers(-3, 3), max_size=4)),
        min_size=1,
        max_size=5,
    )
)
@settings(max_examples=100, deadline=None)
def test_froc_of_log_odds_is_that_of_their_probabilities(slides: list) -> None:
    interval = IntervalOptions()
    odds, probabilities = (
        [
            SlideHits(tuple(c if c is None else scale(c) for c in lesions), tuple(map(scale, misses)), number % 2)
            for number, (lesions, misses) in enumerate(slides)
        ]
        for scale in (float, lambda c: float(expit(c)))
    )
    assert lesion_figures(odds, interval) == lesion_figures(probabilities, interval, missed=0.0)
