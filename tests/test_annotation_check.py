"""The command check-annotation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from helpers.annotations import feature, polygon, square, write_asap, write_geojson
from helpers.paths import DATA, needs_data
from helpers.slides import tissue_picture, write_tiff
from wsi_pipeline.cli.app import app
from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.plots.colors import ENCLOSED_COLOR, TUMOR_COLOR

RED, GREEN = np.array(TUMOR_COLOR), np.array(ENCLOSED_COLOR)


def test_an_annotation_is_reported_and_drawn(tmp_path: Path) -> None:
    slide = write_tiff(tmp_path / "s.tif", tissue_picture())
    path = write_geojson(
        tmp_path / "a.geojson",
        feature(polygon(square(400, 400, 400)), "Tumor"),
        feature(polygon(square(500, 500, 200)), "Exclusion"),
        feature({"type": "Point", "coordinates": [5, 5]}, "Tumor"),
    )
    output = tmp_path / "a.png"
    result = CliRunner().invoke(app, ["check-annotation", str(path), "--slide", str(slide), "--output", str(output)])
    picture = np.asarray(Image.open(output))
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "QuPath GeoJSON, coordinates from the corner of the bounds",
        "taken as cut_out: 1 of 'Exclusion', 0.01 mm²",
        "taken as tumor: 1 of 'Tumor', 0.04 mm²",
        "left out: 1 of 'Tumor' (Point, no area)",
        "100 % of the annotated tumour lies on tissue",
    ]
    # Half the size: lines of tumour at 200 and 400, of the cut-out at 250 and 350.
    assert picture.shape == (600, 800, 3)
    for (row, column), color in {(200, 300): RED, (300, 399): RED, (250, 300): GREEN, (300, 349): GREEN}.items():
        window = picture[row - 2 : row + 3, column - 2 : column + 3].reshape(-1, 3)
        assert (window == color).all(axis=1).any(), (row, column)
    assert not (picture[:190] == RED).all(axis=2).any()


def test_a_misplaced_annotation_is_drawn_before_the_error(tmp_path: Path) -> None:
    slide = write_tiff(tmp_path / "s.tif", tissue_picture())
    path, output = write_asap(tmp_path / "a.xml", [("Tumor", square(20, 20, 150))]), tmp_path / "a.png"
    result = CliRunner().invoke(app, ["check-annotation", str(path), "--slide", str(slide), "--output", str(output)])
    assert isinstance(result.exception, AnnotationError)
    assert "taken as tumor: 1 of 'Tumor'" in result.stdout
    assert (np.asarray(Image.open(output))[5:90, 5:90] == RED).all(axis=2).any()


@needs_data
@pytest.mark.parametrize("slide", ["tumor_072", "tumor_102"])
def test_real_annotations_lie_on_tissue(slide: str) -> None:
    folder = DATA / "camelyon16-level7"
    arguments = ["check-annotation", f"{folder}/{slide}_level7.xml", "--slide", f"{folder}/{slide}_level7.tif"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0
    assert "100 % of the annotated tumour lies on tissue" in result.stdout
    # The coordinates of the whole slide, 128 times as large.
    arguments[1] = f"{folder}/{slide}_level0.xml"
    assert "100 % would if scaled by 0.007812" in str(CliRunner().invoke(app, arguments).exception)
