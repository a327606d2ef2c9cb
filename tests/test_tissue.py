from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.filters import threshold_otsu

from helpers.paths import DATA, needs_data
from helpers.slides import converted, tissue_picture, write_tiff
from wsi_pipeline import morphology
from wsi_pipeline.config import ConvertRun, TissueRun, TruthOptions, TruthRun
from wsi_pipeline.errors import StoreError
from wsi_pipeline.geometry import Box
from wsi_pipeline.masks import slide_tissue
from wsi_pipeline.masks.annotations import read_annotation
from wsi_pipeline.masks.label_images import TUMOR
from wsi_pipeline.masks.outlines import Canvas
from wsi_pipeline.masks.slide_tissue import store_features
from wsi_pipeline.masks.tissue_detection import NO_INK, Threshold, clean_mask, segment_tissue, tissue_features
from wsi_pipeline.pyramid.ome_zarr import read_image
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.stages import convert, tissue, truth

NO_CLEANING = {"closing_um": 0, "min_hole_um2": 0, "min_area_um2": 0}


def run(folder: Path, out: Path, *, threads: int = 2, **options: object) -> np.ndarray:
    store = out / "tissue.ome.zarr"
    made = tissue.Outputs(store, out / "tissue.json", out / "tissue.png")
    tissue.run("s1", tissue.Inputs(folder / "pyramid.ome.zarr"), made, TissueRun(**options), threads=threads)
    return read_image(store, Pyramid(folder / "pyramid.ome.zarr").mpp).data.astype(bool)


@pytest.mark.usefixtures("rendered_figures")
@pytest.mark.parametrize("method", ["otsu_saturation", "otsu_gray", "gray_threshold"])
def test_each_method_finds_the_rectangle(tissue_slide: Path, tmp_path: Path, method: str) -> None:
    options = {"threshold": 190} if method == "gray_threshold" else {}
    mask = run(tissue_slide, tmp_path, mpp=8, method=method, **options)
    # 1600 x 1200 px at 0.5 um, tissue from 100 to 700 um and from 100 to 500 um.
    wanted = np.zeros((75, 100), bool)
    wanted[13:62, 13:87] = True
    assert mask.shape == wanted.shape
    assert (mask ^ wanted).sum() <= 2 * (49 + 74)
    facts = json.loads((tmp_path / "tissue.json").read_text())
    assert facts["tissue_mm2"] == pytest.approx(0.24, rel=0.06)
    assert (tmp_path / "tissue.png").stat().st_size > 1000


@pytest.mark.parametrize("block_px", [17, 64, 1000])
@pytest.mark.parametrize("threads", [1, 4])
def test_features_do_not_depend_on_blocks_and_workers(
    tissue_pyramid: Pyramid, tmp_path: Path, block_px: int, threads: int
) -> None:
    options = TissueRun(mpp=3)
    size = tissue_pyramid.size_at(3)
    whole = tissue_features(tissue_pyramid.read_scaled(Box(0, 0, size.width, size.height), 3), options)
    value, ink, histogram = store_features(tissue_pyramid, options, threads, block_px, tmp_path / "features")
    np.testing.assert_array_equal(value[:], whole.saturation)
    np.testing.assert_array_equal(ink[:], whole.ink)
    counted, *_ = np.histogram2d(
        *(values[whole.ink == NO_INK].astype(int) for values in (whole.gray, whole.saturation)),
        bins=np.arange(257),
    )
    np.testing.assert_array_equal(histogram, counted)


@pytest.mark.parametrize("ink", [(30, 70, 180), (20, 140, 60), (25, 25, 30)], ids=["blue", "green", "black"])
def test_pen_is_removed_and_reported(tmp_path: Path, ink: tuple[int, int, int]) -> None:
    rgb = tissue_picture()
    rgb[40:120, 100:1500] = ink
    folder = converted(tmp_path, write_tiff(tmp_path / "s.tif", rgb))
    mask = run(folder, tmp_path, mpp=8)
    assert not mask[:9].any()
    assert mask[20:50, 20:80].all()
    # 40 x 700 um are 437 pixels of 8 um, give or take the edge, where ink and background mix.
    assert json.loads((tmp_path / "tissue.json").read_text())["pen_pixels"] == pytest.approx(437, abs=100)
    with_pen = run(folder, tmp_path, mpp=8, remove_pen=False)
    assert with_pen[:9].any() == (ink[2] > 50)


