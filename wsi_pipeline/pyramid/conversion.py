"""Converting a slide to an OME-Zarr pyramid with every level of the source."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import zarr

from wsi_pipeline.config import StorageOptions
from wsi_pipeline.geometry import Size
from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.io.digests import digest_source, digest_tree
from wsi_pipeline.pyramid.level import open_level
from wsi_pipeline.pyramid.level_plan import level_scales, level_sizes, passthrough_page
from wsi_pipeline.pyramid.ome_zarr import Attributes, pyramid_attributes
from wsi_pipeline.pyramid.passthrough import copy_level
from wsi_pipeline.pyramid.reencode import downsample_level, reencode_level
from wsi_pipeline.pyramid.source_comparison import compare_level
from wsi_pipeline.pyramid.writing import WrittenLevel
from wsi_pipeline.receipts.slides import LevelFacts
from wsi_pipeline.slides.openslide_reader import SlideMetadata, SourceSlide
from wsi_pipeline.slides.tiff_tiles import TiledTiff

# The report and the viewer show whole slides at up to this size.
OVERVIEW_PX = 2048


@dataclass(frozen=True, slots=True)
class Converted:
    """A finished pyramid: its levels, and the digests of the source and of the store."""

    levels: tuple[LevelFacts, ...]
    source_sha256: str
    store_digest: str


def convert(
    source: SourceSlide, store: Path, options: StorageOptions, *, threads: int = 1, overview: Path | None = None
) -> Converted:
    """Write the pyramid of a slide, and the coarse levels alone to `overview` where that is given.

    A level that is a grid of JPEG tiles is copied: its chunks are the JPEG streams of the tiles. Other levels are
    read through OpenSlide and encoded. Levels are halved until the coarsest has at most `MAX_COARSEST_PX`. Tiles of the
    levels of the source are compared with OpenSlide's pixels. Memory is bounded by the shards in flight.
    Raises `SlideError`.
    """
    facts = source.metadata
    sizes = level_sizes(facts)
    with TiledTiff(source.path, source.pages) as tiff, atomic_output(store) as partial, ThreadPoolExecutor(2) as aside:
        source_digest = aside.submit(digest_source, source.path)
        zarr.create_group(partial, attributes=_attributes(source.slide, facts, len(sizes)))
        made = list[WrittenLevel]()
        compared = list[Future[LevelFacts]]()
        for number in range(len(sizes)):
            made.append(_make_level(source, tiff, partial, number, options, threads))
            if number < len(facts.levels):
                finished = open_level(partial / str(number))
                everything = options.verify == "all"
                compared.append(
                    aside.submit(
                        compare_level, source, finished, number, made[number], everything=everything, threads=threads
                    )
                )
        levels = [*(comparison.result() for comparison in compared), *(own.facts for own in made[len(compared) :])]
        digests = {
            f"{number}/{name}": digest for number, own in enumerate(made) for name, digest in own.digests.items()
        }
        store_digest = digest_tree(partial, threads, known=digests)
        if overview is not None:
            _write_overview(source.slide, facts, sizes, partial, overview)
    return Converted(tuple(levels), source_digest.result(), store_digest)


def _make_level(
    source: SourceSlide, tiff: TiledTiff, store: Path, number: int, options: StorageOptions, threads: int
) -> WrittenLevel:
    folder = store / str(number)
    page = passthrough_page(source, tiff, number, options)
    if page is not None:
        return copy_level(source, tiff, page, number, folder, options, threads)
    if number < len(source.metadata.levels):
        return reencode_level(source, number, folder, options, threads)
    return downsample_level(open_level(store / str(number - 1)), folder, options, threads)


def _attributes(slide: str, facts: SlideMetadata, levels: int, first: int = 0) -> Attributes:
    """The group attributes of a store that holds the levels from `first` on."""
    bounds = None if facts.bounds is None else astuple(facts.bounds)
    own = {"mpp": facts.mpp, "width": facts.levels[0].width, "height": facts.levels[0].height, "bounds": bounds}
    return {**pyramid_attributes(slide, level_scales(facts, levels), first), "slide": own}


def _write_overview(slide: str, facts: SlideMetadata, sizes: Sequence[Size], store: Path, overview: Path) -> None:
    """Copy the levels that pictures of the whole slide are made from."""
    large = [number for number, size in enumerate(sizes) if max(size.width, size.height) >= OVERVIEW_PX]
    first = large[-1] if large else 0
    with atomic_output(overview) as partial:
        zarr.create_group(partial, attributes=_attributes(slide, facts, len(sizes), first))
        for number in range(first, len(sizes)):
            shutil.copytree(store / str(number), partial / str(number - first))
