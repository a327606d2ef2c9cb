"""Annotation files of each format: valid, unusual and malformed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.annotations import (
    Ring,
    feature,
    polygon,
    region,
    square,
    write_asap,
    write_geojson,
    write_imagescope,
)
from wsi_pipeline.config import TruthOptions
from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.geometry import Size
from wsi_pipeline.masks.annotations import Regions, read_annotation
from wsi_pipeline.masks.outlines import Canvas

CANVAS = Canvas(Size(1600, 1200), mpp=0.5)


def read(path: Path, **options: Any) -> Regions:
    return read_annotation("s1", path, TruthOptions(**options), CANVAS).regions


def test_each_format_gives_the_same_regions(tmp_path: Path) -> None:
    tumor, hole, ignored = square(100, 100, 400), square(200, 200, 100), square(350, 350, 300)
    files = [
        write_asap(tmp_path / "a.xml", [("_0", tumor), ("_2", hole), ("Ignore*", ignored)]),
        write_imagescope(
            tmp_path / "b.xml", ("Tumor", [region(tumor), region(hole, negative=1)]), ("Ignore*", [region(ignored)])
        ),
        write_geojson(
            tmp_path / "c.geojson", feature(polygon(tumor, hole), "Tumor"), feature(polygon(ignored), "Ignore*")
        ),
        write_geojson(
            tmp_path / "d.json",
            feature(
                {
                    "type": "MultiPolygon",
                    "coordinates": [polygon(tumor, hole)["coordinates"], polygon(square(110, 110, 5))["coordinates"]],
                },
                "Tumor",
            ),
            feature(polygon(ignored), "Ignore*"),
            collection=False,
        ),
    ]
    for path in files:
        regions = read(path)
        assert regions.tumor.area == pytest.approx(400**2 - 100**2), path
        assert (regions.tumor & regions.ignore).area == pytest.approx(150**2)
        assert regions.ignore.area == 300**2
        assert not regions.tumor.intersects(shapely.Point(250, 250))
    # A hole is not annotated, whereas a cut-out marks its tissue as normal.
    assert [read(path).cut_out.area for path in files] == [100**2, 100**2, 0, 0]


def test_imagescope_ellipses_and_rectangles_are_regions(tmp_path: Path) -> None:
    path = write_imagescope(
        tmp_path / "a.xml",
        (
            "Tumor",
            [
                region([(100, 100), (300, 200)], kind=2),
                region([(400, 100), (500, 150)], kind=1),
                region([(700, 700), (900, 900)], kind=4),
                region([(700, 700), (900, 900), (950, 700)], kind=3),
            ],
        ),
    )
    regions = read(path)
    assert regions.polygons == 2
    assert regions.tumor.area == pytest.approx(math.pi * 100 * 50 + 100 * 50, rel=0.002)


def test_geometries_without_area_are_skipped(tmp_path: Path) -> None:
    path = write_geojson(
        tmp_path / "a.geojson",
        feature(polygon(square(10, 10, 10)), "Tumor"),
        feature({"type": "Point", "coordinates": [5, 5]}, "Tumor"),
        feature({"type": "LineString", "coordinates": [[5, 5], [9, 9]]}, "Tumor"),
        feature({"type": "Polygon", "coordinates": []}, "Tumor"),
        feature(None, "Tumor"),
        feature({"type": "GeometryCollection", "geometries": [polygon(square(40, 10, 10))]}, "Tumor"),
    )
    assert read(path).tumor.area == 200


def test_annotations_without_vertices_give_no_region(tmp_path: Path) -> None:
    files = [
        write_asap(tmp_path / "a.xml", [("_0", [])]),
        write_imagescope(tmp_path / "b.xml", ("Tumor", [region([]), region([], kind=2)]), ("Empty layer", [])),
        write_geojson(tmp_path / "c.geojson", feature({"type": "Polygon", "coordinates": [[]]}, "Tumor")),
        write_geojson(tmp_path / "d.geojson"),
    ]
    for path in files:
        assert read(path).tumor.is_empty, path


def test_nested_overlapping_and_out_of_bounds_rings(tmp_path: Path) -> None:
    rings = [
        ("_0", square(100, 100, 300)),
        ("_0", square(150, 150, 50)),  # inside another outline: not a hole
        ("_0", square(350, 350, 100)),  # overlaps it
        ("_2", square(120, 300, 50)),
        ("_0", square(130, 310, 10)),  # tumour inside a cut-out: cut out
        ("_0", square(1500, 1100, 400)),  # three corners off the slide
        ("_2", square(800, 800, 50)),  # no tumour to cut it from
        ("_0", [*square(700, 100, 10), (700, 100)]),  # closed by its last vertex
    ]
    regions = read(write_asap(tmp_path / "a.xml", rings))
    assert regions.tumor.area == 300**2 + 100**2 - 50**2 - 50**2 + 100 * 100 + 10**2
    assert regions.cut_out.area == 50**2
    assert regions.tumor.bounds[2:] == (1600, 1200)


def test_coordinates_are_sorted_by_order_and_may_have_decimal_commas(tmp_path: Path) -> None:
    text = "".join(
        f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>'
        for k, x, y in ((2, "20,5", "20,5"), (0, "10,5", "10,5"), (1, "20,5", "10,5"), (10, "10,5", "20,5"))
    )
    path = tmp_path / "a.xml"
    path.write_text(
        f'<ASAP_Annotations><Annotations><Annotation Type="Spline" PartOfGroup="Tumor"><Coordinates>{text}'
        "</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    assert read(path).tumor.area == 100


RING = '[{"geometry": {"type": "Polygon", "coordinates": [[[1, %s], [2, 3], [4, 5]]]}}]'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.geojson", "{", "not JSON (Expecting property name enclosed in double quotes: line 1 column 2"),
        ("a.geojson", "[" * 100_000, "not JSON"),
        ("a.geojson", '{"type": "Topology"}', "not GeoJSON as QuPath writes it"),
        ("a.geojson", "3", "not GeoJSON"),
        ("a.geojson", RING % '"x"', "not GeoJSON"),
        ("a.geojson", RING % "NaN", "not GeoJSON"),
        ("a.geojson", "\udcff", "not JSON"),
        ("a.xml", '<ASAP_Annotations>\n<Annotations>\n<b a="', "not well-formed XML (unclosed token: line 3"),
        ("a.xml", "", "not well-formed XML (no element found: line 1"),
    ],
)
def test_broken_files_are_reported_with_their_location(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(AnnotationError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "slide s1" in str(caught.value)


def test_missing_files_and_unnamed_groups_are_errors(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="cannot be read"):
        read(tmp_path / "no.xml")
    with pytest.raises(AnnotationError, match="cannot be read"):
        read(tmp_path / "no.geojson")
    path = write_geojson(tmp_path / "a.geojson", feature(polygon(square(0, 0, 10)), None))
    with pytest.raises(AnnotationError, match="unknown annotation group ''"):
        read(path)
    assert read(path, tumor_groups=("",)).tumor.area == 100


def winding_numbers(ring: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The winding number of a closed ring around each point, by counting its crossings (Sunday 2001)."""
    found = np.zeros(x.shape, int)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        side = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        found += ((y0 <= y) & (y1 > y) & (side > 0)).astype(int) - ((y0 > y) & (y1 <= y) & (side < 0))
    return found


