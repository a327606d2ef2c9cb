"""The levels of a pyramid: sizes, scales, and which of them can be copied from the slide's file."""

from __future__ import annotations

from wsi_pipeline.config import StorageOptions
from wsi_pipeline.geometry import Size
from wsi_pipeline.pyramid.passthrough import tiles_match_source
from wsi_pipeline.pyramid.reencode import half_size
from wsi_pipeline.slides.openslide_reader import SlideMetadata, SourceSlide
from wsi_pipeline.slides.tiff_tiles import TiledTiff, TileLevel

MAX_COARSEST_PX = 1024


def passthrough_page(source: SourceSlide, tiff: TiledTiff, level: int, options: StorageOptions) -> TileLevel | None:
    """The page of the file whose tiles can be copied as level `level`; None where it has to be decoded."""
    if not options.passthrough or level >= len(source.metadata.levels):
        return None
    page = tiff.level(source.metadata.levels[level])
    return page if page is not None and tiles_match_source(source, tiff, page, level) else None


def level_sizes(facts: SlideMetadata) -> list[Size]:
    """Sizes of the levels of the store: the slide's own, then halves until one is small."""
    sizes = list(facts.levels)
    while max(sizes[-1].width, sizes[-1].height) > MAX_COARSEST_PX:
        sizes.append(half_size(sizes[-1]))
    return sizes


def level_scales(facts: SlideMetadata, levels: int) -> list[tuple[float, float]]:
    """Scale of each level, (y, x) um per pixel, from the real ratio of the sizes."""
    base = facts.levels[0]
    scales = [(facts.mpp * base.height / size.height, facts.mpp * base.width / size.width) for size in facts.levels]
    while len(scales) < levels:
        scales.append((2 * scales[-1][0], 2 * scales[-1][1]))
    return scales
