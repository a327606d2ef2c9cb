"""Masks as bands and runs, against whole images in SciPy and scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import measure

from wsi_pipeline import morphology
from wsi_pipeline.metrics.lesions import axes_and_centroids, find_lesions
from wsi_pipeline.morphology import BAND_PX, Runs, within

# Around corners of bands and blocks of 4 px: a U, diagonals that touch there, a ring, and rings in one another.
SHAPES = (
    "#.......#\n#.......#\n#.......#\n#.......#\n#.......#\n#########",
    "####....\n####....\n####....\n####....\n....####\n....####",
    "....####\n....####\n....####\n....####\n####....\n####....",
    "#######\n#.....#\n#.....#\n#.....#\n#.....#\n#######",
    "#########\n#.......#\n#.#####.#\n#.#...#.#\n#.#.#.#.#\n#.#...#.#\n#.#####.#\n#.......#\n#########",
    "####\n#..#\n#.#.\n####",
)
drawn = st.sampled_from(SHAPES).map(lambda text: np.array([[c == "#" for c in row] for row in text.split("\n")]))


@st.composite
def noise(draw: st.DrawFn) -> np.ndarray:
    """Random pixels, single or in squares, of any density."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    edge = draw(st.integers(1, 3))
    coarse = rng.uniform(size=rng.integers(1, 13, 2)) < draw(st.sampled_from((0.1, 0.4, 0.6, 0.9)))
    return coarse.repeat(edge, 0).repeat(edge, 1)


masks = noise() | drawn


def painted(runs: Runs) -> np.ndarray:
    out = np.zeros(runs.shape, bool)
    runs.paint(out, 0, True)
    return out


def labels_of(runs: Runs, component: np.ndarray) -> np.ndarray:
    out = np.zeros(runs.shape, int)
    for row, start, stop, label in zip(runs.rows, runs.starts, runs.stops, component, strict=True):
        out[row, start:stop] = label + 1
    return out


@pytest.fixture(params=[1, 2, 4, BAND_PX], autouse=True)
def band_px(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(morphology, "BAND_PX", request.param)
    return int(request.param)


@given(masks)
@settings(max_examples=60, deadline=None)
def test_components_and_holes_are_those_of_the_whole_image(mask: np.ndarray) -> None:
    runs = Runs.of(mask)
    np.testing.assert_array_equal(painted(runs), mask)
    for diagonal in (True, False):
        wanted, _ = ndimage.label(mask, np.ones((3, 3)) if diagonal else None)
        np.testing.assert_array_equal(labels_of(runs, runs.components(diagonal=diagonal)), wanted)
    filled = runs.filled()
    np.testing.assert_array_equal(painted(filled), ndimage.binary_fill_holes(mask))
    assert len(filled) == len(Runs.of(painted(filled)))
    rows, columns = np.indices(np.add(mask.shape, 4)).reshape(2, -1) - 2
    found = runs.index_at(rows, columns)
    inside = np.pad(mask, 2).ravel()
    np.testing.assert_array_equal(found >= 0, inside)
    assert (runs.rows[found[inside]] == rows[inside]).all()
    assert (runs.starts[found[inside]] <= columns[inside]).all()


@given(masks, st.sampled_from((0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 5.0)))
@settings(max_examples=60, deadline=None)
def test_pixels_within_a_distance_are_those_of_the_distance_transform(mask: np.ndarray, reach: float) -> None:
    wanted = ndimage.distance_transform_edt(~mask) < reach if mask.any() else mask
    np.testing.assert_array_equal(within(mask, reach), wanted)


@given(masks, st.integers(0, 2**32), st.sampled_from((0.0, 2.0, 3.0, 4.5)), st.floats(1, 12))
@settings(max_examples=80, deadline=None)
def test_lesions_are_those_of_the_whole_image(tumor: np.ndarray, seed: int, merge_um: float, itc_um: float) -> None:
    """The rules of Camelyon16 on label images of the whole mask."""
    rng = np.random.default_rng(seed)
    ignored = rng.uniform(size=tumor.shape) < rng.choice((0.0, 0.3, 0.6))
    near = ndimage.distance_transform_edt(~tumor) < merge_um / 2 if tumor.any() else tumor
    labels = measure.label(ndimage.binary_fill_holes(near | tumor), connectivity=2)
    regions = measure.regionprops(labels)
    isolated = {r.label for r in regions if r.axis_major_length < itc_um}
    areas = {r.label: tumor[labels == r.label].sum() for r in regions}
    hidden = {label for label, area in areas.items() if 2 * (tumor & ignored)[labels == label].sum() > area}
    kept = [r for r in regions if r.label not in isolated]
    found = find_lesions(tumor, 1, merge_um=merge_um, itc_um=itc_um, ignored=ignored)
    rows, columns = np.indices(labels.shape).reshape(2, -1)
    np.testing.assert_array_equal(found.labels_at(rows, columns), np.where(ignored, -1, labels).ravel())
    assert found.isolated == tuple(sorted(isolated))
    assert found.counted == tuple(r.label for r in kept if r.label not in hidden)
    assert found.ignored == tuple(r.centroid[::-1] for r in kept if r.label in hidden)


def test_the_moments_of_a_diffuse_tumour_exceed_64_bits() -> None:
    """A square of 900 Mpx: its axis is 4 standard deviations of its columns."""
    edge = 30_000
    every = np.arange(edge)
    runs = Runs((edge, edge), every, np.zeros_like(every), np.full_like(every, edge))
    axes, centroids = axes_and_centroids(runs, np.ones(edge, np.int64))
    assert axes == pytest.approx([4 * math.sqrt((edge**2 - 1) / 12)], rel=1e-14)
    assert centroids.tolist() == [[(edge - 1) / 2] * 2]