@pytest.mark.parametrize("ink", [(30, 70, 180), (20, 140, 60)], ids=["blue", "green"])
@pytest.mark.parametrize("on_tissue", [True, False])
def test_no_colored_ink_is_filled_or_closed_as_tissue(
    tmp_path: Path, ink: tuple[int, int, int], on_tissue: bool
) -> None:
    """A dot in tissue, smaller than the holes that are filled, and a stroke through a gap that is closed."""
    rgb = tissue_picture()
    rgb[(slice(400, 480), slice(400, 496)) if on_tissue else (slice(300, 900), slice(700, 740))] = ink
    if not on_tissue:
        rgb[200:1000, 690:700] = rgb[200:1000, 740:750] = 244
    mask = run(converted(tmp_path, write_tiff(tmp_path / "s.tif", rgb)), tmp_path, mpp=4)
    inked = mask[52:58, 52:60] if on_tissue else mask[40:110, 89:91]
    assert not inked.any()
    assert mask[70:90, 30:80].all()


def test_small_dark_pieces_of_tissue_are_nuclei(tmp_path: Path) -> None:
    rgb = tissue_picture()
    rgb[400:480, 400:480] = (40, 20, 50)
    mask = run(converted(tmp_path, write_tiff(tmp_path / "s.tif", rgb)), tmp_path, mpp=4)
    assert mask[45:65, 45:65].all()


def test_ink_on_tissue_is_removed(tmp_path: Path) -> None:
    """Strokes 28 um wide and a dot are excluded although closing covers them, and filling where holes may be large."""
    rgb = tissue_picture()
    ink = np.zeros(rgb.shape[:2], bool)
    ink[400:456] = ink[700:756] = ink[400:756, :56] = True
    ink[560:656, 760:856] = True
    rgb[ink] = (rgb[ink] * np.array([0.15, 0.35, 0.75])).astype(np.uint8)
    folder = converted(tmp_path, write_tiff(tmp_path / "s.tif", rgb))
    # The strokes measure 50,000 um².
    for min_hole_um2 in (40_000, 100_000):
        mask = run(folder, tmp_path, mpp=4, min_hole_um2=min_hole_um2)
        # Except for a few pixels whose colours JPEG has changed.
        assert mask[51:56].mean() < 0.02
        assert mask[89:93].mean() < 0.02
        assert mask[72:80, 97:105].mean() < 0.02
        assert mask[30:48, 30:170].all()
        assert mask[60:68, 30:170].all()
        assert not mask[:24].any()


def cleaned_mask(mask: np.ndarray, options: TissueRun) -> np.ndarray:
    return np.concatenate(list(clean_mask(mask, options)))


def test_cleaning_closes_gaps_fills_holes_and_drops_specks() -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:50, 10:40] = True
    mask[10:50, 24:26] = False  # a gap of 2 pixels, 20 um
    mask[20:24, 14:18] = False  # a hole of 16 pixels, 1,600 um²
    mask[30:42, 30:38] = False  # a hole of 96 pixels, 9,600 um²
    mask[3:5, 60:62] = True  # a speck of 4 pixels, 400 um²
    options = TissueRun(mpp=10, closing_um=40, min_hole_um2=5000, min_area_um2=1000)
    cleaned = cleaned_mask(mask, options)
    assert cleaned[12:48, 24:26].all()
    assert cleaned[20:24, 14:18].all()
    assert not cleaned[34:38, 33:35].any()
    assert not cleaned[3:5, 60:62].any()
    untouched = TissueRun(mpp=10, **NO_CLEANING)
    np.testing.assert_array_equal(cleaned_mask(mask, untouched), mask)


