from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from conftest import square, write_asap
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.annotations import Regions, read_asap
from wsi_pipeline.config import TruthOptions
from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.geometry import Size
from wsi_pipeline.masks import IGNORE, NORMAL, TUMOR
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.rasterize import Edges
from wsi_pipeline.stages import truth
from wsi_pipeline.stages.truth import draw
from wsi_pipeline.store import read_image

SIZE = Size(1600, 1200)


def regions_of(tmp_path: Path, rings: list[tuple[str, list[tuple[float, float]]]]) -> Regions:
    return read_asap("s1", write_asap(tmp_path / "a.xml", rings), TruthOptions(), SIZE)


@given(st.lists(st.tuples(st.floats(-5, 45), st.floats(-5, 35)), min_size=3, max_size=12), st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_a_pixel_is_inside_where_its_centre_is(points: list[tuple[float, float]], band: int) -> None:
    # Vertices off the lattice of pixel centres, where inside and outside would be a matter of convention.
    shape = shapely.make_valid(shapely.Polygon([(round(x, 2) + 0.0013, round(y, 2) + 0.0017) for x, y in points]))
    area = shapely.union_all([g for g in shapely.get_parts(shape) if g.geom_type == "Polygon"])
    edges = Edges(area, 1.0)
    drawn = np.concatenate([edges.fill(row, min(band, 30 - row), 40) for row in range(0, 30, band)])
    x, y = np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5)
    near = shapely.distance(area.boundary, shapely.points(x, y)) < 1e-6 if not area.is_empty else np.zeros_like(drawn)
    wanted = shapely.contains_xy(area, x, y)
    np.testing.assert_array_equal(drawn[~near], wanted[~near])


def test_areas_are_right_without_bias() -> None:
    rng = np.random.default_rng(0)
    drawn = exact = 0.0
    for _ in range(60):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 40))
        radius = rng.uniform(60, 140, 40)
        points = np.stack([200 + radius * np.cos(angle), 200 + radius * np.sin(angle)], axis=1)
        ring = shapely.Polygon(points)
        drawn += Edges(ring, 4.0).fill(0, 100, 100).sum() * 16
        exact += ring.area
    assert drawn == pytest.approx(exact, rel=0.003)


def test_cut_outs_are_normal_and_the_rest_of_tumour_stays(tmp_path: Path) -> None:
    regions = regions_of(tmp_path, [("_0", square(100, 100, 400)), ("_2", square(200, 200, 100))])
    image = draw(regions, Size(100, 75), 16, IGNORE, threads=1)
    assert regions.tumor.area == 400**2 - 100**2
    assert (image == NORMAL).sum() * 256 == pytest.approx(100**2, rel=0.3)
    assert (image == TUMOR).sum() * 256 == pytest.approx(400**2 - 100**2, rel=0.02)
    assert image[0, 0] == IGNORE


@pytest.mark.parametrize("threads", [1, 4])
def test_bands_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    rings = [("_0", square(30 + 250 * k, 40 + 150 * k, 200)) for k in range(5)]
    regions = regions_of(tmp_path, rings)
    whole = draw(regions, Size(400, 300), 4, NORMAL, 1)
    monkeypatch.setattr(truth, "_BAND_PX", 7)
    np.testing.assert_array_equal(draw(regions, Size(400, 300), 4, NORMAL, threads), whole)


def test_awkward_rings_are_defined(tmp_path: Path) -> None:
    bow_tie = [(0.0, 0.0), (100.0, 100.0), (100.0, 0.0), (0.0, 100.0)]
    regions = regions_of(
        tmp_path,
        [
            ("Tumor", bow_tie),
            ("_0", square(200, 0, 100)),
            ("_1", square(250, 0, 100)),  # overlaps the one before
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
def test_three_states(
    tissue_slide: Path, tmp_path: Path, label: str | None, annotated: bool, exhaustive: bool, outside: int
) -> None:
    xml = write_asap(tmp_path / "a.xml", [("_0", square(400, 400, 300))]) if annotated else None
    store = tmp_path / "truth.ome.zarr"
    truth.run(
        "s1", tissue_slide / "pyramid.ome.zarr", store, tmp_path / "truth.json", tmp_path / "truth.png",
        TruthOptions(), annotation=xml, label=label, exhaustive=exhaustive,
    )  # fmt: skip
    image = read_image(store, Pyramid(tissue_slide / "pyramid.ome.zarr").mpp).data
    assert image[0, 0] == outside
    assert (image == TUMOR).any() == annotated
    facts = json.loads((tmp_path / "truth.json").read_text())
    assert facts["tumor_mm2"] == pytest.approx(0.0225 if annotated else 0)


def broken(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "bad.xml"
    path.write_text(text)
    return path


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><ASAP_Annotations>&b;</ASAP_Annotations>'
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><ASAP_Annotations>&a;</ASAP_Annotations>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "refused: the XML declares a DTD or entities"),
        (OUTSIDE, "refused"),
        ("<ASAP_Annotations><Annotations>", "not well-formed XML"),
        ("<other/>", "not an ASAP annotation (root element other)"),
    ],
)
def test_unsafe_and_broken_xml_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        read_asap("s1", broken(tmp_path, text), TruthOptions(), SIZE)
    assert said in str(caught.value)
    assert "slide s1" in str(caught.value)
    assert "bad.xml" in str(caught.value)


def test_unknown_groups_and_annotations_of_other_slides_are_errors(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="unknown annotation group 'Necrosis'"):
        regions_of(tmp_path, [("Necrosis", square(0, 0, 10))])
    with pytest.raises(AnnotationError, match="4 of 4 vertices lie outside"):
        regions_of(tmp_path, [("_0", square(9000, 9000, 100))])
    with pytest.raises(AnnotationError, match="a coordinate is no number"):
        regions_of(tmp_path, [("_0", [("x", 1), (2, 3), (4, 5)])])  # type: ignore[list-item]


@pytest.mark.parametrize(("label", "group"), [("normal", "_0"), ("tumor", "_2")])
def test_label_and_annotation_have_to_agree(tissue_slide: Path, tmp_path: Path, label: str, group: str) -> None:
    xml = write_asap(tmp_path / "a.xml", [(group, square(400, 400, 300))])
    with pytest.raises(AnnotationError, match=f"the sheet's label is {label}"):
        truth.run(
            "s1", tissue_slide / "pyramid.ome.zarr", tmp_path / "t.ome.zarr", tmp_path / "t.json", tmp_path / "t.png",
            TruthOptions(), annotation=xml, label=label,
        )  # fmt: skip
