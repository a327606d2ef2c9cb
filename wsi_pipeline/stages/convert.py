"""Stage convert: a slide as a sharded OME-Zarr pyramid."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from wsi_pipeline.config import ConvertRun
from wsi_pipeline.config.loading import parse_options
from wsi_pipeline.errors import SlideError
from wsi_pipeline.io.atomic import remove_partial_outputs
from wsi_pipeline.slides.crash_isolation import CrashError, run_isolated
from wsi_pipeline.stages.arguments import Options, ReceiptArg, Slide, Store, Threads

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inputs:
    source: Path


@dataclass(frozen=True, slots=True)
class Outputs:
    """`overview` is a store of the coarse levels alone, not written where None."""

    store: Path
    receipt: Path
    overview: Path | None = None


def command(
    *,
    source: Annotated[Path, typer.Argument(help="The slide file.", readable=False)],
    slide: Slide,
    store: Store,
    receipt: ReceiptArg,
    mpp: Annotated[float | None, typer.Option(help="Scale in um per pixel, instead of the slide's own.")] = None,
    verify: Annotated[
        Literal["sample", "all"] | None, typer.Option(help="Tiles to compare with OpenSlide's pixels.")
    ] = None,
    overview: Annotated[Path | None, typer.Option(help="OME-Zarr store to write of the coarse levels alone.")] = None,
    options: Options = "{}",
    threads: Threads = 1,
) -> None:
    """Convert a slide to an OME-Zarr pyramid."""
    inputs = Inputs(source)
    outputs = Outputs(store, receipt, overview)
    parsed = parse_options(ConvertRun, options)
    if verify is not None:
        parsed = parsed.model_copy(update={"verify": verify})
    try:
        code = run_isolated(lambda: run(slide, inputs, outputs, parsed, mpp=mpp, threads=threads))
    except CrashError as crash:
        remove_partial_outputs(store)
        raise SlideError(
            slide,
            source,
            f"the libraries that read slides crashed on it ({crash})",
            remedy="It is damaged: compare its checksum with the source's and copy it again",
        ) from crash
    if code:
        raise typer.Exit(code)


def run(
    slide: str, inputs: Inputs, outputs: Outputs, options: ConvertRun, *, mpp: float | None = None, threads: int = 1
) -> None:
    """Convert one slide. `mpp` overrides the slide's own scale. Raises `SlideError`."""
    from wsi_pipeline.io.fingerprints import fingerprint
    from wsi_pipeline.pyramid.conversion import convert
    from wsi_pipeline.receipts.base import write_receipt
    from wsi_pipeline.receipts.slides import ConvertReceipt
    from wsi_pipeline.slides.openslide_reader import SourceSlide

    with closing(SourceSlide(slide, inputs.source, mpp)) as source:
        facts = source.metadata
        made = convert(source, outputs.store, options, threads=threads, overview=outputs.overview)
        scanned = source.scanned(facts.levels[0])
    base, bounds = facts.levels[0], facts.bounds
    write_receipt(
        outputs.receipt,
        ConvertReceipt(
            slide=slide,
            source_sha256=made.source_sha256,
            source_fingerprint=fingerprint(inputs.source),
            source_quickhash=facts.quickhash,
            vendor=facts.vendor,
            objective_power=facts.objective_power,
            bounds=None if bounds is None else astuple(bounds),
            scanned_share=round(scanned.width * scanned.height / (base.width * base.height), 6),
            mpp=facts.mpp,
            mpp_source=facts.mpp_source,
            levels=made.levels,
            store_digest=made.store_digest,
            options=options,
        ),
    )
    damaged = sum(len(level.damaged_tiles) for level in made.levels)
    log.info(
        "%s: %d x %d px at %.4g um per pixel, %d levels, %d of them copied (%s)%s",
        slide,
        made.levels[0].width,
        made.levels[0].height,
        facts.mpp,
        len(made.levels),
        sum(level.method == "copied" for level in made.levels),
        facts.vendor,
        f", {damaged} damaged tiles are white" if damaged else "",
    )
