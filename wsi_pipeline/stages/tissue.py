"""Stage tissue: a mask of the tissue on a slide."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.config import TissueRun
from wsi_pipeline.config.loading import parse_options
from wsi_pipeline.errors import StoreError
from wsi_pipeline.stages.arguments import FigureArg, Options, PyramidArg, ReceiptArg, Slide, Store, Synthetic, Threads

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inputs:
    pyramid: Path


@dataclass(frozen=True, slots=True)
class Outputs:
    """`picture` is a PNG; a PDF is written beside it."""

    store: Path
    receipt: Path
    picture: Path


def command(
    *,
    pyramid: PyramidArg,
    slide: Slide,
    store: Store,
    receipt: ReceiptArg,
    picture: FigureArg,
    options: Options = "{}",
    threads: Threads = 1,
    synthetic: Synthetic = False,
) -> None:
    """Find the tissue on a slide."""
    outputs = Outputs(store, receipt, picture)
    run(slide, Inputs(pyramid), outputs, parse_options(TissueRun, options), threads=threads, synthetic=synthetic)


def run(
    slide: str, inputs: Inputs, outputs: Outputs, options: TissueRun, *, threads: int = 1, synthetic: bool = False
) -> None:
    """Write the tissue mask of one slide. Raises `StoreError` for a slide without tissue."""
    from wsi_pipeline.io.atomic import atomic_output
    from wsi_pipeline.masks.slide_tissue import find_tissue, store_tissue
    from wsi_pipeline.plots.figures import save_figure, slide_figure
    from wsi_pipeline.plots.overlays import draw_outlines, tissue_overlay
    from wsi_pipeline.pyramid.pyramid import Pyramid
    from wsi_pipeline.receipts.base import write_receipt
    from wsi_pipeline.receipts.slides import TissueReceipt

    pyramid = Pyramid(inputs.pyramid)
    with atomic_output(outputs.store) as partial:
        tissue = find_tissue(pyramid, options, threads, scratch=partial.with_name("features.zarr"))
        stored, mask_sha256 = store_tissue(partial, tissue, pyramid.mpp)
        threshold, pixels, all_pixels = tissue.threshold, stored.pixels[1], math.prod(tissue.shape)
        if not pixels:
            inked = f", {100 * tissue.ink_pixels / all_pixels:.0f} % of the slide are taken for pen marks"
            how = f"by {options.method} with the threshold {threshold.value:g}"
            raise StoreError(
                f"slide {slide}: {inputs.pyramid}: no tissue found {how}{inked if tissue.ink_pixels else ''}",
                remedy="Look at the slide; set the sheet's columns tissue_threshold (0 to 255) or tissue_method for "
                "it, or leave it out with cohort.exclude",
            )
    if threshold.replaced_otsu is not None:
        glass = threshold.glass_gray
        log.warning(
            "%s: Otsu's threshold %g lies within tissue or glass (%s), so %g is used. Look at the picture; the sheet's "
            "column tissue_threshold overrides it",
            slide,
            threshold.replaced_otsu,
            "no glass was found" if glass is None else f"glass has the grey value {glass}",
            threshold.value,
        )
    outline = draw_outlines(pyramid, tissue_overlay(stored.overview))
    save_figure(slide_figure(f"{slide}: tissue blue", *outline, synthetic), outputs.picture)
    area_mm2, share = pixels * options.mpp**2 / 1e6, pixels / all_pixels
    write_receipt(
        outputs.receipt,
        TissueReceipt(
            slide=slide,
            threshold=threshold.value,
            replaced_otsu=threshold.replaced_otsu,
            glass_gray=threshold.glass_gray,
            tissue_pixels=pixels,
            tissue_mm2=round(area_mm2, 6),
            tissue_share=round(share, 6),
            pen_pixels=tissue.ink_pixels,
            shape=tissue.shape,
            mask_sha256=mask_sha256,
            options=options,
        ),
    )
    pen = f", pen marks {100 * tissue.ink_pixels / all_pixels:.1f} %" if tissue.ink_pixels else ""
    log.info("%s: %.2f mm² tissue, %.0f %% of the slide%s", slide, area_mm2, 100 * share, pen)
