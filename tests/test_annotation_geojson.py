"""GeoJSON by QuPath's object model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.annotations import feature, polygon, square, write_geojson
from wsi_pipeline.config import TruthOptions
from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.geometry import Size
from wsi_pipeline.masks.annotations import Annotation, read_annotation
from wsi_pipeline.masks.outlines import Canvas

CANVAS = Canvas(Size(1600, 1200), mpp=0.5)


def read(path: Path, **options: Any) -> Annotation:
    return read_annotation("s1", path, TruthOptions(**options), CANVAS)


def left_out(found: Annotation) -> dict[tuple[str, str], int]:
    return {(left.group, left.reason): left.count for left in found.facts.left_out}


def typed(x: float, **kind: Any) -> dict[str, Any]:
    """An object of class Tumor with an area of 100 px, whose type is said as QuPath of one version does."""
    found = feature(polygon(square(x, 10, 10)), "Tumor")
    del found["properties"]["objectType"]
    for key, value in kind.items():
        (found if key == "id" else found["properties"])[key] = value
    return found


@pytest.mark.parametrize(
    ("key", "annotation", "others"),
    [
        ("id", "PathAnnotationObject", ["PathDetectionObject", "PathCellObject", "PathTileObject", "TMACoreObject"]),
        ("object_type", "annotation", ["detection", "cell", "tile", "tma_core", "root"]),
        ("objectType", "annotation", ["detection", "cell", "tile", "tmaCore", "root"]),
    ],
)
def test_only_annotations_are_annotations(tmp_path: Path, key: str, annotation: str, others: list[str]) -> None:
    """QuPath 0.2 said the type in the id, 0.3 in object_type, later versions in objectType."""
    objects = [typed(20.0 * k, **{key: kind}) for k, kind in enumerate([annotation, *others])]
    found = read(write_geojson(tmp_path / "a.geojson", *objects))
    assert found.regions.tumor.area == 100
    assert sum(left_out(found).values()) == len(others)
    assert all(reason.endswith("no annotation") for _, reason in left_out(found))


def test_objects_of_no_known_type_are_annotations(tmp_path: Path) -> None:
    """As QuPath reads GeoJSON of other programs."""
    uuid = typed(0, id="f4410544-50e2-4e20-b346-3037c71d8b63")
    bare = {"type": "Feature", "geometry": polygon(square(100, 10, 10)), "properties": {"classification": "Tumor"}}
    found = read(write_geojson(tmp_path / "a.geojson", uuid, bare, typed(50, objectType="something")))
    assert found.regions.tumor.area == 300


def test_child_objects_are_read_at_every_depth(tmp_path: Path) -> None:
    deepest = feature(polygon(square(140, 140, 20)), "Ignore*")
    cell = feature(polygon(square(300, 300, 9)), "Tumor", objectType="cell", childObjects=[deepest])
    inner = feature(polygon(square(120, 120, 100)), "Exclusion", childObjects=[cell])
    outer = feature(polygon(square(100, 100, 400)), "Tumor", childObjects=[inner])
    beside = feature(polygon(square(700, 100, 50)), "Tumor")
    beside["childObjects"] = [feature(polygon(square(800, 100, 50)), "Tumor")]
    found = read(write_geojson(tmp_path / "a.geojson", outer, beside))
    assert {name: group.outlines for name, group in found.facts.groups.items()} == {
        "Exclusion": 1,
        "Ignore*": 1,
        "Tumor": 3,
    }
    assert found.regions.tumor.area == 400**2 - 100**2 + 2 * 50**2
    assert found.regions.ignore.area == 20**2
    assert left_out(found) == {("Tumor", "cell, no annotation"): 1}


def test_deeply_nested_objects_are_read(tmp_path: Path) -> None:
    nested = feature(polygon(square(0, 0, 10)), "Tumor")
    for _ in range(300):
        nested = feature(polygon(square(0, 0, 10)), "Tumor", childObjects=[nested])
    assert read(write_geojson(tmp_path / "a.geojson", nested)).regions.polygons == 301


@pytest.mark.parametrize(
    ("classification", "group"),
    [
        ({"name": "Tumor", "colorRGB": -3670016}, "Tumor"),
        ({"names": ["Tumor", "Positive"], "color": [250, 62, 62]}, "Tumor: Positive"),
        ({"names": ["Tumor"]}, "Tumor"),
        ("Tumor: Positive", "Tumor: Positive"),
        ({"name": None}, ""),
        (None, ""),
    ],
)
def test_names_of_classes(tmp_path: Path, classification: Any, group: str) -> None:
    path = write_geojson(
        tmp_path / "a.geojson", feature(polygon(square(0, 0, 10)), None, classification=classification)
    )
    assert list(read(path, tumor_groups=(group,)).facts.groups) == [group]


def test_classes_of_one_file_have_their_own_meaning(tmp_path: Path) -> None:
    """All unknown classes are named at once; unused ones are left out, and said to be."""
    path = write_geojson(
        tmp_path / "a.geojson",
        feature(polygon(square(100, 100, 100)), "Tumor"),
        feature(polygon(square(300, 100, 100)), "Necrosis"),
        feature(polygon(square(0, 0, 900)), "Region*"),
        feature(polygon(square(0, 0, 900)), None),
        feature(polygon(square(10, 10, 900)), "Region*"),
    )
    with pytest.raises(
        AnnotationError, match=r"unknown annotation groups '' \(1\), 'Necrosis' \(1\), 'Region\*' \(2\)"
    ):
        read(path)
    found = read(path, ignore_groups=("Necrosis",), unused_groups=("Region*", ""))
    assert (found.regions.tumor.area, found.regions.ignore.area) == (100**2, 100**2)
    assert left_out(found) == {
        ("Region*", "a group of truth.unused_groups"): 2,
        ("", "a group of truth.unused_groups"): 1,
    }
    assert found.facts.groups["Tumor"].mm2 == pytest.approx(0.0025)


def test_geometries_without_area_are_left_out_and_said_to_be(tmp_path: Path) -> None:
    line = {"type": "LineString", "coordinates": [[5, 5], [9, 9]]}
    path = write_geojson(
        tmp_path / "a.geojson",
        feature({"type": "MultiPoint", "coordinates": [[5, 5]]}, "Tumor"),
        feature({"type": "GeometryCollection", "geometries": [polygon(square(10, 10, 10)), line, line]}, "Tumor"),
        feature(None, "Tumor"),
        feature(polygon([(1, 1), (5, 5), (9, 9)]), "Tumor"),
    )
    found = read(path)
    assert found.regions.tumor.area == 100
    assert left_out(found) == {
        ("Tumor", "MultiPoint, no area"): 1,
        ("Tumor", "LineString, no area"): 2,
        ("Tumor", "no geometry, no area"): 1,
        ("Tumor", "no area"): 1,
    }


def test_a_single_feature_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(feature(polygon(square(10, 10, 10)), "Tumor")))
    assert read(path).regions.tumor.area == 100