def turns(count: float, seed: int) -> Ring:
    """A wobbling circle that is drawn `count` times around (800, 600)."""
    rng = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi * count, 400)
    radius = 300 + 12 * np.sin(5 * angle + rng.uniform(0, 6)) + 15 * angle / angle[-1]
    return [(800 + r * np.cos(a), 600 + r * np.sin(a)) for r, a in zip(radius, angle, strict=True)]


BOW_TIE = [(100.0, 100.0), (500.0, 500.0), (500.0, 100.0), (100.0, 500.0)]
# A hole that is drawn in one stroke with its outer border, there and back along the line between them.
ONE_STROKE = [*square(100, 100, 600), (100, 100), (300, 300), (300, 500), (500, 500), (500, 300), (300, 300)]
STAR = [(800 + 500 * math.sin(4 * math.pi * k / 5), 600 + 500 * math.cos(4 * math.pi * k / 5)) for k in range(5)]


@pytest.mark.parametrize("ring", [turns(1.25, 0), turns(2, 1), turns(3.4, 2), BOW_TIE, ONE_STROKE, STAR])
def test_inside_is_where_the_winding_number_is_not_0(tmp_path: Path, ring: Ring) -> None:
    """ASAP's own masks have the same rule."""
    tumor = read(write_asap(tmp_path / "a.xml", [("Tumor", ring)])).tumor
    x, y = np.meshgrid(np.arange(3.17, 1600, 7.3), np.arange(2.39, 1200, 7.1))
    wanted = winding_numbers(np.array(ring), x, y) != 0
    assert wanted.any()
    np.testing.assert_array_equal(shapely.contains_xy(tumor, x, y), wanted)


