"""The corner that coordinates count from, and the check of annotations against the tissue."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from typer.testing import CliRunner

from helpers.annotations import Ring, feature, polygon, square, write_asap, write_geojson
from helpers.slides import converted, tissue_picture, write_tiff
from wsi_pipeline.cli.app import app
from wsi_pipeline.cohort.estimate import estimate_cohort
from wsi_pipeline.cohort.sheet import Sheet, SlideRow
from wsi_pipeline.config import TissueOptions, TruthOptions, TruthRun
from wsi_pipeline.config.base import Origin, TissueMethod
from wsi_pipeline.config.loading import load_config
from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.masks.annotation_position import canvas_of, check_position, position_tissue, read_overview
from wsi_pipeline.masks.annotations import Annotation, read_annotation
from wsi_pipeline.masks.outlines import Canvas
from wsi_pipeline.pyramid.ome_zarr import read_image
from wsi_pipeline.slides.openslide_reader import SourceSlide
from wsi_pipeline.stages import truth

# Tissue from (200, 200) to (1400, 1000).
PICTURE = tissue_picture()
CANVAS = Canvas(Size(1600, 1200), mpp=0.5, downsamples=(1.0, 4.0))
# The same on a canvas of four times the size, scanned from (3000, 2000) on.
BOUNDS = Canvas(Size(6400, 4800), 0.5, (1.0, 4.0), Box(3000, 2000, 1600, 1200))


def on_bounds() -> NDArray[np.uint8]:
    picture = np.full((BOUNDS.size.height, BOUNDS.size.width, 3), 255, np.uint8)
    picture[2000:3200, 3000:4600] = PICTURE
    return picture[::4, ::4]


def checked(
    path: Path,
    canvas: Canvas = CANVAS,
    picture: NDArray[np.uint8] = PICTURE,
    origin: Origin | None = None,
    min_share: float = 0.5,
    tissue: TissueOptions | None = None,
) -> Annotation:
    found = read_annotation("s1", path, TruthOptions(), canvas, origin)
    return check_position("s1", path, found, canvas, picture, min_share, tissue)


def asap(tmp_path: Path, *rings: Ring) -> Path:
    return write_asap(tmp_path / "a.xml", [("Tumor", ring) for ring in rings])


def geojson(tmp_path: Path, *rings: Ring) -> Path:
    return write_geojson(tmp_path / "a.geojson", *(feature(polygon(ring), "Tumor") for ring in rings))


@pytest.mark.parametrize("rings", [[square(150, 400, 300)], [square(1300, 900, 250), square(300, 300, 100)]])
def test_the_share_on_tissue_is_that_of_the_area(tmp_path: Path, rings: list[Ring]) -> None:
    drawn = shapely.union_all([shapely.Polygon(ring) for ring in rings])
    share = (drawn & shapely.box(200, 200, 1400, 1000)).area / drawn.area
    found = checked(asap(tmp_path, *rings), min_share=0).facts.on_tissue
    assert found == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(
    ("ring", "reading"),
    [
        (square(110, 110, 60), "100 % would if they were micrometres"),
        ([(850, 1210), (900, 1210), (900, 1390), (850, 1390)], "with x and y exchanged"),
        (square(60, 60, 120), "100 % would if scaled by 4, as from another level"),
        (square(1700, 1300, 600), "100 % would if scaled by 0.5, as from another level"),
    ],
)
def test_the_reading_that_fits_is_named(tmp_path: Path, ring: Ring, reading: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        checked(asap(tmp_path, ring))
    text = str(caught.value)
    assert "% of the annotated tumour lies on tissue (read from the canvas)" in text
    assert reading in text
    assert text.endswith("Export the annotation in level-0 pixels, x before y")
    assert "\n" not in text
    assert checked(asap(tmp_path, ring), min_share=0).facts.on_tissue is not None


def test_tumour_on_glass_that_no_reading_explains_is_an_error(tmp_path: Path) -> None:
    path = asap(tmp_path, square(1450, 20, 100))
    with pytest.raises(AnnotationError, match=r"0 % of the annotated tumour .* truth.min_on_tissue: 0 turns this"):
        checked(path, picture=np.where(np.arange(1600)[:, None] < 300, PICTURE, PICTURE[:1, :1]).astype(np.uint8))
    # A cut-out or an ignored area may lie anywhere.
    assert checked(write_asap(path, [("Ignore*", square(1450, 20, 100))])).facts.on_tissue is None


def test_tissue_without_glass_and_pale_tissue_is_tissue(tmp_path: Path) -> None:
    """Otsu's threshold lies between pale and dark tissue: the annotation is on the pale half."""
    rng = np.random.default_rng(0)
    pale = rng.normal((235, 205, 228), 3, (1200, 800, 3))
    dark = rng.normal((150, 70, 150), 12, (1200, 800, 3))
    picture = np.concatenate((pale, dark), axis=1).clip(0, 255).astype(np.uint8)
    assert checked(asap(tmp_path, square(200, 300, 400)), picture=picture).facts.on_tissue == 1


