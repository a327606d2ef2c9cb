from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from helpers.annotations import square, write_asap
from wsi_pipeline import morphology
from wsi_pipeline.config import TruthOptions, TruthRun
from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.geometry import Size
from wsi_pipeline.io.digests import digest_bytes
from wsi_pipeline.masks import label_images
from wsi_pipeline.masks import truth as masks_truth
from wsi_pipeline.masks.annotations import Regions, read_annotation
from wsi_pipeline.masks.label_images import IGNORE, NORMAL, TUMOR
from wsi_pipeline.masks.outlines import Canvas
from wsi_pipeline.masks.rasterize import PolygonRasterizer
from wsi_pipeline.masks.truth import draw_truth, ignore_border, store_truth
from wsi_pipeline.pyramid.ome_zarr import read_image
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.stages import truth

CANVAS = Canvas(Size(1600, 1200), mpp=0.5)


def regions_of(tmp_path: Path, rings: list[tuple[str, list[tuple[float, float]]]]) -> Regions:
    return read_annotation("s1", write_asap(tmp_path / "a.xml", rings), TruthOptions(), CANVAS).regions


def outputs(folder: Path) -> truth.Outputs:
    return truth.Outputs(
        store=folder / "t.ome.zarr", receipt=folder / "t.json", picture=folder / "t.png", geojson=folder / "t.geojson"
    )


def painted(area: shapely.Geometry, pixel: float, size: Size, band: int) -> np.ndarray:
    crossings, out = PolygonRasterizer(area, pixel, size), np.zeros((size.height, size.width), np.uint8)
    for row in range(0, size.height, band):
        crossings.fill(out[row : row + band], row, 1)
    return out.astype(bool)


@given(st.lists(st.tuples(st.floats(-5, 45), st.floats(-5, 35)), min_size=3, max_size=12), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_a_pixel_is_inside_if_its_centre_is(points: list[tuple[float, float]], band: int) -> None:
    # Keep vertices off pixel centres, where inside and outside depend on convention.
    shape = shapely.make_valid(shapely.Polygon([(round(x, 2) + 0.0013, round(y, 2) + 0.0017) for x, y in points]))
    area = shapely.union_all([g for g in shapely.get_parts(shape) if g.geom_type == "Polygon"])
    drawn = painted(area, 1.0, Size(40, 30), band)
    x, y = np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5)
    near = shapely.distance(area.boundary, shapely.points(x, y)) < 1e-6 if not area.is_empty else np.zeros_like(drawn)
    wanted = shapely.contains_xy(area, x, y)
    np.testing.assert_array_equal(drawn[~near], wanted[~near])


def test_rasterized_areas_are_unbiased() -> None:
    rng = np.random.default_rng(0)
    drawn = exact = 0.0
    for _ in range(60):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 40))
        radius = rng.uniform(60, 140, 40)
        points = np.stack([200 + radius * np.cos(angle), 200 + radius * np.sin(angle)], axis=1)
        ring = shapely.Polygon(points)
        drawn += painted(ring, 4.0, Size(100, 100), 37).sum() * 16
        exact += ring.area
    assert drawn == pytest.approx(exact, rel=0.003)


@pytest.mark.parametrize(("mm2", "within"), [(0.05, 0.01), (0.5, 0.003)])
def test_regions_and_cut_outs_have_their_area_at_8_um(mm2: float, within: float) -> None:
    """Wavy regions at random sub-pixel positions, each with a cut-out of a quarter of its area."""
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(150):
        angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
        wave = 1 + 0.15 * np.sin(3 * angle + rng.uniform(0, 6)) + 0.1 * np.sin(7 * angle + rng.uniform(0, 6))
        ring = np.stack([np.cos(angle), np.sin(angle)], axis=1) * wave[:, None]
        ring *= np.sqrt(mm2 * 1e6 / shapely.Polygon(ring).area)
        middle = rng.uniform(1600, 1800, 2)
        hole, outer = shapely.Polygon(middle + ring), shapely.Polygon(middle + 2 * ring)
        for region in (hole, outer, outer - hole):
            drawn = painted(region, 8.0, Size(440, 440), 50).sum() * 64
            differences.append(drawn / region.area - 1)
    assert np.abs(differences).max() <= within
    assert abs(np.mean(differences)) <= within / 20


