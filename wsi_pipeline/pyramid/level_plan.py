"""The levels of a pyramid: sizes, scales, and which of them can be copied from the source file."""

from __future__ import annotations

from wsi_pipeline.config import StorageOptions
from wsi_pipeline.geometry import Size
from wsi_pipeline.pyramid.passthrough import tiles_match_source
from wsi_pipeline.pyramid.reencode import half_size
from wsi_pipeline.slides.openslide_reader import SlideMetadata, SourceSlide
from wsi_pipeline.slides.tiff_tiles import TiledTiff, TileLevel

MAX_COARSEST_PX = 1024


def passthrough_page(source: SourceSlide, tiff: TiledTiff, level: int, options: StorageOptions) -> TileLevel | None:
    """The TIFF page whose tiles can be copied as level `level`; None where the level must be re-encoded.

    It is found by its pixels: pages of several levels may have one size.
    """
    if not options.passthrough or level >= len(source.metadata.levels):
        return None
    pages = tiff.levels(source.metadata.levels[level])
    matching = [page for page in pages if tiles_match_source(source, tiff, page, level)]
    return matching[0] if len(matching) == 1 else None


def level_sizes(metadata: SlideMetadata) -> list[Size]:
    """Sizes of the levels: those of the source, then halved until the longer edge is at most `MAX_COARSEST_PX`."""
    sizes = list(metadata.levels)
    while max(sizes[-1].width, sizes[-1].height) > MAX_COARSEST_PX:
        sizes.append(half_size(sizes[-1]))
    return sizes


def level_scales(metadata: SlideMetadata, levels: int) -> list[tuple[float, float]]:
    """Scale (y, x) of each level in um per pixel, from the ratio of sizes: the factor need not be a power of two."""
    base = metadata.levels[0]
    scales = [
        (metadata.mpp * base.height / size.height, metadata.mpp * base.width / size.width) for size in metadata.levels
    ]
    while len(scales) < levels:
        scales.append((2 * scales[-1][0], 2 * scales[-1][1]))
    return scales
