"""Stage truth: the truth image of a slide, 0 normal, 1 tumour, 2 ignored, 3 ignored tumour.

Pixels of unknown class are "ignore": everything outside the annotations of a slide that is not annotated exhaustively,
and the whole of a slide with no annotation and a label other than normal. An option ignores a band along the borders of
tumour.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_pipeline.config import TruthRun
from wsi_pipeline.config.loading import parse_options
from wsi_pipeline.stages.arguments import (
    AnnotationOrigin,
    FigureArg,
    Geojson,
    Options,
    PyramidArg,
    ReceiptArg,
    Slide,
    Store,
    Synthetic,
    Threads,
    TissueMethodArg,
    TissueThresholdArg,
)

if TYPE_CHECKING:
    from wsi_pipeline.config import TissueOptions
    from wsi_pipeline.config.base import Origin
    from wsi_pipeline.masks.annotations import Annotation, Regions
    from wsi_pipeline.pyramid.ome_zarr import Image
    from wsi_pipeline.pyramid.pyramid import Pyramid

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inputs:
    pyramid: Path
    annotation: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """`picture` is a PNG; a PDF is written beside it. `geojson` has the annotation as it was understood."""

    store: Path
    receipt: Path
    picture: Path
    geojson: Path


def command(
    *,
    pyramid: PyramidArg,
    slide: Slide,
    store: Store,
    receipt: ReceiptArg,
    picture: FigureArg,
    geojson: Geojson,
    annotation: Annotated[
        Path | None, typer.Option(help="ASAP, ImageScope or HALO XML, or QuPath GeoJSON.", readable=False)
    ] = None,
    annotation_origin: AnnotationOrigin = None,
    tissue_method: TissueMethodArg = None,
    tissue_threshold: TissueThresholdArg = None,
    label: Annotated[str | None, typer.Option(help="normal or tumor.")] = None,
    exhaustive: Annotated[bool, typer.Option(help="Whether all tumour is annotated.")] = True,
    options: Options = "{}",
    threads: Threads = 1,
    synthetic: Synthetic = False,
) -> None:
    """Draw the annotations of a slide as a label image: normal, tumour, ignore."""
    from wsi_pipeline.masks.annotation_position import position_tissue

    run(
        slide,
        Inputs(pyramid, annotation),
        Outputs(store=store, receipt=receipt, picture=picture, geojson=geojson),
        parse_options(TruthRun, options),
        origin=annotation_origin,
        tissue=position_tissue(tissue_method, tissue_threshold),
        label=label,
        exhaustive=exhaustive,
        threads=threads,
        synthetic=synthetic,
    )


def run(
    slide: str,
    inputs: Inputs,
    outputs: Outputs,
    options: TruthRun,
    *,
    origin: Origin | None = None,
    tissue: TissueOptions | None = None,
    label: str | None = None,
    exhaustive: bool = True,
    threads: int = 1,
    synthetic: bool = False,
) -> None:
    """Write the truth of one slide; `origin` is what the annotation counts from, by default that of its format.

    `tissue` says how the tissue is found on which tumour is expected; by default from the slide's glass.
    Raises `AnnotationError` where annotation and label contradict, and where annotated tumour does not lie on tissue.
    """
    from wsi_pipeline.io.digests import digest_file
    from wsi_pipeline.masks.annotations import NO_REGIONS
    from wsi_pipeline.masks.truth import background_value, draw_truth, store_truth
    from wsi_pipeline.pyramid.pyramid import Pyramid
    from wsi_pipeline.receipts.base import write_receipt
    from wsi_pipeline.receipts.slides import PixelCounts, TruthReceipt

    pyramid = Pyramid(inputs.pyramid)
    annotation = _read_annotation(slide, inputs.annotation, options, pyramid, origin=origin, tissue=tissue, label=label)
    regions = NO_REGIONS if annotation is None else annotation.regions
    background = background_value(label, annotation is not None, exhaustive)
    size, margin_px = pyramid.size_at(options.mpp), options.ignore_margin_um / options.mpp
    truth = draw_truth(regions, size, options.mpp / pyramid.mpp, background, margin_px)
    stored, truth_sha256 = store_truth(outputs.store, truth, options.mpp, pyramid.mpp, threads)
    _save_picture(slide, pyramid, stored.overview, outputs.picture, synthetic)
    qupath_origin = (pyramid.bounds.x, pyramid.bounds.y) if pyramid.bounds else (0, 0)
    _write_outlines(outputs.geojson, regions, qupath_origin)
    normal, tumor, *ignored = stored.pixels
    tumor_mm2, ignored_tumor_mm2 = _tumor_mm2(regions, pyramid.mpp)
    write_receipt(
        outputs.receipt,
        TruthReceipt(
            slide=slide,
            label=label,
            exhaustive=exhaustive,
            annotation_sha256=None if inputs.annotation is None else digest_file(inputs.annotation),
            annotation_origin=origin,
            annotation=None if annotation is None else annotation.facts,
            qupath_origin=qupath_origin,
            polygons=regions.polygons,
            tumor_mm2=tumor_mm2,
            ignored_tumor_mm2=ignored_tumor_mm2,
            pixels=PixelCounts(normal=normal, tumor=tumor, ignore=sum(ignored)),
            shape=truth.shape,
            truth_sha256=truth_sha256,
            options=options,
        ),
    )
    share = f", {100 * sum(ignored) / truth.size:.0f} % ignored" if any(ignored) else ""
    log.info("%s: %d polygons, %.3f mm² tumour%s", slide, regions.polygons, tumor_mm2, share)


def _read_annotation(
    slide: str,
    path: Path | None,
    options: TruthRun,
    pyramid: Pyramid,
    *,
    origin: Origin | None,
    tissue: TissueOptions | None,
    label: str | None,
) -> Annotation | None:
    """The annotation, if there is one, which is checked and reported."""
    from wsi_pipeline.masks.annotation_position import OVERVIEW_PX, check_position
    from wsi_pipeline.masks.annotations import read_annotation
    from wsi_pipeline.masks.outlines import Canvas
    from wsi_pipeline.masks.truth import check_label

    if path is None:
        return None
    downsamples = tuple(mpp / pyramid.mpp for mpp in pyramid.mpps)
    canvas = Canvas(pyramid.size, pyramid.mpp, downsamples, pyramid.bounds)
    annotation = read_annotation(slide, path, options, canvas, origin)
    overview, _ = pyramid.thumbnail(OVERVIEW_PX)
    try:
        annotation = check_position(slide, path, annotation, canvas, overview, options.min_on_tissue, tissue)
        check_label(slide, path, label, annotation.regions)
    finally:
        for line in annotation.facts.lines():
            log.info("%s: %s", slide, line)
    return annotation


def _save_picture(slide: str, pyramid: Pyramid, truth: Image, path: Path, synthetic: bool) -> None:
    from wsi_pipeline.plots.figures import save_figure, slide_figure
    from wsi_pipeline.plots.overlays import draw_outlines, truth_overlay

    picture = draw_outlines(pyramid, truth_overlay(truth))
    save_figure(slide_figure(f"{slide}: tumour red, normal inside green, ignored grey", *picture, synthetic), path)


def _tumor_mm2(regions: Regions, mpp: float) -> tuple[float, float]:
    """Areas in mm²: of tumour that is not ignored, and of tumour that is."""
    ignored = float((regions.tumor & regions.ignore).area)
    counted = float(regions.tumor.area) - ignored
    return round(counted * mpp**2 / 1e6, 6), round(ignored * mpp**2 / 1e6, 6)


def _write_outlines(path: Path, regions: Regions, origin: tuple[int, int]) -> None:
    """Write the annotated areas as QuPath GeoJSON."""
    from wsi_pipeline.masks.geojson import feature, polygon_parts, write_features
    from wsi_pipeline.plots.colors import IGNORED_COLOR, TUMOR_COLOR

    # Areas cut out of tumour are holes in it.
    areas = (("Tumor", TUMOR_COLOR, regions.tumor), ("Ignore*", IGNORED_COLOR, regions.ignore))
    write_features(
        path, (feature(polygon, name, color) for name, color, area in areas for polygon in polygon_parts(area)), origin
    )
