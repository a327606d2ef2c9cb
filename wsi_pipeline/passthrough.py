"""Copying a JPEG-tiled level into a zarr array without decoding it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import TransposeCodec

from wsi_pipeline.geometry import Box
from wsi_pipeline.jpeg import ImagecodecsJpeg
from wsi_pipeline.pyramid import BACKGROUND
from wsi_pipeline.receipts import Facts
from wsi_pipeline.seeds import generator
from wsi_pipeline.shards import write_shard
from wsi_pipeline.slides import SourceSlide
from wsi_pipeline.tiff import TiledTiff, TileLevel

COMPARED_TILES = 16
_TRUNCATED = "The file may be truncated: compare its checksum with the source's and copy it again"


def copy_level(
    source: SourceSlide, tiff: TiledTiff, level: TileLevel, number: int, folder: Path, shard_px: int, threads: int
) -> Facts:
    """Write the array `folder` with the tiles of level `number`; returns what was copied and compared.

    Raises `SlideError`, naming level, column and row, for a damaged tile and for one whose pixels are
    not those that OpenSlide reads.
    """
    across, down = max(1, shard_px // level.tile.width), max(1, shard_px // level.tile.height)
    zarr.create_array(
        folder,
        shape=(3, level.size.height, level.size.width),
        chunks=(3, level.tile.height, level.tile.width),
        shards=(3, down * level.tile.height, across * level.tile.width),
        dtype="uint8",
        filters=[TransposeCodec(order=(1, 2, 0))],
        serializer=ImagecodecsJpeg(colorspace_data="RGB", colorspace_jpeg=level.colorspace),
        compressors=None,
        fill_value=BACKGROUND,
        dimension_names=["c", "y", "x"],
    )

    def write(corner: tuple[int, int]) -> int:
        first_row, first_column = corner

        def chunks() -> Iterator[tuple[int, bytes | None]]:
            for row in range(first_row, min(first_row + down, level.rows)):
                for column in range(first_column, min(first_column + across, level.columns)):
                    position = (row - first_row) * across + column - first_column
                    yield position, _tile(source, tiff, level, number, column, row)

        path = folder / "c" / "0" / str(first_row // down) / str(first_column // across)
        return write_shard(path, chunks(), across * down)

    corners = [(row, column) for row in range(0, level.rows, down) for column in range(0, level.columns, across)]
    with ThreadPoolExecutor(threads) as pool:
        present = sum(pool.map(write, corners))
    return {
        "tile": [level.tile.width, level.tile.height],
        "tiles": present,
        "absent_tiles": level.rows * level.columns - present,
        "compared_tiles": compare(source, tiff, level, number),
    }


def compare(source: SourceSlide, tiff: TiledTiff, level: TileLevel, number: int) -> int:
    """Compare a seeded sample of tiles with OpenSlide's pixels; returns how many were compared."""
    # Elsewhere OpenSlide interpolates, and equality can be asked of the first tile only.
    candidates = level.rows * level.columns if source.is_exact(number) else 1
    rng = generator(0, "compare", source.slide, number)
    sample = rng.choice(candidates, min(candidates, COMPARED_TILES), replace=False, shuffle=False)
    for index in np.sort(sample).tolist():
        row, column = divmod(index, level.columns)
        box = Box(column * level.tile.width, row * level.tile.height, level.tile.width, level.tile.height)
        inside = box.clipped(level.size)
        own = _decoded(source, tiff, level, number, column, row)[: inside.height, : inside.width]
        if not np.array_equal(own, source.read(inside, number)):
            raise source.error(
                f"the tile at level {number}, column {column}, row {row} is not what OpenSlide reads there",
                "Set pyramid.passthrough to false in the config",
            )
    return len(sample)


def _tile(source: SourceSlide, tiff: TiledTiff, level: TileLevel, number: int, column: int, row: int) -> bytes | None:
    try:
        return tiff.tile(level, column, row)
    except ValueError as error:
        raise source.error(f"damaged at level {number}, column {column}, row {row} ({error})", _TRUNCATED) from error


def _decoded(
    source: SourceSlide, tiff: TiledTiff, level: TileLevel, number: int, column: int, row: int
) -> NDArray[np.uint8]:
    stream = _tile(source, tiff, level, number, column, row)
    if stream is None:
        return np.full((level.tile.height, level.tile.width, 3), BACKGROUND, np.uint8)
    try:
        pixels: NDArray[np.uint8] = imagecodecs.jpeg8_decode(stream, colorspace=level.colorspace, outcolorspace="RGB")
    except imagecodecs.Jpeg8Error as error:
        raise source.error(f"damaged at level {number}, column {column}, row {row} ({error})", _TRUNCATED) from error
    return pixels