@given(
    st.integers(0, 2**31),
    st.integers(1, 12),
    st.integers(0, 20),
    st.sampled_from((0.05, 0.4, 0.6, 0.95)),
    st.sampled_from((1, 2, 3, 16, 512)),
)
@settings(max_examples=60, deadline=None)
def test_cleaning_matches_distance_transforms_and_labels(
    seed: int, radius: int, least: int, share: float, band_px: int
) -> None:
    """In bands of any height, with components that go through several of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(morphology, "BAND_PX", band_px)
        check_cleaning(seed, radius, least, share)


def check_cleaning(seed: int, radius: int, least: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=rng.integers(1, 60, 2)), rng.uniform(0, 3))
    mask = noise < np.quantile(noise, share)
    padded = np.pad(mask, radius + 1)
    grown = ndimage.distance_transform_edt(~padded) <= radius if mask.any() else padded
    closed = (ndimage.distance_transform_edt(grown) > radius)[radius + 1 : -radius - 1, radius + 1 : -radius - 1]
    only_closing = TissueRun(mpp=1, closing_um=2 * radius, min_hole_um2=0, min_area_um2=0)
    np.testing.assert_array_equal(cleaned_mask(mask, only_closing), closed | mask)

    def large(of: np.ndarray) -> np.ndarray:
        labels, _ = ndimage.label(of, structure=np.ones((3, 3)))
        return (labels > 0) & (np.bincount(labels.ravel()) >= least)[labels]

    only_size_filters = TissueRun(mpp=1, closing_um=0, min_hole_um2=least, min_area_um2=least)
    np.testing.assert_array_equal(cleaned_mask(mask, only_size_filters), large(~large(~mask)))


def test_a_slide_without_tissue_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    rgb = np.full((600, 700, 3), 244, np.uint8)
    folder = converted(tmp_path, write_tiff(tmp_path / "s.tif", rgb))
    with pytest.raises(StoreError, match=r"slide s1.*no tissue found by otsu_saturation.*tissue_threshold"):
        run(folder, tmp_path, mpp=8)
    assert not (tmp_path / "tissue.ome.zarr").exists()
    assert not (tmp_path / "tissue.json").exists()


def test_a_slide_with_ink_only_is_an_error_that_names_pen_marks(tmp_path: Path) -> None:
    rgb = np.full((600, 700, 3), 244, np.uint8)
    rgb[100:500, 100:600] = (30, 70, 180)
    folder = converted(tmp_path, write_tiff(tmp_path / "s.tif", rgb))
    with pytest.raises(StoreError, match=r"no tissue found by .*, [45]\d % of the slide are taken for pen marks"):
        run(folder, tmp_path, mpp=8)


@pytest.mark.slow
@given(st.integers(5, 130), st.integers(1, 4), st.sampled_from((64, 128, 192, 512)))
@settings(max_examples=10, deadline=None)
def test_the_mask_is_the_same_for_any_chunks_blocks_and_workers(
    tmp_path_factory: pytest.TempPathFactory, block_px: int, threads: int, chunk_px: int
) -> None:
    folder = tmp_path_factory.mktemp("chunks")
    source = write_tiff(folder / "s.tif", tissue_picture(900, 700))
    masks = []
    for name, chunk, block, workers in (("whole", 1024, 512, 1), ("cut", chunk_px, block_px, threads)):
        options = ConvertRun(passthrough=False, codec="zstd", chunk_px=chunk, shard_px=2 * chunk)
        outputs = convert.Outputs(folder / name / "pyramid.ome.zarr", folder / name / "pyramid.json")
        convert.run("s1", convert.Inputs(source), outputs, options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(slide_tissue, "_SMALL_BLOCK_PX", block)
            masks.append(run(folder / name, folder / name, mpp=3, threads=workers))
    assert masks[0].any()
    np.testing.assert_array_equal(*masks)


GLASS, PALE, DARK = (240, 241, 243), (232, 205, 222), (150, 70, 150)


def scene(*rectangles: tuple[slice, slice, tuple[int, int, int]]) -> np.ndarray:
    """A picture (300, 400, 3) of glass with rectangles of a colour, all with noise."""
    rng = np.random.default_rng(0)
    rgb = np.empty((300, 400, 3))
    rgb[:] = GLASS
    for rows, columns, color in rectangles:
        rgb[rows, columns] = color
    return np.clip(rgb + rng.normal(0, 2, rgb.shape), 0, 255).astype(np.uint8)


def segmented(rgb: np.ndarray, **options: object) -> tuple[np.ndarray, Threshold]:
    chosen = TissueRun(mpp=8, **NO_CLEANING, **options)
    return segment_tissue(rgb, chosen, has_canvas=False)


@pytest.mark.parametrize("method", ["otsu_saturation", "glass_saturation", "otsu_gray"])
def test_pale_tissue_beside_dark_is_kept(method: str) -> None:
    pale, dark = (slice(40, 240), slice(40, 240)), (slice(40, 240), slice(260, 330))
    mask, threshold = segmented(scene((*pale, PALE), (*dark, DARK)), method=method)
    wanted = np.zeros_like(mask)
    wanted[pale] = wanted[dark] = True
    assert (mask == wanted).mean() > 0.995
    assert threshold.glass_gray == pytest.approx(241, abs=1)
    assert (threshold.replaced_otsu is not None) == method.startswith("otsu")


@pytest.mark.parametrize("method", ["otsu_saturation", "glass_saturation", "otsu_gray"])
def test_an_image_without_glass_is_tissue(method: str) -> None:
    """As a region that was cut out of a slide: half pale, half dark, with lumina of 3 %."""
    everything = slice(None)
    lumina = (slice(0, 300, 10), slice(0, 400, 4), GLASS)
    rgb = scene((everything, slice(0, 200), PALE), (everything, slice(200, 400), DARK), lumina)
    mask, threshold = segmented(rgb, method=method)
    assert mask.mean() > 0.96
    assert threshold.glass_gray is None
    assert (threshold.replaced_otsu is not None) == method.startswith("otsu")


@pytest.mark.parametrize("tint", [(229, 232, 238), (244, 241, 230)], ids=["darker", "as bright"])
def test_glass_of_two_colours_is_not_split(tint: tuple[int, int, int]) -> None:
    rgb = scene((slice(150, 300), slice(None), tint), (slice(10, 14), slice(10, 40), DARK))
    mask, threshold = segmented(rgb, method="otsu_saturation")
    assert threshold.replaced_otsu is not None
    assert mask[10:14, 10:40].all()
    # But for noise, which the removal of specks would end.
    assert mask.mean() < 0.01


def test_ordinary_contrast_keeps_otsus_threshold() -> None:
    rgb = scene((slice(40, 240), slice(40, 240), DARK))
    _, threshold = segmented(rgb, method="otsu_saturation")
    hue = rgb.max(axis=2).astype(int), rgb.min(axis=2).astype(int)
    saturation = np.rint(255 * (hue[0] - hue[1]) / hue[0]).astype(np.uint8)
    assert threshold.replaced_otsu is None
    assert threshold.value == pytest.approx(float(threshold_otsu(saturation)), abs=1)


def test_a_replaced_threshold_is_reported_with_the_override(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rgb = scene((slice(40, 240), slice(40, 240), PALE), (slice(40, 240), slice(260, 330), DARK))
    folder = converted(tmp_path, write_tiff(tmp_path / "s.tif", np.kron(rgb, np.ones((4, 4, 1), np.uint8)), mpp=2))
    run(folder, tmp_path, mpp=8)
    facts = json.loads((tmp_path / "tissue.json").read_text())
    assert facts["replaced_otsu"] > facts["threshold"]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert re.search(r"s1: Otsu's threshold \d+ lies within .*grey value 24\d.*tissue_threshold overrides it", warning)
    caplog.clear()
    run(folder, tmp_path, mpp=8, threshold=facts["threshold"])
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@needs_data
def test_a_region_of_a_real_slide_has_the_tissue_of_the_whole(tmp_path: Path) -> None:
    """1,600 x 1,600 px without glass, of which the mask of the whole slide covers all."""
    with openslide.OpenSlide(DATA / "slides" / "minerva-crc-he-17408x14340.tif") as slide:
        crop = np.asarray(slide.read_region((5440, 8320), 0, (1600, 1600)).convert("RGB"))
    folder = converted(tmp_path, write_tiff(tmp_path / "s.tif", crop, mpp=1.3))
    assert run(folder, tmp_path, mpp=8).mean() > 0.99


@needs_data
def test_the_glass_finds_pale_mucin_that_otsu_omits() -> None:
    with openslide.OpenSlide(DATA / "slides" / "minerva-crc-he-17408x14340.tif") as slide:
        level = slide.get_best_level_for_downsample(8 / 1.3)
        rgb = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]).convert("RGB"))
        mpp = 1.3 * slide.level_downsamples[level]
    # A nodule with pools of mucin, and glass, as the picture shows them: x and y from the first to the last um.
    nodule, glass = (
        tuple(slice(round(first / mpp), round(last / mpp)) for first, last in (y, x))
        for x, y in (((10_900, 12_800), (4_200, 7_600)), ((0, 4_000), (10_000, 14_000)))
    )
    found = {}
    for method in ("otsu_saturation", "glass_saturation"):
        options = TissueRun(mpp=mpp, method=method)
        mask, _ = segment_tissue(rgb, options, has_canvas=False)
        found[method] = mask[nodule].mean()
        assert not mask[glass].any()
    assert found["otsu_saturation"] < 0.9
    assert found["glass_saturation"] > 0.97


@needs_data
@pytest.mark.parametrize("method", ["otsu_saturation", "glass_saturation"])
@pytest.mark.parametrize("name", ["tumor_072", pytest.param("tumor_102", marks=pytest.mark.slow)])
def test_real_slides_keep_their_annotated_tumour_and_its_area(tmp_path: Path, name: str, method: str) -> None:
    source, xml = (DATA / "camelyon16-level7" / f"{name}_level7.{kind}" for kind in ("tif", "xml"))
    folder = converted(tmp_path, source)
    pyramid = Pyramid(folder / "pyramid.ome.zarr")
    mask = run(folder, tmp_path, mpp=8, method=method)
    drawn = truth.Outputs(
        store=tmp_path / "truth.ome.zarr",
        receipt=tmp_path / "truth.json",
        picture=tmp_path / "truth.png",
        geojson=tmp_path / "truth.geojson",
    )
    truth.run(name, truth.Inputs(pyramid.path, xml), drawn, TruthRun(), label="tumor")
    tumor = read_image(tmp_path / "truth.ome.zarr", pyramid.mpp).data == TUMOR
    assert mask[tumor].mean() >= {"otsu_saturation": 0.98, "glass_saturation": 0.995}[method]
    canvas = Canvas(pyramid.size, pyramid.mpp)
    exact = read_annotation(name, xml, TruthOptions(), canvas).regions.tumor.area * pyramid.mpp**2
    assert tumor.sum() * 64 == pytest.approx(exact, rel=0.01)
