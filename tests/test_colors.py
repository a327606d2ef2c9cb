from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from wsi_pipeline.evaluation.summary import SYNTHETIC
from wsi_pipeline.plots.colors import (
    color_confusion,
    color_heatmap,
    format_length,
    heatmap_palette,
    resample_nearest,
    scale_bar_um,
)
from wsi_pipeline.plots.figures import resample_to_thumbnail, save_figure, slide_figure
from wsi_pipeline.pyramid.ome_zarr import Image


@pytest.mark.parametrize(
    ("most", "length", "text"),
    [(999.9, 500, "500 µm"), (1000, 1000, "1 mm"), (2499, 2000, "2 mm"), (0.7, 0.5, "0.5 µm"), (51, 50, "50 µm")],
)
def test_scale_bars_have_round_lengths(most: float, length: float, text: str) -> None:
    assert scale_bar_um(most) == pytest.approx(length)
    assert format_length(scale_bar_um(most)) == text


@pytest.mark.parametrize("mpp", [0.25, 8.0, 60.0])
def test_the_scale_bar_has_the_length_of_its_label(tmp_path: Path, mpp: float) -> None:
    figure = slide_figure("a slide", np.full((300, 900, 3), 128, np.uint8), mpp, synthetic=True)
    (axes,) = figure.axes
    (bar,) = axes.lines
    length = float(np.ptp(bar.get_xdata()))
    (label,) = [text.get_text() for text in axes.texts]
    assert label == format_length(scale_bar_um(900 * mpp / 5))
    # Data coordinates are pixels of the picture.
    assert length * mpp == pytest.approx(scale_bar_um(900 * mpp / 5))
    save_figure(figure, tmp_path / "p.png")
    with Pillow.open(tmp_path / "p.png") as saved:
        assert saved.width > 800
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("synthetic", [True, False])
def test_synthetic_slides_are_labelled(synthetic: bool) -> None:
    figure = slide_figure("a slide", np.full((300, 900, 3), 128, np.uint8), 1.0, synthetic)
    assert any(SYNTHETIC in text.get_text() for text in figure.texts) == synthetic


@pytest.mark.parametrize(("mask_mpp", "mpp"), [(8.0, 3.0), (8.0, 8.0), (3.0, 10.4)])
def test_masks_are_resampled_to_the_nearest_pixel(mask_mpp: float, mpp: float) -> None:
    mask = np.arange(12 * 17).reshape(12, 17)
    picture = np.zeros((int(12 * mask_mpp / mpp), int(17 * mask_mpp / mpp), 3), np.uint8)
    rows, columns = (
        np.abs(((np.arange(there) + 0.5) * mpp)[:, None] - (np.arange(here) + 0.5) * mask_mpp).argmin(axis=1)
        for there, here in zip(picture.shape[:2], mask.shape, strict=True)
    )
    np.testing.assert_array_equal(resample_nearest(mask, mask_mpp, picture, mpp), mask[np.ix_(rows, columns)])


@pytest.mark.parametrize("first", [80, 50, 30])
def test_heatmaps_are_resampled_to_the_nearest_patch(first: int) -> None:
    """Positions 100 um apart on a picture of 10 um; patches larger than, as large as and smaller than their stride."""
    heat = np.arange(30, dtype=np.float32).reshape(5, 6)
    picture = np.zeros((50, 60, 3), np.uint8)
    rows, columns = (
        np.abs(((np.arange(there) + 0.5) * 10)[:, None] - (first + 100 * np.arange(here))).argmin(axis=1)
        for there, here in zip(picture.shape[:2], heat.shape, strict=True)
    )
    np.testing.assert_array_equal(
        resample_to_thumbnail(Image(heat, 100, first), picture, 10), heat[np.ix_(rows, columns)]
    )


def test_confusion_is_painted_in_cyan_yellow_and_red() -> None:
    color, alpha = color_confusion(np.array([[0, 1, 2, 3, 255]], np.uint8))
    assert color[0, 1:4].tolist() == [[0, 255, 255], [255, 255, 0], [255, 0, 0]]
    assert (alpha[0] > 0).tolist() == [False, True, True, True, False]


def test_opacity_of_the_heatmap_grows_with_the_probability() -> None:
    color, alpha = color_heatmap(np.array([[0.0, 0.5, 1.0, np.nan]], np.float32))
    assert alpha[0, 3] == 0
    assert 0 < alpha[0, 0] < alpha[0, 1] < alpha[0, 2] <= 0.6 + 1e-6
    assert color[0, 0].tolist() == heatmap_palette()[0].tolist()
    assert color[0, 2].tolist() == heatmap_palette()[255].tolist()
