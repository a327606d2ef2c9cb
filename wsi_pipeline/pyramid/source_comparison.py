"""Compare a converted level with the pixels that OpenSlide reads from the source."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from wsi_pipeline.errors import StoreError
from wsi_pipeline.geometry import Box
from wsi_pipeline.progress_bar import track
from wsi_pipeline.pyramid.level import Level
from wsi_pipeline.pyramid.shards import ChunkGrid
from wsi_pipeline.pyramid.writing import Tile, WrittenLevel, pad_to_box
from wsi_pipeline.receipts.slides import LevelFacts
from wsi_pipeline.seeds import generator
from wsi_pipeline.slides.openslide_reader import DAMAGED_REMEDY, SourceSlide

SAMPLE_TILES = 16


def compare_level(
    source: SourceSlide, level: Level, number: int, made: WrittenLevel, *, everything: bool, threads: int
) -> LevelFacts:
    """Compare tiles of a finished level with OpenSlide's pixels, and return the level's facts with the result.

    A copied tile must have identical pixels. An encoded tile must equal OpenSlide's pixels after encoding and
    decoding. Damaged tiles are skipped. Without `everything` a seeded sample is compared. Raises `SlideError`, naming
    level, column and row.
    """

    def check(tile: Tile) -> tuple[int, int, int]:
        """Largest and summed difference of a tile, and its number of values; all 0 for a copied one."""
        box = level.grid.box(*tile)
        inside = box.clipped(level.size)
        try:
            stored = level.chunk(*tile)
        except StoreError as error:
            column, row = tile
            raise source.error(
                f"damaged at level {number}, column {column}, row {row} ({error})", DAMAGED_REMEDY
            ) from error
        if made.codec is None:
            if not np.array_equal(stored[: inside.height, : inside.width], source.read(inside, number)):
                raise _mismatch(source, number, tile)
            return 0, 0, 0
        pixels = pad_to_box(source.read(inside, number), box)
        if not np.array_equal(stored, made.codec.decode(made.codec.encode(pixels))):
            raise _mismatch(source, number, tile)
        difference = np.abs(stored.astype(np.int16) - pixels)[: inside.height, : inside.width]
        return int(difference.max()), int(difference.sum()), difference.size

    extent = Box(0, 0, level.size.width, level.size.height)
    tiles = level.grid.chunks_in(extent) if everything else _sample(source.slide, level, number)
    damaged = frozenset(made.facts.damaged_tiles)
    tiles = [tile for tile in tiles if tile not in damaged]
    with ThreadPoolExecutor(threads) as pool:
        found = list(track(pool.map(check, tiles), f"comparing level {number}", len(tiles)))
    compared: dict[str, float] = {"compared_tiles": len(tiles)}
    if values := sum(of_tile for *_, of_tile in found):
        mean = sum(total for _, total, _ in found) / values
        compared |= {"largest_difference": max(found)[0], "mean_difference": round(mean, 4)}
    return made.facts.model_copy(update=compared)


def spread_tiles(grid: ChunkGrid, count: int, rng: np.random.Generator) -> list[Tile]:
    """(column, row) of up to `count` tiles: the corners of the grid first, then others in the order of `rng`."""
    right, bottom = grid.columns - 1, grid.rows - 1
    corners = dict.fromkeys([(0, 0), (right, bottom), (right, 0), (0, bottom)])
    order = [divmod(index, grid.columns)[::-1] for index in rng.permutation(grid.count).tolist()]
    return list(dict.fromkeys([*corners, *order]))[:count]


def _sample(slide: str, level: Level, number: int) -> list[Tile]:
    """Up to `SAMPLE_TILES` present and as many absent tiles, the corners first, then in a seeded order."""
    order = spread_tiles(level.grid, level.grid.count, generator(0, "compare", slide, number))
    present, absent = list[Tile](), list[Tile]()
    for column, row in order:
        kind = absent if level.stream(column, row) is None else present
        if len(kind) < SAMPLE_TILES:
            kind.append((column, row))
        if len(present) == SAMPLE_TILES:
            break
    return sorted(present + absent)


def _mismatch(source: SourceSlide, number: int, tile: Tile) -> Exception:
    return source.error(
        f"the tile at level {number}, column {tile[0]}, row {tile[1]} of the store differs from OpenSlide's pixels",
        "Set pyramid.passthrough to false in the config, and report the slide's format",
    )