@pytest.mark.parametrize(("method", "threshold"), [("otsu_gray", None), ("gray_threshold", None), (None, 0.0)])
def test_tissue_is_found_as_the_sheet_says(
    tmp_path: Path, method: TissueMethod | None, threshold: float | None
) -> None:
    """Tissue with hardly any colour, which the threshold of the glass does not find."""
    picture = np.where(PICTURE.min(axis=2, keepdims=True) < 200, np.uint8([120, 119, 120]), np.uint8(244))
    path = asap(tmp_path, square(300, 300, 400))
    with pytest.raises(AnnotationError, match=r"0 % of the annotated tumour lies on tissue"):
        checked(path, picture=picture)
    assert checked(path, picture=picture, tissue=position_tissue(method, threshold)).facts.on_tissue == 1


def test_stage_plan_and_check_find_tissue_as_the_sheet_says(tmp_path: Path) -> None:
    picture = np.where(PICTURE.min(axis=2, keepdims=True) < 200, np.uint8(120), np.uint8(244)).repeat(3, axis=2)
    source = write_tiff(tmp_path / "s1.tif", picture)
    path, folder = asap(tmp_path, square(300, 300, 400)), converted(tmp_path, source)
    outputs = truth.Outputs(
        store=tmp_path / "t.ome.zarr",
        receipt=tmp_path / "t.json",
        picture=tmp_path / "t.png",
        geojson=tmp_path / "t.geojson",
    )
    row = SlideRow("s1", str(source), "train", "tumor", str(path))
    command = ["check-annotation", str(path), "--slide", str(source)]
    for method in (None, "otsu_gray"):
        expected = pytest.raises(AnnotationError, match="0 % of the annotated") if method is None else nullcontext()
        with expected:
            inputs = truth.Inputs(folder / "pyramid.ome.zarr", path)
            truth.run("s1", inputs, outputs, TruthRun(), label="tumor", tissue=position_tissue(method))
        problems = estimate_cohort(Sheet({"s1": replace(row, tissue_method=method)}), load_config({})).problems
        assert any("0 % of the annotated tumour" in one.text for one in problems) == (method is None)
        flags = [] if method is None else [f"--tissue-method={method}"]
        assert isinstance(CliRunner().invoke(app, [*command, *flags]).exception, AnnotationError) == (method is None)


def test_formats_count_from_their_own_corner(tmp_path: Path) -> None:
    """QuPath crops a slide to its bounds; ASAP does not."""
    ring, moved = square(300, 300, 400), square(3300, 2300, 400)
    for path, origin in ((geojson(tmp_path, ring), "bounds"), (asap(tmp_path, moved), "canvas")):
        found = checked(path, BOUNDS, on_bounds())
        assert found.facts.origin == origin
        assert found.regions.tumor.bounds == (3300, 2300, 3700, 2700)
        assert f"coordinates from the corner of the {origin}" in found.facts.lines()[0]
    assert checked(geojson(tmp_path, moved), BOUNDS, on_bounds(), "canvas").regions.tumor.bounds[:2] == (3300, 2300)
    assert checked(asap(tmp_path, ring), BOUNDS, on_bounds(), "bounds").regions.tumor.bounds[:2] == (3300, 2300)
    # Without bounds both corners are the same.
    assert checked(geojson(tmp_path, ring)).regions.tumor.bounds == (300, 300, 700, 700)