def test_cut_outs_are_normal_and_the_rest_stays_tumour(tmp_path: Path) -> None:
    regions = regions_of(tmp_path, [("_0", square(100, 100, 400)), ("_2", square(200, 200, 100))])
    image = draw_truth(regions, Size(100, 75), 16, IGNORE).compute()
    assert regions.tumor.area == 400**2 - 100**2
    assert (image == NORMAL).sum() * 256 == pytest.approx(100**2, rel=0.3)
    assert (image == TUMOR).sum() * 256 == pytest.approx(400**2 - 100**2, rel=0.02)
    assert image[0, 0] == IGNORE


@pytest.mark.parametrize("threads", [1, 4])
def test_truth_does_not_depend_on_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    rings = [("_0", square(30 + 250 * k, 40 + 150 * k, 200)) for k in range(5)]
    regions = regions_of(tmp_path, rings)
    whole = draw_truth(regions, Size(400, 300), 4, NORMAL).compute()
    monkeypatch.setattr(masks_truth, "BAND_PX", 7)
    monkeypatch.setattr(morphology, "BAND_PX", 7)
    image = draw_truth(regions, Size(400, 300), 4, NORMAL)
    np.testing.assert_array_equal(image.compute(scheduler="threads", num_workers=threads), whole)


def test_degenerate_and_overlapping_rings(tmp_path: Path) -> None:
    bow_tie = [(0.0, 0.0), (100.0, 100.0), (100.0, 0.0), (0.0, 100.0)]
    regions = regions_of(
        tmp_path,
        [
            ("Tumor", bow_tie),
            ("_0", square(200, 0, 100)),
            ("_1", square(250, 0, 100)),  # overlaps the previous outline
            ("_0", [(500, 500), (600, 500)]),  # a line
            ("_0", [(700, 700), (700, 700), (700, 700)]),  # a point
        ],
    )
    assert regions.tumor.area == pytest.approx(5000 + 15000)
    assert regions.polygons == 3


@pytest.mark.parametrize(
    ("label", "annotated", "exhaustive", "outside"),
    [
        ("normal", False, True, NORMAL),
        ("tumor", True, True, NORMAL),
        ("tumor", True, False, IGNORE),
        ("tumor", False, True, IGNORE),
        (None, False, True, IGNORE),
    ],
)
def test_unannotated_pixels_are_normal_or_ignored(
    tissue_slide: Path, tmp_path: Path, label: str | None, annotated: bool, exhaustive: bool, outside: int
) -> None:
    xml = write_asap(tmp_path / "a.xml", [("_0", square(400, 400, 300))]) if annotated else None
    store = tmp_path / "t.ome.zarr"
    truth.run(
        "s1",
        truth.Inputs(tissue_slide / "pyramid.ome.zarr", xml),
        outputs(tmp_path),
        TruthRun(),
        label=label,
        exhaustive=exhaustive,
    )
    image = read_image(store, Pyramid(tissue_slide / "pyramid.ome.zarr").mpp).data
    assert image[0, 0] == outside
    assert (image == TUMOR).any() == annotated
    facts = json.loads((tmp_path / "t.json").read_text())
    assert facts["tumor_mm2"] == pytest.approx(0.0225 if annotated else 0)


def broken(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "bad.xml"
    path.write_text(text)
    return path


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><ASAP_Annotations>&b;</ASAP_Annotations>'
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><ASAP_Annotations>&a;</ASAP_Annotations>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "refused: the XML declares a DTD or entities"),
        (OUTSIDE, "refused"),
        ("<!DOCTYPE x><ASAP_Annotations/>", "refused"),
        ("<ASAP_Annotations><Annotations>", "not well-formed XML"),
        ("<other/>", "neither ASAP, ImageScope nor HALO XML (root element other)"),
    ],
)
def test_unsafe_and_broken_xml_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        read_annotation("s1", broken(tmp_path, text), TruthOptions(), CANVAS)
    assert message in str(caught.value)
    assert "slide s1" in str(caught.value)
    assert "bad.xml" in str(caught.value)


def test_unknown_groups_and_invalid_coordinates_are_errors(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="unknown annotation group 'Necrosis'"):
        regions_of(tmp_path, [("Necrosis", square(0, 0, 10))])
    with pytest.raises(AnnotationError, match="a coordinate is not a number"):
        regions_of(tmp_path, [("_0", [("x", 1), (2, 3), (4, 5)])])  # type: ignore[list-item]


