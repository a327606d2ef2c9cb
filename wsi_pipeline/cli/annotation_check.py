"""The command check-annotation: what an annotation file was understood to say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsi_pipeline.stages.arguments import AnnotationOrigin, TissueMethodArg, TissueThresholdArg

if TYPE_CHECKING:
    from wsi_pipeline.masks.annotations import Annotation
    from wsi_pipeline.masks.outlines import Canvas
    from wsi_pipeline.plots.colors import RgbImage

_FINER = 4


def command(
    annotation: Annotated[Path, typer.Argument(help="ASAP, ImageScope or HALO XML, or QuPath GeoJSON.")],
    *,
    slide: Annotated[Path, typer.Option(help="The slide file.")],
    output: Annotated[Path | None, typer.Option(help="PNG to write: the annotation over the slide.")] = None,
    config: Annotated[Path | None, typer.Option(help="Config file (YAML) with the meaning of the groups.")] = None,
    mpp: Annotated[float | None, typer.Option(min=0.05, max=50, help="Scale, where the slide has none.")] = None,
    annotation_origin: AnnotationOrigin = None,
    tissue_method: TissueMethodArg = None,
    tissue_threshold: TissueThresholdArg = None,
) -> None:
    """Report what an annotation says, draw it over its slide, and check that its tumour lies on tissue."""
    from wsi_pipeline.config.loading import load_config, read_yaml
    from wsi_pipeline.masks.annotation_position import canvas_of, check_position, position_tissue, read_overview
    from wsi_pipeline.masks.annotations import read_annotation
    from wsi_pipeline.slides.openslide_reader import SourceSlide

    options = load_config({} if config is None else read_yaml(config)).truth
    source = SourceSlide(slide.name, slide, mpp)
    canvas = canvas_of(source)
    found = read_annotation(slide.name, annotation, options, canvas, annotation_origin)
    overview = read_overview(source)
    source.close()
    # Before the check: a picture shows best why it fails.
    if output is not None:
        _draw(found, canvas, overview, output)
    try:
        tissue = position_tissue(tissue_method, tissue_threshold)
        found = check_position(slide.name, annotation, found, canvas, overview, options.min_on_tissue, tissue)
    finally:
        for line in found.facts.lines():
            print(line)


def _draw(annotation: Annotation, canvas: Canvas, overview: RgbImage, output: Path) -> None:
    """Write the overview with the areas as they are understood, as PNG."""
    from PIL import Image as Pillow

    from wsi_pipeline.geometry import Size
    from wsi_pipeline.io.atomic import atomic_output
    from wsi_pipeline.masks.label_images import NORMAL
    from wsi_pipeline.masks.truth import draw_truth
    from wsi_pipeline.plots.overlays import outlines_over, truth_overlay
    from wsi_pipeline.pyramid.ome_zarr import Image

    height, width, _ = overview.shape
    pixel_px = canvas.size.width / width
    # Finer than the picture, whose pixels some areas are smaller than.
    size = Size(_FINER * width, _FINER * height)
    truth = draw_truth(annotation.regions, size, pixel_px / _FINER, NORMAL).compute()
    overlay = truth_overlay(Image.from_corner(truth, canvas.mpp * pixel_px / _FINER))
    with atomic_output(output) as partial:
        Pillow.fromarray(outlines_over(overview, canvas.mpp * pixel_px, overlay)).save(partial, format="PNG")
