from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from wsi_pipeline.pictures import bar_length, color_heat, heat_palette, length_text, save_picture


@pytest.mark.parametrize(
    ("most", "length", "text"),
    [(999.9, 500, "500 µm"), (1000, 1000, "1 mm"), (2499, 2000, "2 mm"), (0.7, 0.5, "0.5 µm"), (51, 50, "50 µm")],
)
def test_scale_bars_are_round(most: float, length: float, text: str) -> None:
    assert bar_length(most) == pytest.approx(length)
    assert length_text(bar_length(most)) == text


@pytest.mark.parametrize("mpp", [0.25, 8.0, 60.0])
def test_the_bar_in_a_picture_is_as_long_as_it_says(tmp_path: Path, mpp: float) -> None:
    picture = np.full((300, 900, 3), 128, np.uint8)
    save_picture(tmp_path / "p.png", picture, mpp)
    found = np.asarray(Pillow.open(tmp_path / "p.png"))
    assert (picture == 128).all()  # Only the copy is drawn on.
    bar = (found[300 - 15] == 0).all(axis=1)
    assert bar.sum() == pytest.approx(bar_length(900 * mpp / 5) / mpp, abs=1)
    assert np.array_equal(found[:200], picture[:200])


def test_low_probabilities_hide_little() -> None:
    color, alpha = color_heat(np.array([[0.0, 0.5, 1.0, np.nan]], np.float32))
    assert alpha[0, 3] == 0
    assert 0 < alpha[0, 0] < alpha[0, 1] < alpha[0, 2] <= 0.6 + 1e-6
    assert color[0, 0].tolist() == heat_palette()[0].tolist()
    assert color[0, 2].tolist() == heat_palette()[255].tolist()
