"""Annotations of ASAP, ImageScope and HALO by the rules of these programs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.annotations import region, square, write_asap, write_imagescope
from wsi_pipeline.config import TruthOptions
from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.geometry import Size
from wsi_pipeline.masks.annotations import Annotation, read_annotation
from wsi_pipeline.masks.label_images import IGNORE, NORMAL, TUMOR
from wsi_pipeline.masks.outlines import Canvas
from wsi_pipeline.masks.truth import draw_truth

CANVAS = Canvas(Size(1600, 1200), mpp=0.5)
PX = 30


def read(path: Path, canvas: Canvas = CANVAS) -> Annotation:
    return read_annotation("s1", path, TruthOptions(), canvas)


def left_out(found: Annotation) -> dict[str, int]:
    return {left.reason: left.count for left in found.facts.left_out}


def asap(path: Path, *annotations: tuple[str, str, list[tuple[float, float]]], groups: str = "") -> Path:
    """ASAP XML with (type, group, vertices) annotations."""
    text = "".join(
        f'<Annotation Name="a{k}" Type="{kind}" PartOfGroup="{group}"><Coordinates>'
        + "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}"/>' for n, (x, y) in enumerate(ring))
        + "</Coordinates></Annotation>"
        for k, (kind, group, ring) in enumerate(annotations)
    )
    path.write_text(f"<ASAP_Annotations><Annotations>{text}</Annotations>{groups}</ASAP_Annotations>")
    return path


BOX = st.tuples(*(st.integers(0, PX - 4) for _ in range(2)), *(st.integers(1, 20) for _ in range(2)), st.booleans())
LAYER = st.tuples(st.sampled_from(["Tumor", "Exclusion", "Ignore*"]), st.lists(BOX, min_size=1, max_size=4))


@given(st.lists(LAYER, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_negative_regions_belong_to_their_own_layer(
    tmp_path: Path, layers: list[tuple[str, list[tuple[int, int, int, int, bool]]]]
) -> None:
    """Every pixel, against the definition: layer by layer, what is positive there and not negative there."""
    written = [
        (name, [region([(x, y), (x + w, y), (x + w, y + h), (x, y + h)], negative=int(n)) for x, y, w, h, n in boxes])
        for name, boxes in layers
    ]
    found = read(write_imagescope(tmp_path / "a.xml", *written), Canvas(Size(PX, PX), 0.5))
    sets = {name: np.zeros((PX, PX), bool) for name in ("Tumor", "Exclusion", "Ignore*", "removed")}
    for name, boxes in layers:
        inside = np.zeros((2, PX, PX), bool)
        for x, y, w, h, negative in boxes:
            inside[int(negative), y : y + h, x : x + w] = True
        sets[name] |= inside[0] & ~inside[1]
        if name == "Tumor":
            sets["removed"] |= inside[0] & inside[1]
    cut_out = (sets["Tumor"] & sets["Exclusion"]) | (sets["removed"] & ~sets["Tumor"])
    wanted = np.full((PX, PX), 16)
    wanted[cut_out] = NORMAL
    wanted[sets["Tumor"] & ~sets["Exclusion"]] = TUMOR
    wanted[sets["Ignore*"]] = IGNORE
    drawn = draw_truth(found.regions, Size(PX, PX), 1, 16).compute()
    drawn = np.where(drawn & IGNORE, IGNORE, drawn)
    np.testing.assert_array_equal(drawn, wanted)


def test_halo_types_are_words_and_two_corners(tmp_path: Path) -> None:
    """A polygon with a hole, an ellipse and a rectangle; a ruler and a pin have no area."""
    regions = [
        region(square(100, 100, 400), "Polygon", tag="V"),
        region(square(200, 200, 100), "Polygon", negative=1, tag="V"),
        region([(600, 100), (800, 300)], "Ellipse", tag="V"),
        region([(900, 100), (1000, 150)], "Rectangle", tag="V"),
        region([(0, 0), (9, 9)], "Ruler", tag="V"),
        region([(5, 5)], "Pin", tag="V"),
    ]
    path = write_imagescope(tmp_path / "a.xml", ("Tumor", regions)).rename(tmp_path / "a.annotations")
    found = read(path)
    assert found.facts.format == "HALO annotations"
    assert found.regions.tumor.area == pytest.approx(400**2 - 100**2 + math.pi * 100**2 + 100 * 50, rel=0.001)
    assert left_out(found) == {"ruler, no area": 1, "pin, no area": 1}


def test_a_layer_without_a_name_has_that_of_its_description(tmp_path: Path) -> None:
    path = write_imagescope(tmp_path / "a.xml", ("", [region(square(100, 100, 10))]))
    path.write_text(path.read_text().replace('Name="x" Value="y"', 'Name="Description" Value="Tumor"'))
    assert list(read(path).facts.groups) == ["Tumor"]


def test_all_types_of_asap(tmp_path: Path) -> None:
    path = asap(
        tmp_path / "a.xml",
        ("Polygon", "Tumor", square(100, 100, 100)),
        ("Spline", "Tumor", square(300, 100, 100)),
        ("Rectangle", "Tumor", square(500, 100, 100)),
        ("Rectangle", "Tumor", [(700, 100), (800, 200)]),
        ("Dot", "Tumor", [(5, 5)]),
        ("Dot", "Mitosis", [(6, 5)]),
        ("PointSet", "Tumor", [(5, 5), (9, 9), (4, 2)]),
        ("Measurement", "Tumor", [(5, 5), (9, 9)]),
    )
    found = read(path)
    assert found.regions.tumor.area == 4 * 100**2
    facts = {(one.group, one.reason): one.count for one in found.facts.left_out}
    assert facts == {
        ("Mitosis", "Dot, no area"): 1,
        ("Tumor", "Dot, no area"): 1,
        ("Tumor", "PointSet, no area"): 1,
        ("Tumor", "Measurement, no area"): 1,
    }


def test_nested_groups_have_the_meaning_of_the_nearest_known_one(tmp_path: Path) -> None:
    def groups(**parents: str) -> str:
        rows = (f'<Group Name="{name}" PartOfGroup="{parent}"/>' for name, parent in parents.items())
        return f"<AnnotationGroups>{''.join(rows)}</AnnotationGroups>"

    nested = groups(ductal="carcinoma", carcinoma="Tumor", Tumor="None", Exclusion="Tumor")
    drawn = (("Polygon", "ductal", square(100, 100, 100)), ("Polygon", "Exclusion", square(120, 120, 50)))
    found = read(asap(tmp_path / "a.xml", *drawn, groups=nested))
    assert found.regions.tumor.area == 100**2 - 50**2
    assert {name: group.meaning for name, group in found.facts.groups.items()} == {
        "ductal": "tumor",
        "Exclusion": "cut_out",
    }
    with pytest.raises(AnnotationError, match=r"unknown annotation group 'ductal' \(1\)"):
        read(asap(tmp_path / "b.xml", *drawn, groups=groups(ductal="carcinoma", carcinoma="ductal")))


@pytest.mark.parametrize("kind", ["Ellipse", "polygon"])
def test_unknown_types_of_asap_are_errors(tmp_path: Path, kind: str) -> None:
    with pytest.raises(AnnotationError, match=f"annotation 'a0': unknown type '{kind}'"):
        read(asap(tmp_path / "a.xml", (kind, "Tumor", square(100, 100, 100))))


def test_unknown_types_of_imagescope_are_errors(tmp_path: Path) -> None:
    path = write_imagescope(tmp_path / "a.xml", ("Tumor", [region(square(1, 1, 9)), region(square(1, 1, 9), kind=9)]))
    with pytest.raises(AnnotationError, match="region 2 of layer 'Tumor': unknown type '9'"):
        read(path)


def encoded(tmp_path: Path, declared: str, codec: str, name: str = "肿瘤") -> Path:
    path = write_asap(tmp_path / "a.xml", [("Tumor", square(100, 100, 100))])
    text = path.read_text().replace('Name="a0"', f'Name="{name}" Comment="{name * 40_000}"')
    path.write_bytes(f'<?xml version="1.0" encoding="{declared}"?>{text}'.encode(codec))
    return path


@pytest.mark.parametrize(
    ("declared", "codec", "name"),
    [
        ("UTF-8", "utf-8", "肿瘤"),
        ("UTF-8", "utf-8-sig", "肿瘤"),
        ("UTF-16", "utf-16", "肿瘤"),
        ("utf-16", "utf-8", "肿瘤"),  # as .NET declares files that it writes in UTF-8
        ("GB2312", "gb2312", "肿瘤"),
        ("GB2312", "gbk", "腫瘤"),  # characters that GB2312 lacks
        ("GBK", "gbk", "肿瘤"),
        ("GB18030", "gb18030", "肿瘤"),
        ("Big5", "big5", "腫瘤"),
        ("Shift_JIS", "shift_jis", "腫瘍"),
        ("shift_jis", "cp932", "①腫瘍"),
        ("EUC-JP", "euc_jp", "腫瘍"),
        ("EUC-KR", "euc_kr", "종양"),
        ("ISO-8859-1", "latin-1", "Tumörränder"),
        ("windows-1252", "cp1252", "Tumör–Rand"),
        ("windows-1251", "cp1251", "опухоль"),
    ],
)
def test_encodings(tmp_path: Path, declared: str, codec: str, name: str) -> None:
    """Longer than a piece that is read at once, so that characters lie across two pieces."""
    assert read(encoded(tmp_path, declared, codec, name)).regions.tumor.area == 100**2


def test_names_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    text = write_asap(path, [("肿瘤", square(100, 100, 100))]).read_text(encoding="utf-8")
    path.write_bytes(f'<?xml version="1.0" encoding="GB2312"?>{text}'.encode("gb2312"))
    found = read_annotation("s1", path, TruthOptions(tumor_groups=("肿瘤",)), CANVAS)
    assert list(found.facts.groups) == ["肿瘤"]


@pytest.mark.parametrize(
    ("declared", "codec", "message"),
    [
        ("GB2312", "latin-1", "says GB2312, but its bytes are not"),
        ("UTF-8", "latin-1", "says UTF-8, but its bytes are not"),
        ("klingon", "utf-8", "its encoding 'klingon' is not known"),
        ("zip", "utf-8", "its encoding 'zip' is not known"),
    ],
)
def test_wrong_and_unknown_encodings(tmp_path: Path, declared: str, codec: str, message: str) -> None:
    with pytest.raises(AnnotationError) as caught:
        read(encoded(tmp_path, declared, codec, name="Schnürl ü"))
    assert message in str(caught.value)
    assert str(caught.value).endswith("Save it as UTF-8")


def test_entities_are_refused_in_every_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    text = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><ASAP_Annotations>&a;</ASAP_Annotations>'
    for declared, codec in (("GB2312", "gbk"), ("Shift_JIS", "cp932"), ("UTF-16", "utf-16")):
        path.write_bytes(f'<?xml version="1.0" encoding="{declared}"?>{text}'.encode(codec))
        with pytest.raises(AnnotationError, match="refused: the XML declares a DTD or entities"):
            read(path)
