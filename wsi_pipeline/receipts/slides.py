"""Receipts of the stages that work on a slide without a model."""

from __future__ import annotations

from typing import Literal

from wsi_pipeline.config import ConvertRun, NegativesRun, PatchesRun, TissueRun, TruthRun
from wsi_pipeline.config.base import Origin
from wsi_pipeline.receipts.base import Facts, Receipt


class LevelFacts(Facts):
    """A level of a pyramid; sizes in pixels of the level, `tile` is (width, height), a damaged tile is (column, row).

    `tables` is given for copied levels, `compared_tiles` for levels of the source, and the differences (of 0 to 255)
    between the stored pixels and OpenSlide's where compared tiles were encoded.
    """

    width: int
    height: int
    method: Literal["copied", "read", "halved"]
    tile: tuple[int, int]
    tiles: int
    absent_tiles: int
    damaged_tiles: tuple[tuple[int, int], ...]
    tables: Literal["merged", "shared"] | None = None
    compared_tiles: int | None = None
    largest_difference: int | None = None
    mean_difference: float | None = None


class ConvertReceipt(Receipt):
    """The pyramid of a slide; `bounds` is (x, y, width, height) in level-0 pixels.

    `scanned_share` is the share of level 0 within the bounds: outside nothing is decoded, and the store is white.
    """

    slide: str
    source_sha256: str
    source_fingerprint: str
    source_quickhash: str | None
    vendor: str
    objective_power: str | None
    bounds: tuple[int, int, int, int] | None
    scanned_share: float
    mpp: float
    mpp_source: str
    levels: tuple[LevelFacts, ...]
    store_digest: str
    options: ConvertRun


class TissueReceipt(Receipt):
    """The tissue mask of a slide; areas in mm², `shape` is (height, width) in pixels of the mask.

    `replaced_otsu` is Otsu's threshold where that of the glass replaced it, `glass_gray` the grey value of the glass
    where it was looked for and found.
    """

    slide: str
    threshold: float
    replaced_otsu: float | None = None
    glass_gray: int | None = None
    tissue_pixels: int
    tissue_mm2: float
    tissue_share: float
    pen_pixels: int
    shape: tuple[int, int]
    mask_sha256: str
    options: TissueRun


class PixelCounts(Facts):
    """Pixels of a truth image, by value."""

    normal: int
    tumor: int
    ignore: int


Meaning = Literal["tumor", "cut_out", "ignore", "unused"]


class GroupFacts(Facts):
    """A group, layer or class of an annotation: its meaning, its outlines, their area on the slide and off it, mm²."""

    meaning: Meaning
    outlines: int
    mm2: float
    off_slide_mm2: float


class LeftOutFacts(Facts):
    """Objects of an annotation that are not used, and why."""

    group: str
    reason: str
    count: int


class AnnotationFacts(Facts):
    """How an annotation file was understood.

    `origin` is the corner that its coordinates count from, `on_tissue` the share of its tumour that lies on tissue, in
    an overview of the slide; null without tumour.
    """

    format: str
    origin: Origin
    groups: dict[str, GroupFacts]
    left_out: tuple[LeftOutFacts, ...]
    on_tissue: float | None = None

    def lines(self) -> list[str]:
        """The facts as lines of text."""
        lines = [f"{self.format}, coordinates from the corner of the {self.origin}"]
        for name, group in self.groups.items():
            off = f" and {group.off_slide_mm2:.4g} mm² off the slide" if group.off_slide_mm2 else ""
            lines.append(f"taken as {group.meaning}: {group.outlines} of {name!r}, {group.mm2:.4g} mm²{off}")
        lines += [f"left out: {left.count} of {left.group!r} ({left.reason})" for left in self.left_out]
        if self.on_tissue is not None:
            lines.append(f"{100 * self.on_tissue:.0f} % of the annotated tumour lies on tissue")
        return lines


class TruthReceipt(Receipt):
    """The truth image of a slide; `shape` is (height, width), areas are those of the polygons of tumour in mm².

    `annotation_origin` is that of the sheet. `qupath_origin` is the level-0 pixel (x, y) that QuPath counts from.
    """

    slide: str
    label: str | None
    exhaustive: bool
    annotation_sha256: str | None
    annotation_origin: Origin | None = None
    annotation: AnnotationFacts | None = None
    qupath_origin: tuple[int, int] = (0, 0)
    polygons: int
    tumor_mm2: float
    ignored_tumor_mm2: float = 0.0
    pixels: PixelCounts
    shape: tuple[int, int]
    truth_sha256: str
    options: TruthRun


class ClassCounts(Facts):
    """Patches by class."""

    normal: int
    tumor: int


class StainFacts(Facts):
    """Optical densities of haematoxylin and eosin (unit vectors r, g, b), and 99th percentiles of their amounts."""

    vectors: tuple[tuple[float, float, float], tuple[float, float, float]]
    maxima: tuple[float, float]


class PatchStoreReceipt(Receipt):
    """A store of patches of a slide: those that qualified, and those that were drawn from them.

    `factor` is the number of pixels of a patch for each pixel that was read: 1 where nothing is resampled, and above 1
    where the slide is upsampled to the patch's `mpp`.
    """

    slide: str
    size_px: int
    border_px: int
    mpp: float
    factor: float
    candidates: ClassCounts
    drawn: ClassCounts
    stains: StainFacts | None
    store_sha256: str
    index_sha256: str
    options: PatchesRun


class PatchesReceipt(PatchStoreReceipt):
    """The training patches of a slide; `grid` is (columns, rows) of the positions they were drawn from."""

    grid: tuple[int, int]


class NegativesReceipt(PatchStoreReceipt):
    """Hard normal patches of a slide, drawn by the scores of the model with the weights `model_sha256`."""

    model_sha256: str
    options: NegativesRun
