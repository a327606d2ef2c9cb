"""Annotation files of each format: valid, unusual and malformed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import shapely

from helpers.annotations import square, write_asap
from wsi_pipeline.config import TruthOptions
from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.geometry import Size
from wsi_pipeline.masks.annotations import Regions, read_annotation

SIZE = Size(1600, 1200)
Ring = list[tuple[float, float]]


def read(path: Path, **options: Any) -> Regions:
    return read_annotation("s1", path, TruthOptions(**options), SIZE)


def feature(geometry: dict[str, Any] | None, group: str | None) -> dict[str, Any]:
    classification = {} if group is None else {"classification": {"name": group, "color": [200, 0, 0]}}
    return {
        "type": "Feature",
        "id": "x",
        "geometry": geometry,
        "properties": {"objectType": "annotation"} | classification,
    }


def polygon(*rings: Ring) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[*map(list, ring), list(ring[0])] for ring in rings]}


def write_geojson(path: Path, *features: dict[str, Any], collection: bool = True) -> Path:
    content = {"type": "FeatureCollection", "features": features} if collection else list(features)
    path.write_text(json.dumps(content))
    return path


def region(ring: Ring, kind: int = 0, negative: int = 0) -> str:
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in ring)
    return f'<Region Id="1" Type="{kind}" NegativeROA="{negative}"><Vertices>{vertices}</Vertices></Region>'


def write_imagescope(path: Path, layers: dict[str, list[str]]) -> Path:
    text = "".join(
        f'<Annotation Id="{k}" Name="{name}"><Attributes><Attribute Name="x" Value="y"/></Attributes>'
        f"<Regions><RegionAttributeHeaders/>{''.join(regions)}</Regions><Plots/></Annotation>"
        for k, (name, regions) in enumerate(layers.items())
    )
    path.write_text(f'<Annotations MicronsPerPixel="0.25">{text}</Annotations>')
    return path


def test_each_format_gives_the_same_regions(tmp_path: Path) -> None:
    tumor, hole, ignored = square(100, 100, 400), square(200, 200, 100), square(350, 350, 300)
    files = [
        write_asap(tmp_path / "a.xml", [("_0", tumor), ("_2", hole), ("Ignore*", ignored)]),
        write_imagescope(
            tmp_path / "b.xml", {"Tumor": [region(tumor), region(hole, negative=1)], "Ignore*": [region(ignored)]}
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
        {
            "Tumor": [
                region([(100, 100), (300, 200)], kind=2),
                region([(400, 100), (500, 150)], kind=1),
                region([(700, 700), (900, 900)], kind=4),
                region([(700, 700), (900, 900), (950, 700)], kind=3),
            ]
        },
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
        write_imagescope(tmp_path / "b.xml", {"Tumor": [region([]), region([], kind=2)], "Empty layer": []}),
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
