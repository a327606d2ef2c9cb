from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely

from wsi_pipeline.cohort.sheet import load_sheet
from wsi_pipeline.cohort.synthetic import SLIDE_SPECS, SlideSpec, write_cohort
from wsi_pipeline.config import TruthOptions
from wsi_pipeline.geometry import Size
from wsi_pipeline.masks.annotations import read_annotation
from wsi_pipeline.masks.outlines import Canvas

SIZE = Size(2048, 1536)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    wanted = ("synthetic-tumor-01", "synthetic-tumor-03", "synthetic-tumor-05", "synthetic-normal-05")
    write_cohort(folder, [plan for plan in SLIDE_SPECS if plan.slide in wanted], SIZE)
    return folder


def test_the_cohort_has_every_special_case() -> None:
    assert len(SLIDE_SPECS) == 12
    assert {plan.split for plan in SLIDE_SPECS} == {"train", "validation", "test"}
    for trait in ("cut_out", "unannotated", "pen", "no_mpp"):
        assert any(getattr(plan, trait) for plan in SLIDE_SPECS)
    assert all(plan.slide.startswith("synthetic-") for plan in SLIDE_SPECS)


def test_slides_open_and_the_sheet_is_valid(cohort: Path) -> None:
    sheet = load_sheet(cohort / "slides.tsv")
    assert sheet["synthetic-tumor-03"].exhaustive is False
    assert sheet["synthetic-tumor-05"].mpp == 0.5
    for row in sheet.values():
        with openslide.OpenSlide(row.path) as slide:
            assert slide.dimensions == (SIZE.width, SIZE.height)
            assert slide.level_count > 2
            scale = float(slide.properties[openslide.PROPERTY_NAME_MPP_X])
            assert (abs(scale - 0.5) < 1e-6) == (row.mpp is None)


def test_tumour_differs_in_texture_but_not_in_mean_colour(cohort: Path) -> None:
    sheet = load_sheet(cohort / "slides.tsv")
    slides = ("synthetic-tumor-01", "synthetic-tumor-05")
    differences = []
    for name in slides:
        row = sheet[name]
        regions = read_annotation(name, Path(str(row.annotation)), TruthOptions(), Canvas(SIZE, 0.5)).regions
        with openslide.OpenSlide(row.path) as slide:
            rgb = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))[..., :3].astype(float)
        x, y = np.meshgrid(np.arange(SIZE.width), np.arange(SIZE.height))
        tumor = shapely.contains_xy(regions.tumor, x, y)
        ring = shapely.contains_xy(regions.tumor.convex_hull.buffer(150) - regions.tumor.convex_hull.buffer(15), x, y)
        differences.append(rgb[tumor].mean(axis=0) - rgb[ring].mean(axis=0))
    assert np.abs(np.mean(differences, axis=0)).max() < 6


def test_the_same_call_draws_the_same_pixels(tmp_path: Path) -> None:
    plans = [SlideSpec("synthetic-x", "test", "north", lesions=1)]
    for name in ("a", "b"):
        write_cohort(tmp_path / name, plans, Size(1536, 1152), processes=1)
    for file in ("synthetic-x.tif", "synthetic-x.xml"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
