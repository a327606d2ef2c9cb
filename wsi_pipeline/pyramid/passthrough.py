"""Copy a JPEG-tiled level into a zarr array without decoding."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsi_pipeline.config import StorageOptions
from wsi_pipeline.errors import SlideError
from wsi_pipeline.pyramid.codecs import level_array_codecs
from wsi_pipeline.pyramid.ome_zarr import BACKGROUND, create_level
from wsi_pipeline.pyramid.shards import Chunk, ChunkGrid, write_shards
from wsi_pipeline.pyramid.source_comparison import spread_tiles
from wsi_pipeline.pyramid.writing import DamagedTiles, Tile, WrittenLevel
from wsi_pipeline.receipts.slides import LevelFacts
from wsi_pipeline.seeds import generator
from wsi_pipeline.slides.jpeg import JpegCodec, merge_tables
from wsi_pipeline.slides.openslide_reader import SourceSlide
from wsi_pipeline.slides.tiff_tiles import TiledTiff, TileLevel, TileStream

log = logging.getLogger(__name__)

# Where merged tables would add more than this share to a level, they are stored once, in its metadata.
MAX_TABLES_SHARE = 0.02
_PROBES = 8
# Vendor whose missing tiles OpenSlide renders from the finer level.
_RENDERED_VENDOR = "aperio"


def should_merge_tables(page: TileLevel) -> bool:
    """Whether to merge the shared tables into each stream, or to store them once in the metadata of the level."""
    present = int(np.count_nonzero(page.counts))
    return page.tables is None or len(page.tables) * present <= MAX_TABLES_SHARE * page.nbytes


def tiles_match_source(source: SourceSlide, tiff: TiledTiff, page: TileLevel, number: int) -> bool:
    """Whether the tiles of the page, put on a regular grid, equal the level as the slide is read.

    False where a format overlaps or shifts its tiles, where the page is another level, which tiles at the corners and
    all over the page reveal, and where OpenSlide does not render missing tiles as white. Unreadable tiles are skipped;
    False, with a warning, where no other was found.
    """
    if tiff.has_missing_tiles and source.metadata.vendor == _RENDERED_VENDOR and number > 0:
        return False
    codec = JpegCodec(colorspace_data="RGB", colorspace_jpeg=page.colorspace, tables=page.tables)
    grid = ChunkGrid.of(page.size, page.tile, 0)
    tiles = spread_tiles(grid, _PROBES, generator(0, "probe", source.slide, number))
    compared, problem = 0, ""
    for (column, row), stream in zip(tiles, tiff.read(page, tiles), strict=True):
        box = grid.box(column, row).clipped(page.size)
        try:
            if isinstance(stream, ValueError):
                raise stream
            pixels = (
                np.uint8(BACKGROUND) if stream is None else codec.decode(b"".join(stream))[: box.height, : box.width]
            )
            if not (pixels == source.read(box, number)).all():
                return False
            compared += 1
        except (ValueError, SlideError) as error:
            problem = str(error)
    if not compared:
        log.warning(
            "%s: level %d is read, not copied: none of %d tiles could be compared with it (%s)",
            source.slide,
            number,
            len(tiles),
            problem,
        )
    return compared > 0


def copy_level(
    source: SourceSlide,
    tiff: TiledTiff,
    page: TileLevel,
    number: int,
    folder: Path,
    options: StorageOptions,
    threads: int,
) -> WrittenLevel:
    """Write the array `folder` with the encoded tiles of level `number`.

    Raises `SlideError`, naming level, column and row, for a damaged tile, unless `damaged_tiles` is `white`.
    """
    merge = should_merge_tables(page)
    codec = JpegCodec(colorspace_data="RGB", colorspace_jpeg=page.colorspace, tables=None if merge else page.tables)
    grid = ChunkGrid.of(page.size, page.tile, options.shard_px)
    create_level(folder, grid, level_array_codecs(codec))
    damaged = DamagedTiles(source, number, grid.count, options.damaged_tiles)

    def encoded(tiles: list[Tile]) -> Sequence[Chunk | None]:
        chunks = list[Chunk | None]()
        stored, kept = b"", b""
        for tile, found in zip(tiles, tiff.read(page, tiles), strict=True):
            stream = found
            if options.damaged_tiles == "white" and isinstance(stream, tuple):
                stream = _decodable(codec, page, stream)
            if isinstance(stream, ValueError):
                damaged.add(tile, str(stream))
                chunks.append(None)
            elif stream is None or not merge:
                chunks.append(stream)
            else:
                head, data = stream
                if head is not stored:
                    stored, kept = head, merge_tables(page.tables, head)
                chunks.append((kept, data))
        return chunks

    present, digests = write_shards(folder, grid, encoded, threads)
    facts = LevelFacts(
        width=page.size.width,
        height=page.size.height,
        method="copied",
        tile=(page.tile.width, page.tile.height),
        tiles=present,
        absent_tiles=grid.count - present - len(damaged.tiles),
        damaged_tiles=tuple(sorted(damaged.tiles)),
        tables="merged" if merge else "shared",
    )
    return WrittenLevel(facts, digests, None)


def _decodable(codec: JpegCodec, page: TileLevel, stream: TileStream) -> TileStream | ValueError:
    try:
        replace(codec, tables=page.tables).decode(b"".join(stream))
    except ValueError as error:
        return error
    return stream
