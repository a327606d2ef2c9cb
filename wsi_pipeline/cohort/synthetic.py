"""A small cohort of synthetic slides, to run the whole pipeline without patient data.

Tumour differs from normal tissue in the size, density and arrangement of its nuclei. The fraction of the area that
nuclei cover, and therefore the mean colour, is the same, so that a colour threshold cannot separate them. Stain vectors
are those of Ruifrok and Johnston (Anal. Quant. Cytol. Histol. 23, 2001).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyvips
import shapely
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage
from shapely import affinity
from shapely.geometry.base import BaseGeometry

from wsi_pipeline.cohort.sheet import COLUMNS
from wsi_pipeline.geometry import Size
from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.progress_bar import track

MPP = 0.5
SIZE = Size(4096, 3072)
SEED = 20161101

HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
EOSIN = np.array([0.07, 0.99, 0.11], np.float32)
GLASS = 243.0

# Both types of nuclei cover 15 % of the tissue: pi r² x density.
NORMAL_RADIUS_UM, TUMOR_RADIUS_UM = 3.1, 5.6
NUCLEAR_SHARE = 0.15

_BAND_PX = 128

Gray = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SlideSpec:
    """One slide of the cohort, and the special cases that it covers."""

    slide: str
    split: str
    centre: str
    lesions: int = 0
    cut_out: bool = False
    unannotated: bool = False
    pen: bool = False
    no_mpp: bool = False

    @property
    def label(self) -> str:
        return "tumor" if self.lesions else "normal"


SLIDE_SPECS = (
    SlideSpec("synthetic-normal-01", "train", "north"),
    SlideSpec("synthetic-normal-02", "train", "south"),
    SlideSpec("synthetic-normal-03", "train", "north"),
    SlideSpec("synthetic-tumor-01", "train", "south", lesions=1, cut_out=True),
    SlideSpec("synthetic-tumor-02", "train", "north", lesions=2),
    SlideSpec("synthetic-tumor-03", "train", "south", lesions=2, unannotated=True),
    SlideSpec("synthetic-normal-04", "validation", "south"),
    SlideSpec("synthetic-tumor-04", "validation", "north", lesions=2),
    SlideSpec("synthetic-normal-05", "test", "north", pen=True),
    SlideSpec("synthetic-normal-06", "test", "south"),
    SlideSpec("synthetic-tumor-05", "test", "south", lesions=1, no_mpp=True),
    SlideSpec("synthetic-tumor-06", "test", "north", lesions=2, cut_out=True),
)


def write_cohort(folder: Path, plans: Sequence[SlideSpec] = SLIDE_SPECS, size: Size = SIZE, processes: int = 2) -> Path:
    """Write slides, annotations and `slides.tsv` into `folder`; returns the path of the sheet.

    Equal arguments give equal pixels. Paths in the sheet start with `folder` as given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Not fork: forked processes inherit the threads of libvips in an undefined state.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        drawn = pool.map(_write_slide, [folder] * len(plans), plans, [size] * len(plans))
        rows = list(track(drawn, "slides", len(plans)))
    sheet = folder / "slides.tsv"
    with atomic_output(sheet) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        file.write("# Synthetic slides, drawn by wsi-pipeline demo-cohort.\n")
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return sheet


def _write_slide(folder: Path, plan: SlideSpec, size: Size) -> dict[str, str]:
    rng = np.random.default_rng([SEED, *plan.slide.encode()])
    tissue, edge = tissue_shape(rng, size)
    lesions = place_lesions(rng, plan, edge, size)
    holes = [affinity.scale(lesion, 0.4, 0.4) for lesion in lesions[:1]] if plan.cut_out else []
    tumor = shapely.union_all(lesions) - shapely.union_all(holes)
    rgb = draw_slide(rng, plan, tissue, tumor)
    path = folder / f"{plan.slide}.tif"
    save_pyramid(path, rgb, None if plan.no_mpp else MPP)
    row = {
        "slide": plan.slide,
        "path": str(path),
        "split": plan.split,
        "label": plan.label,
        "exhaustive": "no" if plan.unannotated else "yes",
        "patient": f"patient-{plan.slide.removeprefix('synthetic-')}",
        "centre": plan.centre,
        "mpp": str(MPP) if plan.no_mpp else "",
    }
    if lesions:
        annotation = folder / f"{plan.slide}.xml"
        # A slide that is not exhaustively annotated lacks the outline of its last lesion.
        outlined = lesions[:-1] if plan.unannotated else lesions
        write_asap(annotation, outlined, holes)
        row["annotation"] = str(annotation)
    return row


