"""Labels of the patches of a grid, from the truth image."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial import KDTree

from wsi_pipeline import morphology
from wsi_pipeline.config import PatchesRun, PatchLevelOptions
from wsi_pipeline.config.base import LabelRule
from wsi_pipeline.geometry import Grid
from wsi_pipeline.masks import label_images
from wsi_pipeline.masks.label_images import (
    IGNORE,
    NORMAL,
    TUMOR,
    LabelOverview,
    grid_fractions,
    grid_truth,
    resample_labels,
)
from wsi_pipeline.model.patch_selection import find_candidates
from wsi_pipeline.plots.overlays import truth_overlay
from wsi_pipeline.pyramid.ome_zarr import Image, StoredRows, open_image, write_image


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        # Patches of 40 um on truth pixels of 10 um; the second patch has one tumour pixel at its rim,
        # the third a quarter of tumour that holds its centre.
        ("centre_nearest", [NORMAL, NORMAL, TUMOR, IGNORE]),
        ("centre_region", [NORMAL, NORMAL, TUMOR, IGNORE]),
        ("area_fraction", [NORMAL, NORMAL, NORMAL, IGNORE]),
    ],
)
def test_label_rules(rule: str, wanted: list[int]) -> None:
    truth = np.full((4, 16), NORMAL, np.uint8)
    truth[0, 4] = TUMOR
    truth[2:4, 10:12] = TUMOR
    truth[:, 12:] = IGNORE
    grid = Grid(columns=4, rows=1, stride_px=80, patch_px=80)
    options = PatchLevelOptions(label_rule=rule, region_um=20)
    labels = grid_truth(Image.from_corner(truth, 10), grid, 0.5, options)
    assert labels.tolist() == [wanted]


@given(
    st.sampled_from((2.0, 4.0, 8.0, 11.3)),
    st.sampled_from((0.23, 0.5, 1.0)),
    st.floats(20, 150),
    st.floats(0.2, 1.5),
    st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_the_nearest_truth_pixel_matches_a_search_over_all(
    mpp: float, slide_mpp: float, patch_px: float, ratio: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, (19, 23)).astype(np.uint8)
    grid = Grid(columns=6, rows=5, stride_px=patch_px * ratio, patch_px=patch_px)
    labels = grid_truth(Image.from_corner(truth, mpp), grid, slide_mpp, PatchLevelOptions(label_rule="centre_nearest"))
    pixels = (np.indices(truth.shape).reshape(2, -1).T + 0.5) * mpp
    rows, columns = np.indices(labels.shape).reshape(2, -1)
    # Corners of patches are whole level-0 pixels.
    corners = np.rint(np.stack((rows, columns), axis=1) * grid.stride_px)
    away, found = KDTree(pixels).query((corners + patch_px / 2) * slide_mpp, k=2)
    # Midway between two pixels either is valid.
    clear = away[:, 1] - away[:, 0] > 1e-6
    np.testing.assert_array_equal(labels.ravel()[clear], truth.ravel()[found[clear, 0]])


@given(st.sampled_from(get_args(LabelRule)), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_ignored_tumour_is_treated_like_other_ignored_parts(rule: str, seed: int) -> None:
    """As if it had the value of the other ignored pixels: in heatmaps, among patches and in pictures."""
    coarse = np.random.default_rng(seed).integers(0, 4, (5, 6)).astype(np.uint8)
    truth = Image.from_corner(coarse.repeat(5, 0).repeat(4, 1), 8.0)
    plain = Image.from_corner(np.minimum(truth.data, IGNORE), 8.0)
    tissue = Image.from_corner(np.ones_like(truth.data), 8.0)
    grid = Grid(columns=9, rows=9, stride_px=40, patch_px=64)
    options = PatchesRun(label_rule=rule, region_um=10, min_tumor=0.5)
    np.testing.assert_array_equal(grid_truth(truth, grid, 0.5, options), grid_truth(plain, grid, 0.5, options))
    found, wanted = (find_candidates(tissue, image, grid, 0.5, options) for image in (truth, plain))
    for field in fields(found):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(wanted, field.name))
    np.testing.assert_array_equal(truth_overlay(truth).data, truth_overlay(plain).data)


def test_area_fraction_includes_its_minimum() -> None:
    """Patches of 4 x 4 truth pixels of which 11, 12 and 13 are tumour; 12 are three quarters."""
    truth = np.zeros((4, 12), np.uint8)
    for patch, count in enumerate((11, 12, 13)):
        truth[np.arange(count) // 4, 4 * patch + np.arange(count) % 4] = TUMOR
    options = PatchLevelOptions(label_rule="area_fraction", min_tumor=0.75)
    labels = grid_truth(Image.from_corner(truth, 8.0), Grid(3, 1, 64, 64), 0.5, options)
    assert labels.tolist() == [[NORMAL, TUMOR, TUMOR]]


def whole_fractions(mask: np.ndarray, mpp: float, grid: Grid, slide_mpp: float) -> np.ndarray:
    """Covered fractions of the patches of a grid, from a summed-area table of the whole mask."""
    table = np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def at(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        y, x = (np.clip(um / mpp, 0, length) for um, length in ((y, mask.shape[0]), (x, mask.shape[1])))
        top, left = (np.minimum(edge.astype(int), length - 1) for edge, length in zip((y, x), mask.shape, strict=True))
        fy, fx = (y - top)[:, None], (x - left)[None, :]
        upper, lower = (
            table[row[:, None], left] * (1 - fx) + table[row[:, None], left + 1] * fx for row in (top, top + 1)
        )
        return upper * (1 - fy) + lower * fy

    y, x, edge = grid.y() * slide_mpp, grid.x() * slide_mpp, grid.patch_px * slide_mpp
    area = (edge / mpp) ** 2
    total = at(y + edge, x + edge) - at(y, x + edge) - at(y + edge, x) + at(y, x)
    return np.where(total < 1e-6, 0.0, np.where(total > area - 1e-6, area, total)) / area


@pytest.mark.parametrize("band_px", [1, 3, 8, 512])
@given(st.sampled_from((2.0, 8.0, 11.3)), st.floats(20, 150), st.floats(0.2, 1.5), st.integers(0, 2**32))
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)
def test_fractions_have_the_bytes_of_a_table_of_the_whole_mask(
    monkeypatch: pytest.MonkeyPatch, band_px: int, mpp: float, patch_px: float, ratio: float, seed: int
) -> None:
    monkeypatch.setattr(morphology, "BAND_PX", band_px)
    mask = np.random.default_rng(seed).uniform(size=(23, 29)) < 0.6
    grid = Grid(columns=7, rows=6, stride_px=patch_px * ratio, patch_px=patch_px)
    found = grid_fractions(mask, mpp, grid, 0.5)
    assert found.tobytes() == whole_fractions(mask, mpp, grid, 0.5).tobytes()


@pytest.mark.parametrize("rule", get_args(LabelRule))
def test_images_in_stores_are_read_in_bands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    """Truth and candidates are those of the whole images, of which no more than a band is read at once."""
    rng = np.random.default_rng(3)
    images = [rng.integers(0, values, (60, 80)).astype(np.uint8).repeat(25, 0).repeat(16, 1) for values in (2, 4)]
    whole = [Image.from_corner(data, 8.0) for data in images]
    for number, image in enumerate(whole):
        write_image(tmp_path / f"{number}", image, name="n", slide_mpp=0.5)
    stored = [open_image(tmp_path / f"{number}", 0.5) for number in range(2)]
    read = list[int]()
    real = StoredRows.__getitem__

    def counted(self: StoredRows, rows: slice) -> np.ndarray:
        found = real(self, rows)
        read.append(len(found))
        return found

    monkeypatch.setattr(StoredRows, "__getitem__", counted)
    grid = Grid(columns=60, rows=70, stride_px=350, patch_px=512)
    options = PatchesRun(label_rule=rule, region_um=30, min_tumor=0.3, min_tissue=0.3)
    np.testing.assert_array_equal(*(grid_truth(truth, grid, 0.5, options) for _, truth in (whole, stored)))
    found, wanted = (find_candidates(*pair, grid, 0.5, options) for pair in (stored, whole))
    assert len(wanted.x)
    for field in fields(found):
        assert getattr(found, field.name).tobytes() == getattr(wanted, field.name).tobytes()
    np.testing.assert_array_equal(*(resample_labels(pair[1], 17.0).data for pair in (stored, whole)))
    assert max(read) == 512


@pytest.mark.parametrize("most", [1 << 25, 300, 17])
def test_the_overview_of_an_image_has_the_highest_label_of_each_pixel(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(label_images, "_OVERVIEW_PIXELS", most)
    monkeypatch.setattr(morphology, "BAND_PX", 5)
    truth = Image.from_corner(
        np.random.default_rng(0).choice(4, (37, 41), p=(0.9, 0.02, 0.05, 0.03)).astype(np.uint8), 2
    )
    found = LabelOverview.of(truth)
    factor = round(found.mpp / truth.mpp)
    assert found.data.size <= max(most * 1.3, 17 * 1.5)
    for (row, column), value in np.ndenumerate(found.data):
        part = truth.data[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
        assert value == (TUMOR if (part == TUMOR).any() else IGNORE if (part >= IGNORE).any() else NORMAL)
