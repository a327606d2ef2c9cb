from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import converted, write_tiff
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsi_pipeline.errors import StoreError
from wsi_pipeline.geometry import Box
from wsi_pipeline.pyramid import Pyramid


@given(st.integers(-300, 1700), st.integers(-300, 1300), st.integers(1, 400), st.integers(1, 400))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_box_is_a_part_of_the_padded_slide(tissue_pyramid: Pyramid, x: int, y: int, w: int, h: int) -> None:
    size = tissue_pyramid.size
    whole = tissue_pyramid.read(Box(-300, -300, size.width + 900, size.height + 900), 0)
    np.testing.assert_array_equal(
        tissue_pyramid.read(Box(x, y, w, h), 0), whole[y + 300 : y + 300 + h, x + 300 : x + 300 + w]
    )
    assert (whole[:300] == 255).all()


def test_threads_and_pickled_copies_read_the_same(tissue_pyramid: Pyramid) -> None:
    boxes = [Box(97 * k, 61 * k, 200, 150) for k in range(12)]
    copy = pickle.loads(pickle.dumps(tissue_pyramid))  # noqa: S301
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda b: copy.read(b, 0), boxes))
    for box, pixels in zip(boxes, read, strict=True):
        np.testing.assert_array_equal(pixels, tissue_pyramid.read(box, 0))


@pytest.mark.parametrize(
    ("mpp", "level", "read_px", "real"),
    [(0.5, 0, 96, 0.5), (0.49, 0, 96, 0.5), (1.0, 1, 96, 1.0), (0.75, 0, 144, 0.75), (1.9, 1, 182, 1.9)],
)
def test_patches_come_from_the_nearest_level_that_is_fine_enough(
    tissue_pyramid: Pyramid, mpp: float, level: int, read_px: int, real: float
) -> None:
    spec = tissue_pyramid.patch_spec(96, mpp)
    assert (spec.level, spec.read_px, spec.mpp) == (level, read_px, pytest.approx(real))
    assert spec.level0_px == pytest.approx(96 * real / 0.5)
    assert tissue_pyramid.read_patch(100, 50, spec).shape == (96, 96, 3)


def test_patches_finer_than_the_slide_are_refused(tissue_pyramid: Pyramid) -> None:
    with pytest.raises(StoreError, match=r"coarser than the 0\.25 asked for"):
        tissue_pyramid.patch_spec(96, 0.25)


def test_a_patch_shows_the_place_it_names(tmp_path: Path) -> None:
    rgb = np.full((1024, 1024, 3), 255, np.uint8)
    rgb[512:768, 256:512] = (200, 0, 0)
    pyramid = Pyramid(converted(tmp_path, write_tiff(tmp_path / "s.tif", rgb)) / "pyramid.ome.zarr")
    for mpp in (0.5, 0.7, 1.0, 2.0):
        spec = pyramid.patch_spec(round(128 / mpp), mpp)
        patch = pyramid.read_patch(256, 512, spec)
        assert np.abs(patch.mean(axis=(0, 1)) - (200, 0, 0)).max() < 6
        assert pyramid.read_patch(512, 512, spec).mean() > 245


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([0.3, 0.5, 0.8, 3.0, 8.0, 11.3]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scaled_reads_do_not_depend_on_boxes(tissue_pyramid: Pyramid, dx: int, dy: int, mpp: float) -> None:
    whole = tissue_pyramid.read_scaled(Box(0, 0, 95, 92), mpp)
    part = tissue_pyramid.read_scaled(Box(dx, dy, 95 - dx, 92 - dy), mpp)
    np.testing.assert_array_equal(part, whole[dy:, dx:])


def test_scaled_pixels_are_means(tissue_pyramid: Pyramid) -> None:
    at_4 = tissue_pyramid.read_scaled(Box(60, 60, 4, 4), 4.0)
    level = tissue_pyramid.level_for(4.0)
    factor = round(4.0 / tissue_pyramid.mpps[level])
    fine = tissue_pyramid.read(Box(60 * factor, 60 * factor, 4 * factor, 4 * factor), level).astype(float)
    wanted = fine.reshape(4, factor, 4, factor, 3).mean(axis=(1, 3))
    assert np.abs(at_4 - wanted).max() <= 0.5


def test_something_else_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not a Zarr store"):
        Pyramid(tmp_path / "nothing.ome.zarr")
