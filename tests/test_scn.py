"""Leica SCN slides: sections on a canvas, most of which was not scanned."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import openslide
import pytest

from helpers.annotations import feature, polygon, square, write_geojson
from helpers.scn import write_scn
from helpers.slides import converted, tissue_picture
from wsi_pipeline.config import ConvertRun, TissueRun, TruthRun
from wsi_pipeline.geometry import Box
from wsi_pipeline.masks.label_images import TUMOR
from wsi_pipeline.pyramid.ome_zarr import read_image
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.stages import convert, tissue, truth

CANVAS = (3600, 4400)
# The upper left section begins at the corner of the bounds.
CORNER, SECOND = (400, 600), (2200, 3000)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scn") / "s.scn"
    return write_scn(path, [(*CORNER, tissue_picture()), (*SECOND, tissue_picture(1200, 1000))], CANVAS)


def test_the_store_has_openslides_pixels_over_white(slide: Path, tmp_path: Path) -> None:
    outputs = convert.Outputs(tmp_path / "p.ome.zarr", tmp_path / "p.json")
    convert.run("s", convert.Inputs(slide), outputs, ConvertRun(codec="zstd", chunk_px=256, shard_px=1024))
    pyramid = Pyramid(outputs.store)
    with openslide.OpenSlide(slide) as opened:
        assert opened.properties["openslide.vendor"] == "leica"
        rgba = np.asarray(opened.read_region((0, 0), 0, CANVAS))
    wanted = np.where(rgba[..., 3:] > 0, rgba[..., :3], 255)
    np.testing.assert_array_equal(pyramid.read(Box(0, 0, *CANVAS), 0), wanted)
    assert pyramid.bounds == Box(*CORNER, SECOND[0] + 1200 - CORNER[0], SECOND[1] + 1000 - CORNER[1])


@pytest.mark.parametrize("glass", [244, 255], ids=["grey glass", "white glass"])
@pytest.mark.parametrize("method", ["otsu_saturation", "glass_saturation", "otsu_gray"])
def test_the_canvas_between_sections_is_neither_tissue_nor_glass(tmp_path: Path, method: str, glass: int) -> None:
    picture = tissue_picture()
    picture[(picture == 244).all(axis=2)] = glass
    path = write_scn(tmp_path / "s.scn", [(*CORNER, picture), (SECOND[0] - 240, SECOND[1], picture)], CANVAS)
    outputs = tissue.Outputs(tmp_path / "t.ome.zarr", tmp_path / "t.json", tmp_path / "t.png")
    inputs = tissue.Inputs(converted(tmp_path, path) / "pyramid.ome.zarr")
    tissue.run("s1", inputs, outputs, TissueRun(mpp=2, method=method))
    mask = read_image(outputs.store, 0.5).data.astype(bool)
    wanted = np.zeros_like(mask)
    for x, y in (CORNER, (SECOND[0] - 240, SECOND[1])):
        wanted[(y + 200) // 4 : (y + 1000) // 4, (x + 200) // 4 : (x + 1400) // 4] = True
    assert (mask ^ wanted).mean() < 0.002
    assert json.loads(outputs.receipt.read_text())["glass_gray"] == (glass if glass < 255 else None)


@pytest.mark.parametrize("origin", ["bounds", "canvas"])
def test_annotations_count_from_the_bounds_or_the_canvas(slide: Path, tmp_path: Path, origin: str) -> None:
    """QuPath counts from the bounds, which the sheet can override."""
    left, top = (400, 400) if origin == "bounds" else (CORNER[0] + 400, CORNER[1] + 400)
    annotation = write_geojson(tmp_path / "a.geojson", feature(polygon(square(left, top, 400)), "Tumor"))
    pyramid = Pyramid(converted(tmp_path, slide) / "pyramid.ome.zarr")
    drawn = truth.Outputs(
        store=tmp_path / "truth.ome.zarr",
        receipt=tmp_path / "truth.json",
        picture=tmp_path / "truth.png",
        geojson=tmp_path / "truth.geojson",
    )
    inputs, given = truth.Inputs(pyramid.path, annotation), "canvas" if origin == "canvas" else None
    truth.run("s", inputs, drawn, TruthRun(mpp=2), origin=given, label="tumor")
    rows, columns = np.nonzero(read_image(drawn.store, 0.5).data == TUMOR)
    x, y = CORNER[0] + 400, CORNER[1] + 400
    assert (columns.min(), rows.min()) == (x // 4, y // 4)
    assert (columns.max() + 1, rows.max() + 1) == ((x + 400) // 4, (y + 400) // 4)