@pytest.mark.parametrize(("label", "group"), [("normal", "_0"), ("tumor", "_2")])
def test_label_and_annotation_must_agree(tissue_slide: Path, tmp_path: Path, label: str, group: str) -> None:
    xml = write_asap(tmp_path / "a.xml", [(group, square(400, 400, 300))])
    with pytest.raises(AnnotationError, match=f"the sheet's label is {label}"):
        truth.run(
            "s1",
            truth.Inputs(tissue_slide / "pyramid.ome.zarr", xml),
            outputs(tmp_path),
            TruthRun(),
            label=label,
        )


@pytest.mark.parametrize("tumor_first", [True, False])
def test_a_band_along_the_borders_is_ignored(tumor_first: bool) -> None:
    image = np.zeros((60, 80), np.uint8)
    image[20:40, 30:60] = TUMOR
    before = image.copy()
    if not tumor_first:
        image = np.where(image == TUMOR, NORMAL, TUMOR).astype(np.uint8)
    ignore_border(image, 3)
    band = np.zeros_like(image, bool)
    band[17:43, 27:63] = True
    band[23:37, 33:57] = False
    # The band is rounded at the corners.
    for y, x in ((17, 27), (17, 62), (42, 27), (42, 62)):
        band[y, x] = False
    ignored = image >= IGNORE
    assert ignored.sum() == pytest.approx(band.sum(), abs=8)
    assert ignored[band].mean() > 0.98
    inside = (before == TUMOR) & ~band
    assert (image[inside] == (TUMOR if tumor_first else NORMAL)).all()


def test_the_ignored_band_is_set_by_the_config(tissue_slide: Path, tmp_path: Path) -> None:
    xml = write_asap(tmp_path / "a.xml", [("_0", square(400, 400, 400))])
    truth.run(
        "s1",
        truth.Inputs(tissue_slide / "pyramid.ome.zarr", xml),
        outputs(tmp_path),
        TruthRun(mpp=4, ignore_margin_um=20),
        label="tumor",
    )
    pixels = json.loads((tmp_path / "t.json").read_text())["pixels"]
    # 200 um of tumour, reduced by 20 um on each side.
    assert pixels["tumor"] * 16 == pytest.approx(160**2, rel=0.02)
    assert pixels["ignore"] * 16 == pytest.approx(240**2 - 160**2, rel=0.03)


def test_ignored_tumour_stays_tumour(tissue_slide: Path, tmp_path: Path) -> None:
    """What is ignored is as if ignored areas were cut out of tumour before the band along its borders is drawn."""
    rings = [("_0", square(300, 300, 400)), ("_2", square(400, 400, 100)), ("_1", square(1000, 700, 60))]
    ignored = ("Ignore*", [(610.0, 350.0), (907.0, 433.0), (655.0, 561.0)])
    pyramid = tissue_slide / "pyramid.ome.zarr"
    images = {}
    for name, margin, drawn in (("plain", 0, rings), ("ignored", 30, [*rings, ignored])):
        annotation = write_asap(tmp_path / f"{name}.xml", drawn)
        options = TruthRun(mpp=4, ignore_margin_um=margin)
        truth.run("s1", truth.Inputs(pyramid, annotation), outputs(tmp_path / name), options, label="tumor")
        images[name] = read_image(tmp_path / name / "t.ome.zarr", 0.5).data
    np.testing.assert_array_equal(images["ignored"] & TUMOR, images["plain"])
    cut = shapely.Polygon(ignored[1])
    size = Size(*images["plain"].shape[::-1])
    tumor = images["plain"].astype(bool) & ~painted(cut, 8, size, 64)
    inside, outside = (ndimage.distance_transform_edt(side) for side in (tumor, ~tumor))
    wanted = painted(cut, 8, size, 64) | (np.maximum(inside, outside) < 30 / 4 + 0.5)
    np.testing.assert_array_equal(images["ignored"] >= IGNORE, wanted)
    assert (wanted & (images["plain"] == TUMOR)).sum() > 500
    facts = json.loads((tmp_path / "ignored" / "t.json").read_text())
    drawn = shapely.box(300, 300, 700, 700) - shapely.box(400, 400, 500, 500) | shapely.box(1000, 700, 1060, 760)
    assert facts["tumor_mm2"] == pytest.approx((drawn - cut).area * 0.25e-6, abs=1e-6)
    assert facts["ignored_tumor_mm2"] == pytest.approx((drawn & cut).area * 0.25e-6, abs=1e-6)
    pixels = facts["pixels"]
    assert (pixels["ignore"], pixels["tumor"]) == (wanted.sum(), (images["ignored"] == TUMOR).sum())


