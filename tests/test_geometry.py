from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.config.base import is_plausible_mpp
from wsi_pipeline.geometry import Box, Grid, Size

sizes = st.builds(Size, st.integers(1, 5000), st.integers(1, 5000))


def test_clipping_a_box_outside_leaves_nothing() -> None:
    assert Box(-5, 2, 8, 3).clipped(Size(10, 4)) == Box(0, 2, 3, 2)
    gone = Box(20, 0, 5, 5).clipped(Size(10, 10))
    assert gone.width == 0


@given(
    st.builds(Box, st.integers(-9, 9), st.integers(-9, 9), st.integers(0, 15), st.integers(0, 15)),
    st.builds(Size, st.integers(1, 8), st.integers(1, 8)),
)
def test_a_clipped_box_has_the_pixels_inside_the_image(box: Box, size: Size) -> None:
    def pixels(one: Box) -> set[tuple[int, int]]:
        return {(x, y) for x in range(one.x, one.right) for y in range(one.y, one.bottom)}

    assert pixels(box.clipped(size)) == pixels(box) & pixels(Box(0, 0, size.width, size.height))


@pytest.mark.parametrize(
    ("length", "patch", "stride", "count"),
    [
        (100, 100, 100, 1),
        (101, 100, 100, 2),
        (200, 100, 100, 2),
        (201, 100, 100, 3),
        (200, 99.7, 100, 2),
        (50, 100, 9, 1),
    ],
)
def test_the_last_patch_covers_at_least_one_new_pixel(length: int, patch: float, stride: float, count: int) -> None:
    grid = Grid.over(Size(length, 50), patch, stride)
    assert (grid.columns, grid.rows) == (count, 1)


@given(sizes, st.floats(10, 600), st.floats(0.1, 2))
def test_a_grid_covers_the_slide_without_superfluous_patches(size: Size, patch: float, share: float) -> None:
    stride = min(patch * share, patch)
    grid = Grid.over(size, patch, stride)
    for positions, length in ((grid.x(), size.width), (grid.y(), size.height)):
        assert positions[0] == 0
        assert positions[-1] + patch >= length - 1
        if len(positions) > 1:
            assert positions[-2] + patch < length + 1


@pytest.mark.parametrize(
    ("mpp", "plausible"), [(0.25, True), (50, True), (1000, False), (0, False), (float("nan"), False)]
)
def test_plausible_scales(mpp: float, plausible: bool) -> None:
    assert is_plausible_mpp(mpp) is plausible
