"""Stage convert: a slide becomes a sharded OME-Zarr pyramid with every level of the source.

A level that is a grid of JPEG tiles is copied: its chunks are the tiles' own streams, never decoded.
Other levels are read through OpenSlide and encoded. Coarser levels are added by halving until the
coarsest one is small. Tiles of the finished store are compared with OpenSlide's pixels. Shards are
written one by one in a few threads, so memory is bounded by the shards in flight.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import zarr

from wsi_pipeline.config import ConvertRun
from wsi_pipeline.geometry import Size
from wsi_pipeline.io.atomic import publish
from wsi_pipeline.io.digests import digest_source, digest_tree
from wsi_pipeline.io.receipts import Facts, write_receipt
from wsi_pipeline.pyramid.level import open_level
from wsi_pipeline.pyramid.level_plan import copied_page, level_scales, level_sizes
from wsi_pipeline.pyramid.ome_zarr import pyramid_attributes
from wsi_pipeline.pyramid.passthrough import copy_level
from wsi_pipeline.pyramid.reencode import halve_level, read_level
from wsi_pipeline.pyramid.source_comparison import check_level
from wsi_pipeline.pyramid.writing import MadeLevel
from wsi_pipeline.slides.openslide_reader import SlideFacts, SourceSlide
from wsi_pipeline.slides.tiff_tiles import TiledTiff

log = logging.getLogger(__name__)

# What report and figures need of a slide is at most so large.
OVERVIEW_PX = 2048


def run(
    slide: str,
    source: Path,
    store: Path,
    receipt: Path,
    options: ConvertRun,
    mpp: float | None = None,
    threads: int = 1,
    overview: Path | None = None,
) -> None:
    """Convert one slide. `mpp` overrides the slide's own scale; `overview` is a store for the coarse levels alone.

    Raises `SlideError`.
    """
    opened = SourceSlide(slide, source, mpp)
    try:
        facts = opened.facts
        sizes = level_sizes(facts)
        with TiledTiff(source) as tiff, publish(store) as partial, ThreadPoolExecutor(2) as aside:
            source_digest = aside.submit(digest_source, source)
            zarr.create_group(partial, attributes=pyramid_attributes(slide, level_scales(facts, len(sizes))))
            made, comparisons = list[MadeLevel](), list[Future[Facts]]()
            for level in range(len(sizes)):
                made.append(_make_level(opened, tiff, partial, level, options, threads))
                if level < len(facts.levels):
                    comparisons.append(
                        aside.submit(
                            check_level,
                            opened,
                            open_level(partial / str(level)),
                            level,
                            made[level],
                            everything=options.verify == "all",
                            threads=threads,
                        )
                    )
            compared = [comparison.result() for comparison in comparisons]
            digests = {
                f"{level}/{name}": digest for level, own in enumerate(made) for name, digest in own.digests.items()
            }
            store_digest = digest_tree(partial, threads, known=digests)
            if overview is not None:
                write_overview(slide, facts, sizes, partial, overview)
    finally:
        opened.close()
    levels = [{"width": size.width, "height": size.height, **own.facts} for size, own in zip(sizes, made, strict=True)]
    for described, comparison in zip(levels, compared, strict=False):
        described |= comparison
    write_receipt(
        receipt,
        "convert",
        {**_facts(slide, facts, source_digest), "levels": levels, "store_digest": store_digest},
        options,
    )
    damaged = sum(len(level["damaged_tiles"]) for level in levels)
    log.info(
        "%s: %d x %d px at %.4g um per pixel, %d levels, %d of them copied (%s)%s",
        slide,
        sizes[0].width,
        sizes[0].height,
        facts.mpp,
        len(sizes),
        sum(level["method"] == "copied" for level in levels),
        facts.vendor,
        f", {damaged} damaged tiles are white" if damaged else "",
    )


def write_overview(slide: str, facts: SlideFacts, sizes: Sequence[Size], store: Path, overview: Path) -> None:
    """Copy the levels that pictures of the whole slide are made from; the slide's own scale and size are kept."""
    large = [level for level, size in enumerate(sizes) if max(size.width, size.height) >= OVERVIEW_PX]
    first = large[-1] if large else 0
    with publish(overview) as partial:
        attributes = pyramid_attributes(slide, level_scales(facts, len(sizes)), first)
        own = {"mpp": facts.mpp, "width": sizes[0].width, "height": sizes[0].height}
        zarr.create_group(partial, attributes={**attributes, "slide": own})
        for level in range(first, len(sizes)):
            shutil.copytree(store / str(level), partial / str(level - first))


def _make_level(
    source: SourceSlide, tiff: TiledTiff, store: Path, level: int, options: ConvertRun, threads: int
) -> MadeLevel:
    folder = store / str(level)
    page = copied_page(source, tiff, level, options)
    if page is not None:
        return copy_level(source, tiff, page, level, folder, options, threads)
    if level < len(source.facts.levels):
        return read_level(source, level, folder, options, threads)
    return halve_level(open_level(store / str(level - 1)), folder, options, threads)


def _facts(slide: str, facts: SlideFacts, source_digest: Future[str]) -> Facts:
    bounds = facts.bounds
    return {
        "slide": slide,
        "source_sha256": source_digest.result(),
        "source_quickhash": facts.quickhash,
        "vendor": facts.vendor,
        "objective_power": facts.objective_power,
        "background": list(facts.background),
        "bounds": None if bounds is None else [bounds.x, bounds.y, bounds.width, bounds.height],
        "mpp": facts.mpp,
        "mpp_source": facts.mpp_source,
    }