@pytest.mark.parametrize(
    ("write", "ring", "other"),
    [(geojson, square(3300, 2300, 400), "canvas"), (asap, square(300, 300, 400), "bounds")],
)
def test_the_other_corner_is_proposed(tmp_path: Path, write: Any, ring: Ring, other: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        checked(write(tmp_path, ring), BOUNDS, on_bounds())
    assert f"100 % would if counted from the {other}" in str(caught.value)
    assert str(caught.value).endswith(f"Set annotation_origin to {other} for this slide in the sheet")


def test_an_assumed_corner_must_not_fit_clearly_worse(tmp_path: Path) -> None:
    """Bounds that shift the annotation by a quarter of its width: three quarters lie on tissue either way."""
    canvas = Canvas(CANVAS.size, 0.5, (1.0,), Box(100, 0, 1500, 1200))
    path = geojson(tmp_path, square(1000, 300, 400))
    with pytest.raises(AnnotationError, match=r"75 % of .*; 100 % would if counted from the canvas\. Set annotation"):
        checked(path, canvas)
    assert checked(path, canvas, origin="bounds").facts.on_tissue == pytest.approx(0.75, abs=0.02)
    assert checked(path, canvas, origin="canvas").facts.on_tissue == 1


@pytest.fixture
def slide_with_bounds(tissue_slide: Path, tmp_path: Path) -> truth.Inputs:
    """The tissue slide with bounds from (200, 200) on."""
    store = shutil.copytree(tissue_slide / "pyramid.ome.zarr", tmp_path / "pyramid.ome.zarr")
    group = json.loads((store / "zarr.json").read_text())
    group["attributes"]["slide"]["bounds"] = [200, 200, 1200, 800]
    (store / "zarr.json").write_text(json.dumps(group))
    return truth.Inputs(store)


def run_truth(folder: Path, inputs: truth.Inputs, annotation: Path, origin: Origin | None = None) -> dict[str, Any]:
    outputs = truth.Outputs(
        store=folder / "t.ome.zarr", receipt=folder / "t.json", picture=folder / "t.png", geojson=folder / "t.geojson"
    )
    given = truth.Inputs(inputs.pyramid, annotation)
    truth.run("s1", given, outputs, TruthRun(), origin=origin, label="tumor")
    return dict(json.loads((folder / "t.json").read_text()))


def test_the_geojson_counts_from_the_bounds_and_is_read_back(slide_with_bounds: truth.Inputs, tmp_path: Path) -> None:
    rings = [("_0", square(300, 300, 400)), ("_2", square(400, 400, 100)), ("Ignore*", square(900, 300, 200))]
    first, second = tmp_path / "first", tmp_path / "second"
    receipt = run_truth(first, slide_with_bounds, write_asap(tmp_path / "a.xml", rings))
    assert receipt["qupath_origin"] == [200, 200]
    corners = json.loads((first / "t.geojson").read_text())["features"][0]["geometry"]["coordinates"][0]
    assert np.min(corners, axis=0).tolist() == [100, 100]
    read_back = run_truth(second, slide_with_bounds, first / "t.geojson")
    assert (receipt["annotation"]["origin"], read_back["annotation"]["origin"]) == ("canvas", "bounds")
    assert np.array_equal(*(read_image(folder / "t.ome.zarr", 0.5).data for folder in (first, second)))


def test_the_receipt_says_how_the_annotation_was_understood(slide_with_bounds: truth.Inputs, tmp_path: Path) -> None:
    drawn = [
        feature(polygon(square(100, 100, 400)), "Tumor"),
        feature(polygon(square(700, 100, 20)), "Tumor"),
        feature(polygon(square(1100, 700, 200)), "Ignore*"),
        feature(polygon(square(100, 100, 10)), "Tumor", objectType="cell"),
    ]
    path = write_geojson(tmp_path / "a.geojson", *drawn)
    receipt = run_truth(tmp_path / "out", slide_with_bounds, path, "bounds")
    assert receipt["annotation_origin"] == "bounds"
    assert receipt["annotation"] == {
        "format": "QuPath GeoJSON",
        "origin": "bounds",
        "groups": {
            "Ignore*": {"meaning": "ignore", "outlines": 1, "mm2": 0.01, "off_slide_mm2": 0.0},
            "Tumor": {"meaning": "tumor", "outlines": 2, "mm2": 0.0401, "off_slide_mm2": 0.0},
        },
        "left_out": [{"group": "Tumor", "reason": "cell, no annotation", "count": 1}],
        "on_tissue": 1.0,
    }


def test_the_overview_of_a_slide_file_is_that_of_its_pyramid(tissue_slide: Path) -> None:
    source = SourceSlide("s1", tissue_slide.parent / "s1.tif")
    try:
        canvas, overview = canvas_of(source), read_overview(source)
    finally:
        source.close()
    assert (canvas.size, canvas.mpp, canvas.bounds) == (Size(1600, 1200), 0.5, None)
    assert overview.shape == (600, 800, 3)
    means = tissue_picture().reshape(600, 2, 800, 2, 3).mean((1, 3))
    assert np.abs(overview - means).mean() < 4
