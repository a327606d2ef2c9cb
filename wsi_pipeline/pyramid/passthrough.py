"""Copying a JPEG-tiled level into a zarr array without decoding it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wsi_pipeline.config import StorageOptions
from wsi_pipeline.errors import SlideError
from wsi_pipeline.pyramid.codecs import zarr_codecs
from wsi_pipeline.pyramid.ome_zarr import create_level
from wsi_pipeline.pyramid.shards import Chunk, ChunkGrid, write_shards
from wsi_pipeline.pyramid.source_comparison import agrees, centre
from wsi_pipeline.pyramid.writing import DamagedTiles, MadeLevel, Tile
from wsi_pipeline.receipts.slides import LevelFacts
from wsi_pipeline.seeds import generator
from wsi_pipeline.slides.jpeg import Jpeg, self_contained
from wsi_pipeline.slides.openslide_reader import WHITE, SourceSlide
from wsi_pipeline.slides.tiff_tiles import Stream, TiledTiff, TileLevel

# Where tables would add more than this to a level, they are kept once, in its metadata.
MOST_TABLES = 0.02
_PROBES = 3
# Of this vendor's slides OpenSlide draws a tile anew from the finer level where either level lacks it.
_REDRAWN = "aperio"


def merges_tables(page: TileLevel) -> bool:
    """Whether tables go into each stream, which then stands alone, or once into the metadata of the level."""
    there = int(np.count_nonzero(page.counts))
    return page.tables is None or len(page.tables) * there <= MOST_TABLES * page.nbytes


def is_plain_grid(source: SourceSlide, tiff: TiledTiff, page: TileLevel, number: int) -> bool:
    """Whether the tiles of the page are what OpenSlide shows at their place in the level.

    They are not where a format overlaps or moves its tiles, which a few of them tell, and where
    OpenSlide puts something other than white in the place of missing ones. Tiles that nobody can read
    say nothing.
    """
    if page.lacks_tiles and source.facts.background != WHITE:
        return False
    if tiff.lacks_tiles and source.facts.vendor == _REDRAWN and number > 0:
        return False
    codec = Jpeg(colorspace_data="RGB", colorspace_jpeg=page.colorspace, tables=page.tables)
    grid = ChunkGrid.of(page.size, page.tile, 0)
    there = np.flatnonzero(page.counts)
    if not len(there):
        return True
    rng = generator(0, "probe", source.slide, number)
    picked = {int(there[0]), int(there[-1]), *rng.choice(there, _PROBES - 2).tolist()}
    tiles = [divmod(index, page.columns)[::-1] for index in sorted(picked)]
    for (column, row), stream in zip(tiles, tiff.read(page, tiles), strict=True):
        if stream is None or isinstance(stream, ValueError):
            continue
        box = grid.box(column, row)
        try:
            if not agrees(source, codec.decode(b"".join(stream)), centre(box.clipped(page.size)), box, number):
                return False
        except (ValueError, SlideError):
            continue
    return True


def copy_level(
    source: SourceSlide,
    tiff: TiledTiff,
    page: TileLevel,
    number: int,
    folder: Path,
    options: StorageOptions,
    threads: int,
) -> MadeLevel:
    """Write the array `folder` with the tiles of level `number`.

    Raises `SlideError`, naming level, column and row, for a damaged tile, unless the options ask for white ones.
    """
    merge = merges_tables(page)
    codec = Jpeg(colorspace_data="RGB", colorspace_jpeg=page.colorspace, tables=None if merge else page.tables)
    grid = ChunkGrid.of(page.size, page.tile, options.shard_px)
    create_level(folder, grid, zarr_codecs(codec))
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
                    stored, kept = head, self_contained(page.tables, head)
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
    return MadeLevel(facts, digests, None)


def _decodable(codec: Jpeg, page: TileLevel, stream: Stream) -> Stream | ValueError:
    try:
        replace(codec, tables=page.tables).decode(b"".join(stream))
    except ValueError as error:
        return error
    return stream