@given(
    st.lists(st.tuples(st.floats(0, 90), st.floats(0, 60), st.floats(1, 40)), min_size=1, max_size=6),
    # Of one pixel, the distances of a wide margin take a minute.
    st.integers(4, 70),
    st.integers(1, 4),
    st.sampled_from([0.0, 1.0, 2.3, 7.5, 30.0]),
)
@settings(max_examples=20, deadline=None)
def test_truth_is_that_of_the_whole_image_for_any_blocks_and_workers(
    boxes: list[tuple[float, float, float]], edge: int, threads: int, margin_px: float
) -> None:
    size = Size(100, 70)
    areas = [shapely.box(x, y, x + edge, y + edge) for x, y, edge in boxes]
    tumor, hole = shapely.union_all(areas[::2]), shapely.union_all(areas[1::2])
    regions = Regions(tumor - hole, tumor & hole, shapely.box(3, 4, 9, 9), len(areas))
    wanted = np.full((70, 100), IGNORE, np.uint8)
    wanted[painted(regions.cut_out, 1, size, 70)] = NORMAL
    wanted[painted(regions.tumor, 1, size, 70)] = TUMOR
    wanted[painted(regions.ignore, 1, size, 70)] |= IGNORE
    is_tumor = wanted == TUMOR
    if margin_px and is_tumor.any():
        # The nearest pixel centre of the other side, by definition.
        y, x = np.indices(wanted.shape)
        inside, outside = (np.stack((y[side], x[side]), axis=1) for side in (is_tumor, ~is_tumor))
        squares = ((inside[:, None] - outside[None]) ** 2).sum(axis=2)
        for points, nearest in ((inside, squares.min(axis=1)), (outside, squares.min(axis=0))):
            wanted[tuple(points[np.sqrt(nearest) < margin_px + 0.5].T)] |= IGNORE
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(masks_truth, "BAND_PX", edge)
        patch.setattr(morphology, "BAND_PX", edge)
        patch.setattr(masks_truth, "IMAGE_SHARD_PX", 2 * edge)
        patch.setattr(label_images, "_OVERVIEW_PIXELS", 1000)
        path = Path(folder) / "t.ome.zarr"
        stored, sha256 = store_truth(path, draw_truth(regions, size, 1.0, IGNORE, margin_px), 2.0, 0.5, threads)
        np.testing.assert_array_equal(read_image(path, 0.5).data, wanted)
    assert sha256 == digest_bytes(wanted.tobytes())
    assert stored.pixels == np.bincount(wanted.ravel(), minlength=4).tolist()
    # Three pixels wide, so that it has at most 1,000.
    assert (stored.overview.mpp, stored.overview.first_centre_um) == (6, 3)
    for row, column in np.ndindex(stored.overview.data.shape):
        part = wanted[3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        code = TUMOR if (part == TUMOR).any() else IGNORE if (part >= IGNORE).any() else NORMAL
        assert stored.overview.data[row, column] == code


def test_the_geojson_gives_the_same_truth(tissue_slide: Path, tmp_path: Path) -> None:
    """The GeoJSON export, read as an annotation, gives the same truth."""
    pyramid = tissue_slide / "pyramid.ome.zarr"
    rings = [
        ("_0", square(300, 300, 400)),
        ("_2", square(400, 400, 100)),
        ("Ignore*", square(900, 300, 200)),
        ("Ignore*", square(600, 600, 200)),
    ]
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, annotation in (
        (first, write_asap(tmp_path / "a.xml", [*rings, ("_1", square(1200, 800, 50))])),
        (second, first / "t.geojson"),
    ):
        truth.run("s1", truth.Inputs(pyramid, annotation), outputs(folder), TruthRun(), label="tumor")
    collection = json.loads((first / "t.geojson").read_text())
    names = [one["properties"]["classification"]["name"] for one in collection["features"]]
    assert names == ["Tumor", "Tumor", "Ignore*", "Ignore*"]
    holes = [len(one["geometry"]["coordinates"]) - 1 for one in collection["features"]]
    assert sorted(holes) == [0, 0, 0, 1]
    found = [read_image(folder / "t.ome.zarr", 0.5).data for folder in (first, second)]
    assert set(np.unique(found[0])) == {NORMAL, TUMOR, IGNORE, TUMOR | IGNORE}
    assert np.array_equal(*found)
