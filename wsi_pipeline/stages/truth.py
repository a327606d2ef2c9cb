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
    FigureArg,
    Geojson,
    Options,
    PyramidArg,
    ReceiptArg,
    Slide,
    Store,
    Synthetic,
    Threads,
)

if TYPE_CHECKING:
    from wsi_pipeline.masks.annotations import Regions

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
        Path | None, typer.Option(help="ASAP XML, ImageScope XML or QuPath GeoJSON.", readable=False)
    ] = None,
    label: Annotated[str | None, typer.Option(help="normal or tumor.")] = None,
    exhaustive: Annotated[bool, typer.Option(help="Whether all tumour is annotated.")] = True,
    options: Options = "{}",
    threads: Threads = 1,
    synthetic: Synthetic = False,
) -> None:
    """Draw the annotations of a slide as a label image: normal, tumour, ignore."""
    run(
        slide,
        Inputs(pyramid, annotation),
        Outputs(store=store, receipt=receipt, picture=picture, geojson=geojson),
        parse_options(TruthRun, options),
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
    label: str | None = None,
    exhaustive: bool = True,
    threads: int = 1,
    synthetic: bool = False,
) -> None:
    """Write the truth of one slide. Raises `AnnotationError` where annotation and label contradict."""
    from wsi_pipeline.io.digests import digest_file
    from wsi_pipeline.masks.annotations import NO_REGIONS, read_annotation
    from wsi_pipeline.masks.truth import background_value, check_label, check_unit, draw_truth, store_truth
    from wsi_pipeline.plots.figures import save_figure, slide_figure
    from wsi_pipeline.plots.overlays import draw_outlines, truth_overlay
    from wsi_pipeline.pyramid.pyramid import Pyramid
    from wsi_pipeline.receipts.base import write_receipt
    from wsi_pipeline.receipts.slides import PixelCounts, TruthReceipt

    pyramid, annotation = Pyramid(inputs.pyramid), inputs.annotation
    regions = NO_REGIONS
    if annotation is not None:
        regions = read_annotation(slide, annotation, options, pyramid.size)
        check_label(slide, annotation, label, regions)
        check_unit(slide, annotation, regions, pyramid)
    background = background_value(label, annotation is not None, exhaustive)
    size, margin_px = pyramid.size_at(options.mpp), options.ignore_margin_um / options.mpp
    truth = draw_truth(regions, size, options.mpp / pyramid.mpp, background, margin_px)
    stored = store_truth(outputs.store, truth, options.mpp, pyramid.mpp, threads)
    title = f"{slide}: tumour red, normal inside green, ignored grey"
    save_figure(
        slide_figure(title, *draw_outlines(pyramid, truth_overlay(stored.overview)), synthetic), outputs.picture
    )
    _write_outlines(outputs.geojson, regions)
    normal, tumor, *ignored = stored.pixels
    tumor_mm2 = float(regions.tumor.area) * pyramid.mpp**2 / 1e6
    write_receipt(
        outputs.receipt,
        TruthReceipt(
            slide=slide,
            label=label,
            exhaustive=exhaustive,
            annotation_sha256=None if annotation is None else digest_file(annotation),
            polygons=regions.polygons,
            tumor_mm2=round(tumor_mm2, 6),
            pixels=PixelCounts(normal=normal, tumor=tumor, ignore=sum(ignored)),
            shape=truth.shape,
            truth_sha256=stored.sha256,
            options=options,
        ),
    )
    share = f", {100 * sum(ignored) / truth.size:.0f} % ignored" if any(ignored) else ""
    log.info("%s: %d polygons, %.3f mm² tumour%s", slide, regions.polygons, tumor_mm2, share)


def _write_outlines(path: Path, regions: Regions) -> None:
    """Write the annotated areas as QuPath GeoJSON."""
    from wsi_pipeline.masks.geojson import feature, polygon_parts, write_features
    from wsi_pipeline.plots.colors import IGNORED_COLOR, TUMOR_COLOR

    # Areas cut out of tumour are holes in it.
    areas = (("Tumor", TUMOR_COLOR, regions.tumor), ("Ignore*", IGNORED_COLOR, regions.ignore))
    write_features(
        path, (feature(polygon, name, color) for name, color, area in areas for polygon in polygon_parts(area))
    )