@given(st.lists(st.tuples(st.integers(0, 39), st.integers(0, 29)), min_size=3, max_size=14))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_ring_is_filled_by_its_winding_number_or_refused(tmp_path: Path, ring: list[tuple[int, int]]) -> None:
    x, y = np.meshgrid(np.arange(40) + 0.313, np.arange(30) + 0.471)
    near = shapely.distance(shapely.LinearRing(ring), shapely.points(x, y)) < 1e-6
    wanted = winding_numbers(np.array(ring), x, y) != 0
    path = write_asap(tmp_path / "a.xml", [("Tumor", [(float(a), float(b)) for a, b in ring])])
    try:
        tumor = read(path).tumor
    except AnnotationError as error:
        assert "crosses itself" in str(error)
        # Refused is only what encloses an area that is not inside.
        assert shapely.polygonize([shapely.node(shapely.LinearRing(ring))]).area > 1.05 * area_inside(ring)
        return
    np.testing.assert_array_equal(shapely.contains_xy(tumor, x, y)[~near], wanted[~near])


def area_inside(ring: list[tuple[int, int]]) -> float:
    """The area of the faces of a ring with a winding number other than 0."""
    faces = shapely.get_parts(shapely.polygonize([shapely.node(shapely.LinearRing(ring))]))
    centres = shapely.point_on_surface(faces)
    inside = winding_numbers(np.array(ring, float), shapely.get_x(centres), shapely.get_y(centres)) != 0
    return float(shapely.area(faces)[inside].sum())


def test_a_ring_that_loses_area_is_an_error(tmp_path: Path) -> None:
    """A band that is traced twice around an island encloses the island, but its winding number there is 0."""
    band = ONE_STROKE[:10] + ONE_STROKE[:10]
    with pytest.raises(AnnotationError, match=r"annotation 'a0' crosses itself so that 11 % of the area"):
        read(write_asap(tmp_path / "a.xml", [("Tumor", band)]))


def test_holes_are_removed_from_rings_that_cross_themselves(tmp_path: Path) -> None:
    path = write_geojson(tmp_path / "a.geojson", feature(polygon(BOW_TIE, square(420, 250, 50)), "Tumor"))
    assert read(path).tumor.area == pytest.approx(400 * 400 / 2 - 50**2)


def test_areas_over_the_border_are_cut_and_reported(tmp_path: Path) -> None:
    """A rectangle 10 px over two borders: three of its four vertices lie off the slide."""
    path = write_asap(tmp_path / "a.xml", [("Tumor", [(800, 600), (1610, 600), (1610, 1210), (800, 1210)])])
    found = read_annotation("s1", path, TruthOptions(), CANVAS)
    assert found.regions.tumor.area == 800 * 600
    facts = found.facts.groups["Tumor"]
    assert facts.mm2 == pytest.approx(800 * 600 * 0.25e-6)
    assert facts.off_slide_mm2 == pytest.approx((810 * 610 - 800 * 600) * 0.25e-6, abs=1e-6)
    assert "and 0.003525 mm² off the slide" in "\n".join(found.facts.lines())
