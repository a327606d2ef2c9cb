"""Interpretation of annotations: tumour, areas cut out of tumour, and areas to ignore."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import shapely
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.config import TruthOptions
from wsi_pipeline.config.base import Origin
from wsi_pipeline.errors import AnnotationError
from wsi_pipeline.geometry import Size
from wsi_pipeline.masks.annotation_formats import read_outlines
from wsi_pipeline.masks.outlines import Canvas, FileContent, LeftOut, Outline, Ring
from wsi_pipeline.receipts.slides import AnnotationFacts, GroupFacts, LeftOutFacts, Meaning

_MAX_LOSS = 0.05
_Areas = list[BaseGeometry]


@dataclass(frozen=True, slots=True)
class Regions:
    """Annotated areas in level-0 pixels, clipped to the slide. Tumour and cut-outs are disjoint; either may be ignored.

    `polygons` counts the outlines used.
    """

    tumor: BaseGeometry
    cut_out: BaseGeometry
    ignore: BaseGeometry
    polygons: int


NO_REGIONS = Regions(shapely.Polygon(), shapely.Polygon(), shapely.Polygon(), 0)


@dataclass(frozen=True, slots=True)
class Annotation:
    """What a file was understood to say; `outlined` is its tumour before it is clipped to the slide.

    `is_origin_given` says that not the file's format decided what its coordinates count from.
    """

    regions: Regions
    outlined: BaseGeometry
    facts: AnnotationFacts
    is_origin_given: bool


def read_annotation(
    slide: str, path: Path, options: TruthOptions, canvas: Canvas, origin: Origin | None = None
) -> Annotation:
    """Read an annotation file; `options` maps group names to their meaning.

    Coordinates count from `origin`, by default from that of the file's format. The outlines of each meaning are
    merged; negative areas are removed from their own layer only, and what they remove from tumour is normal, unless
    another layer has it as tumour. Cut-out areas are removed from all tumour. Holes are
    kept and open rings closed; of rings that cross themselves the inside is where the winding number is not 0. Areas
    outside the slide are cut off.

    Raises `AnnotationError` for malformed or unsafe files, unknown groups, and rings that lose more than 5 % of the
    area that they enclose.
    """
    content = read_outlines(slide, path)
    meanings = _meanings(slide, path, content, options)
    used: Origin = origin or content.origin
    x, y = canvas.corner(used)
    drawn = list[tuple[Outline, BaseGeometry]]()
    for outline in content.outlines:
        if meanings[outline.group] == "unused":
            content.left_out[LeftOut(outline.group, "a group of truth.unused_groups")] += 1
            continue
        area = _area(slide, path, outline)
        if area.is_empty:
            content.left_out[LeftOut(outline.group, "no area")] += 1
        else:
            drawn.append((outline, translate(area, x, y)))
    layers = _Layers(drawn)
    regions, outlined = layers.regions(meanings, canvas.size)
    facts = AnnotationFacts(
        format=content.format,
        origin=used,
        groups=layers.facts(meanings, canvas),
        left_out=tuple(
            LeftOutFacts(group=left.group, reason=left.reason, count=count)
            for left, count in sorted(content.left_out.items(), key=lambda item: (item[0].group, item[0].reason))
        ),
    )
    return Annotation(regions, outlined, facts, origin is not None)


class _Layers:
    """Areas by layer and group: positive ones, and negative ones, which belong to their layer alone."""

    def __init__(self, drawn: Sequence[tuple[Outline, BaseGeometry]]) -> None:
        self._outlines = Counter(outline.group for outline, _ in drawn)
        areas = defaultdict[tuple[int, str], tuple[_Areas, _Areas]](lambda: ([], []))
        for outline, area in drawn:
            areas[outline.layer, outline.group][outline.is_negative].append(area)
        # Each is (group, what remains, what negative areas remove).
        self._layers = list[tuple[str, BaseGeometry, BaseGeometry]]()
        for (_, group), sides in sorted(areas.items()):
            positive, negative = map(shapely.union_all, sides)
            self._layers.append((group, _difference(positive, negative), _polygonal(positive & negative)))

    def facts(self, meanings: Mapping[str, Meaning], canvas: Canvas) -> dict[str, GroupFacts]:
        """Number of outlines and area of each group."""
        found = {}
        for group, outlines in sorted(self._outlines.items()):
            area = shapely.union_all([area for name, area, _ in self._layers if name == group])
            inside = _clipped(area, canvas.size).area
            mm2, off_slide_mm2 = (round(px * canvas.mpp**2 / 1e6, 6) for px in (inside, area.area - inside))
            found[group] = GroupFacts(meaning=meanings[group], outlines=outlines, mm2=mm2, off_slide_mm2=off_slide_mm2)
        return found

    def regions(self, meanings: Mapping[str, Meaning], size: Size) -> tuple[Regions, BaseGeometry]:
        """The regions, clipped to the slide, and the tumour before that and before cut-outs are removed."""

        def united(meaning: Meaning) -> BaseGeometry:
            return shapely.union_all([area for group, area, _ in self._layers if meanings[group] == meaning])

        outlined = united("tumor")
        removed = shapely.union_all([area for group, _, area in self._layers if meanings[group] == "tumor"])
        tumor, cut_out, ignore, normal = (
            _clipped(area, size)
            for area in (outlined, united("cut_out"), united("ignore"), _difference(removed, outlined))
        )
        found = Regions(
            tumor=_difference(tumor, cut_out),
            cut_out=shapely.union_all([_polygonal(tumor & cut_out), normal]),
            ignore=ignore,
            polygons=self._outlines.total(),
        )
        return found, outlined


def _meanings(slide: str, path: Path, content: FileContent, options: TruthOptions) -> dict[str, Meaning]:
    """The meaning of each group with an outline: its own or else that of the nearest group that it is part of."""
    known: dict[str, Meaning] = {
        **dict.fromkeys(options.tumor_groups, "tumor"),
        **dict.fromkeys(options.cutout_groups, "cut_out"),
        **dict.fromkeys(options.ignore_groups, "ignore"),
        **dict.fromkeys(options.unused_groups, "unused"),
    }
    found: dict[str, Meaning] = {}
    unknown = dict[str, int]()
    for outline in content.outlines:
        name, passed = outline.group, set[str]()
        while name not in known and name in content.parents and name not in passed:
            passed.add(name)
            name = content.parents[name]
        if name in known:
            found[outline.group] = known[name]
        else:
            unknown[outline.group] = unknown.get(outline.group, 0) + 1
    if unknown:
        groups = ", ".join(f"{group!r} ({count})" for group, count in sorted(unknown.items()))
        raise AnnotationError(
            slide,
            path,
            f"unknown annotation group{'s' * (len(unknown) > 1)} {groups}",
            remedy=f"Say in the config's truth section what it means (known: {', '.join(known)})",
        )
    return found


def _area(slide: str, path: Path, outline: Outline) -> BaseGeometry:
    """The area of an outline; empty where its ring has fewer than three vertices, or no area."""
    rings = [ring for ring in outline.rings if len(ring) > 2]
    if not rings or len(outline.rings[0]) < 3:
        return shapely.Polygon()
    whole = shapely.Polygon(rings[0], rings[1:])
    if whole.is_valid:
        return whole
    shell, *holes = (_filled(ring) for ring in rings)
    lost = _lost_share(rings[0], shell)
    if lost > _MAX_LOSS:
        raise AnnotationError(
            slide,
            path,
            f"{outline.name} crosses itself so that {100 * lost:.0f} % of the area that it encloses are not inside",
            remedy="Draw it again, without crossings",
        )
    return _difference(shell, shapely.union_all(holes))


def _filled(ring: Ring) -> BaseGeometry:
    """The inside of a ring by the non-zero rule: where its winding number is not 0."""
    return _polygonal(shapely.make_valid(shapely.Polygon(ring), method="structure"))


def _lost_share(ring: Ring, filled: BaseGeometry) -> float:
    """How much smaller `filled` is than the area that a ring encloses, as a share of it.

    The area between the crossings of the ring would count a hole that is drawn in one stroke with its outer border, and
    the signed area would count twice what is traced twice: the smaller one is meant.
    """
    signed = shapely.Polygon(ring)
    faces = shapely.polygonize([shapely.node(signed.exterior)])
    enclosed = min(float(signed.area), float(faces.area))
    return 1 - float(filled.area) / enclosed if enclosed > 0 else 0.0


def _clipped(area: BaseGeometry, size: Size) -> BaseGeometry:
    slide = shapely.box(0, 0, size.width, size.height)
    return area if slide.contains(shapely.box(*area.bounds)) else _polygonal(shapely.intersection(area, slide))


def _difference(area: BaseGeometry, other: BaseGeometry) -> BaseGeometry:
    # A difference with an empty geometry takes GEOS as long as any other.
    return area if other.is_empty else _polygonal(area - other)


def _polygonal(geometry: BaseGeometry) -> BaseGeometry:
    """The polygons of a geometry, without the lines and points that repairs and overlays leave behind."""
    if geometry.geom_type in ("Polygon", "MultiPolygon"):
        return geometry
    parts: Iterable[BaseGeometry] = shapely.get_parts(shapely.get_parts(geometry))
    return shapely.union_all([part for part in parts if part.geom_type == "Polygon" and part.area > 0])
