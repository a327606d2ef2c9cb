"""Write re-encoded levels: read through OpenSlide, or downsampled from the finer level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyvips
from numpy.typing import NDArray

from wsi_pipeline.config import StorageOptions
from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.pyramid.codecs import chunk_codec, level_array_codecs
from wsi_pipeline.pyramid.level import Level
from wsi_pipeline.pyramid.ome_zarr import BACKGROUND, create_level
from wsi_pipeline.pyramid.shards import Chunk, ChunkGrid, write_shards
from wsi_pipeline.pyramid.writing import DamagedTiles, Tile, WrittenLevel, pad_to_box
from wsi_pipeline.receipts.slides import LevelFacts
from wsi_pipeline.slides.openslide_reader import SourceSlide

# Edge of the regions that are read at once: large enough for few calls, small enough to bound memory.
_REGION_PX = 1024

ReadRegion = Callable[[Box], NDArray[np.uint8]]


def reencode_level(
    source: SourceSlide, number: int, folder: Path, options: StorageOptions, threads: int
) -> WrittenLevel:
    """Write the array `folder` with level `number` as OpenSlide reads it.

    Raises `SlideError`, naming level, column and row of the chunk, where the slide is damaged, unless
    `damaged_tiles` is `white`.
    """
    size = source.metadata.levels[number]
    damaged = DamagedTiles(source, number, ChunkGrid.of(size, _chunk_size(options), 0).count, options.damaged_tiles)
    return _write_level(folder, size, lambda box: source.read(box, number), "read", damaged, options, threads)


def downsample_level(finer: Level, folder: Path, options: StorageOptions, threads: int) -> WrittenLevel:
    """Write the array `folder` with the level `finer` at half its size (means of 2 x 2 pixels)."""

    def read(box: Box) -> NDArray[np.uint8]:
        return downsample(finer.read(Box(2 * box.x, 2 * box.y, 2 * box.width, 2 * box.height).clipped(finer.size)))

    return _write_level(folder, half_size(finer.size), read, "halved", None, options, threads)


def _chunk_size(options: StorageOptions) -> Size:
    return Size(options.chunk_px, options.chunk_px)


def half_size(size: Size) -> Size:
    """Half of a size, rounded up."""
    return Size((size.width + 1) // 2, (size.height + 1) // 2)


def downsample(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Downsample (h, w, 3) uint8 by 2: means of 2 along each axis, each rounded; an odd last pixel is repeated."""
    height, width, bands = pixels.shape
    image = pyvips.Image.new_from_memory(np.ascontiguousarray(pixels).data, width, height, bands, "uchar")
    out: NDArray[np.uint8] = image.shrink(2, 2, ceil=True).numpy()
    return out


def _write_level(
    folder: Path,
    size: Size,
    read: ReadRegion,
    method: Literal["read", "halved"],
    damaged: DamagedTiles | None,
    options: StorageOptions,
    threads: int,
) -> WrittenLevel:
    chunk = _chunk_size(options)
    step = max(1, _REGION_PX // options.chunk_px)
    grid = ChunkGrid.of(size, chunk, options.shard_px)
    codec = chunk_codec(options, chunk)
    create_level(folder, grid, level_array_codecs(codec))

    def read_chunks(tiles: list[Tile]) -> dict[Tile, NDArray[np.uint8] | None]:
        """Pixels of neighbouring chunks, read as one region, or one by one if that fails; None for a damaged chunk."""
        boxes = [grid.box(*tile) for tile in tiles]
        x = min(box.x for box in boxes)
        y = min(box.y for box in boxes)
        right = max(box.right for box in boxes)
        bottom = max(box.bottom for box in boxes)
        try:
            region = read(Box(x, y, right - x, bottom - y).clipped(size))
        except SlideError as error:
            if damaged is None:
                raise
            if len(tiles) > 1:
                return {tile: pixels for single in tiles for tile, pixels in read_chunks([single]).items()}
            damaged.add(tiles[0], f"of {options.chunk_px} px: {error.problem}")
            return {tiles[0]: None}
        parts = [region[b.y - y : b.bottom - y, b.x - x : b.right - x] for b in boxes]
        return {tile: pad_to_box(part, box) for tile, part, box in zip(tiles, parts, boxes, strict=True)}

    def encoded(tiles: list[Tile]) -> Sequence[Chunk | None]:
        regions: dict[Tile, list[Tile]] = {}
        for column, row in tiles:
            regions.setdefault((column // step, row // step), []).append((column, row))
        streams: dict[Tile, Chunk | None] = {}
        for members in regions.values():
            for tile, pixels in read_chunks(members).items():
                empty = pixels is None or pixels.min() == BACKGROUND
                streams[tile] = None if pixels is None or empty else (codec.encode(pixels),)
        return [streams[tile] for tile in tiles]

    present, digests = write_shards(folder, grid, encoded, threads)
    white = set() if damaged is None else damaged.tiles
    facts = LevelFacts(
        width=size.width,
        height=size.height,
        method=method,
        tile=(chunk.width, chunk.height),
        tiles=present,
        absent_tiles=grid.count - present - len(white),
        damaged_tiles=tuple(sorted(white)),
    )
    return WrittenLevel(facts, digests, codec)