def _noise(rng: np.random.Generator, size: Size, scale_px: int) -> Gray:
    """Smooth noise with features of about `scale_px`, mean 0, standard deviation 1."""
    shape = (size.height // scale_px + 3, size.width // scale_px + 3)
    coarse = Pillow.fromarray(rng.standard_normal(shape).astype(np.float32))
    smooth = np.asarray(coarse.resize((size.width, size.height), Pillow.Resampling.BICUBIC))
    result: Gray = (smooth - smooth.mean()) / smooth.std()
    return result


def tissue_shape(rng: np.random.Generator, size: Size) -> tuple[Gray, BaseGeometry]:
    """Tissue coverage (h, w) float32, 0 to 1, and an ellipse inside the tissue, in pixels."""
    y, x = np.ogrid[: size.height, : size.width]
    cx, cy = size.width * rng.uniform(0.46, 0.54), size.height * rng.uniform(0.46, 0.54)
    rx, ry = size.width * rng.uniform(0.36, 0.42), size.height * rng.uniform(0.36, 0.42)
    distance = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2).astype(np.float32)
    wobble = 0.06 * _noise(rng, size, min(size.width, size.height) // 6)
    coverage = np.clip((1.0 - distance + wobble) * 40, 0, 1)
    inner = affinity.translate(affinity.scale(shapely.Point(0, 0).buffer(1, 64), rx * 0.8, ry * 0.8), cx, cy)
    return coverage.astype(np.float32), inner


def place_lesions(rng: np.random.Generator, plan: SlideSpec, inner: BaseGeometry, size: Size) -> list[BaseGeometry]:
    """Irregular tumour outlines inside the ellipse `inner`, at least 100 um apart, in pixels."""
    left, top, right, bottom = inner.bounds
    radius = (0.19 if plan.lesions == 1 else 0.12) * size.height
    step = (right - left) / max(plan.lesions, 1)
    gap_px = 100 / MPP
    for _ in range(1000):
        lesions: list[BaseGeometry] = []
        for number in range(plan.lesions):
            angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
            wobble = 0.12 * np.sin(3 * angles + rng.uniform(0, 6)) + 0.08 * np.sin(5 * angles + rng.uniform(0, 6))
            r = radius * (1 + wobble)
            x, y = left + step * (number + rng.uniform(0, 1)), rng.uniform(top, bottom)
            points = np.stack([x + 1.15 * r * np.cos(angles), y + r * np.sin(angles)], axis=1)
            lesions.append(shapely.Polygon(points.round(1)))
        apart = all(a.distance(b) > gap_px for a, b in combinations(lesions, 2))
        if apart and all(inner.contains(lesion) for lesion in lesions):
            return lesions
    raise ValueError(f"{plan.slide}: {plan.lesions} lesions do not fit into {size}")


def draw_slide(rng: np.random.Generator, plan: SlideSpec, tissue: Gray, tumor: BaseGeometry) -> NDArray[np.uint8]:
    """The slide's pixels, (h, w, 3) uint8."""
    size = Size(tissue.shape[1], tissue.shape[0])
    nuclei = np.zeros_like(tissue)
    for is_tumor in (False, True):
        centres = nuclear_centres(rng, size, is_tumor)
        inside = shapely.contains_xy(tumor, centres[:, 0], centres[:, 1]) == is_tumor
        x, y = centres[inside].astype(int).T
        on_tissue = tissue[y, x] > 0.9
        draw_nuclei(rng, nuclei, x[on_tissue], y[on_tissue], is_tumor)
    fibres = np.clip(1 + 0.22 * _noise(rng, size, 12) + 0.12 * _noise(rng, size, 48), 0.2, 2)
    strength = rng.uniform(0.9, 1.1) * (1.0 if plan.centre == "north" else 0.85)
    rgb = np.empty((size.height, size.width, 3), np.uint8)
    for top in range(0, size.height, _BAND_PX):
        band = slice(top, top + _BAND_PX)
        rgb[band] = render(rng, strength, nuclei[band], tissue[band], fibres[band])
    if plan.pen:
        draw_pen(rgb)
    return rgb


def render(rng: np.random.Generator, strength: float, nuclei: Gray, tissue: Gray, fibres: Gray) -> NDArray[np.uint8]:
    """Render a band, (h, w, 3) uint8: haematoxylin in nuclei, eosin in tissue (Beer-Lambert law), and camera noise."""
    haematoxylin = strength * (1.15 * nuclei + 0.1 * tissue)
    eosin = strength * 0.38 * tissue * fibres * (1 - 0.5 * nuclei)
    density = haematoxylin[..., None] * HAEMATOXYLIN + eosin[..., None] * EOSIN
    light = GLASS * np.exp(-density) + 2 * rng.standard_normal(tissue.shape, np.float32)[..., None]
    return np.clip(light + 0.5, 0, 255).astype(np.uint8)


def nuclear_centres(rng: np.random.Generator, size: Size, is_tumor: bool) -> NDArray[np.float64]:
    """Centres of nuclei over the whole slide, (n, 2): x and y in pixels.

    Normal nuclei are spread evenly. Tumour nuclei form dense nests with gaps, at the same mean area fraction.
    """
    radius_px = (TUMOR_RADIUS_UM if is_tumor else NORMAL_RADIUS_UM) / MPP
    crowding = 1.5 if is_tumor else 1.0
    spacing = np.sqrt(np.pi * radius_px**2 / (NUCLEAR_SHARE * crowding))
    x, y = np.meshgrid(np.arange(0, size.width, spacing), np.arange(0, size.height, spacing))
    centres: NDArray[np.float64] = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)
    centres += rng.uniform(-0.33, 0.33, centres.shape) * spacing
    centres = centres[((centres >= 0) & (centres < [size.width - 1, size.height - 1])).all(axis=1)]
    if not is_tumor:
        return centres
    field = _noise(rng, size, round(45 / MPP))
    values = field[centres[:, 1].astype(int), centres[:, 0].astype(int)]
    nests: NDArray[np.float64] = centres[values > np.quantile(field[::8, ::8], 1 - 1 / crowding)]
    return nests


def draw_nuclei(
    rng: np.random.Generator, canvas: Gray, x: NDArray[np.int64], y: NDArray[np.int64], is_tumor: bool
) -> None:
    """Draw nuclei at the given centres, in place."""
    sprites = [_nucleus(rng, is_tumor) for _ in range(48)]
    half = sprites[0].shape[0] // 2
    padded = np.pad(canvas, half)
    for cx, cy, sprite_index in zip(x, y, rng.integers(len(sprites), size=len(x)), strict=True):
        window = padded[cy : cy + 2 * half + 1, cx : cx + 2 * half + 1]
        np.maximum(window, sprites[sprite_index], out=window)
    canvas[...] = padded[half:-half, half:-half]


def _nucleus(rng: np.random.Generator, is_tumor: bool) -> Gray:
    mean, spread, stretch = (TUMOR_RADIUS_UM, 0.16, 1.35) if is_tumor else (NORMAL_RADIUS_UM, 0.06, 1.08)
    half = 20
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    angle, ratio = rng.uniform(0, np.pi), rng.uniform(1, stretch)
    radius = mean / MPP * np.clip(rng.normal(1, spread), 0.6, 1.4)
    u = (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(ratio)
    v = (y * np.cos(angle) - x * np.sin(angle)) * np.sqrt(ratio)
    sharp = np.clip(radius - np.hypot(u, v) + 0.5, 0, 1).astype(np.float32)
    sprite: Gray = ndimage.gaussian_filter(sharp, 0.6)
    return sprite


def draw_pen(rgb: NDArray[np.uint8]) -> None:
    """Draw a stroke of blue pen ink from background onto tissue, in place."""
    height, width, _ = rgb.shape
    t = np.linspace(0, 1, 200)
    x, y = width * (0.04 + 0.2 * t), height * (0.12 + 0.28 * t + 0.05 * np.sin(9 * t))
    line = shapely.LineString(np.stack([x, y], axis=1)).buffer(width * 0.012)
    left, top, right, bottom = (int(v) for v in line.bounds)
    yy, xx = np.mgrid[top : bottom + 1, left : right + 1]
    inside = shapely.contains_xy(line, xx, yy)
    stroke = rgb[top : bottom + 1, left : right + 1]
    stroke[inside] = (stroke[inside] * np.array([0.15, 0.35, 0.75])).astype(np.uint8)


def save_pyramid(path: Path, rgb: NDArray[np.uint8], mpp: float | None) -> None:
    """Write a pyramidal JPEG TIFF that OpenSlide opens; without `mpp` the file has no usable scale."""
    height, width, _ = rgb.shape
    image = pyvips.Image.new_from_memory(rgb.tobytes(), width, height, 3, "uchar").copy(interpretation="srgb")
    resolution = {} if mpp is None else {"xres": 1000 / mpp, "yres": 1000 / mpp, "resunit": "cm"}
    with atomic_output(path) as partial:
        tiles = {"tile": True, "tile_width": 256, "tile_height": 256, "pyramid": True}
        image.tiffsave(str(partial), compression="jpeg", Q=85, **tiles, **resolution)


def write_asap(path: Path, tumor: Sequence[BaseGeometry], cut_out: Sequence[BaseGeometry]) -> None:
    """Write outlines as ASAP XML with Camelyon16's group names."""
    root = ElementTree.Element("ASAP_Annotations")
    annotations = ElementTree.SubElement(root, "Annotations")
    for group, shapes in (("_0", tumor), ("_2", cut_out)):
        for number, shape in enumerate(shapes):
            annotation = ElementTree.SubElement(
                annotations, "Annotation", Name=f"{group}-{number}", Type="Polygon", PartOfGroup=group, Color="#F4FA58"
            )
            coordinates = ElementTree.SubElement(annotation, "Coordinates")
            for order, (x, y) in enumerate(shapely.get_coordinates(shape)[:-1]):
                ElementTree.SubElement(coordinates, "Coordinate", Order=str(order), X=f"{x:.1f}", Y=f"{y:.1f}")
    groups = ElementTree.SubElement(root, "AnnotationGroups")
    for name in ("_0", "_2"):
        ElementTree.SubElement(groups, "Group", Name=name, PartOfGroup="None", Color="#64FE2E")
    ElementTree.indent(root)
    with atomic_output(path) as partial:
        ElementTree.ElementTree(root).write(partial, encoding="utf-8", xml_declaration=True)
