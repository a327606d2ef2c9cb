"""Compare a converted level with the pixels that OpenSlide reads from the source."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import StoreError
from wsi_pipeline.geometry import Box
from wsi_pipeline.progress_bar import track
from wsi_pipeline.pyramid.level import Level
from wsi_pipeline.pyramid.writing import Tile, WrittenLevel, pad_to_box
from wsi_pipeline.receipts.slides import LevelFacts
from wsi_pipeline.seeds import generator
from wsi_pipeline.slides.openslide_reader import DAMAGED_REMEDY, SourceSlide

SAMPLE_TILES = 16
_CENTRE_PX = 128
# OpenSlide interpolates with 7-bit weights along each axis, and rounds.
_INTERPOLATION_TOLERANCE = 3


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
            whole = everything or number == 0
            if not matches_source(source, stored, inside if whole else central_box(inside), box, number):
                raise _mismatch(source, number, tile)
            return 0, 0, 0
        pixels = pad_to_box(source.read(inside, number), box)
        if not np.array_equal(stored, made.codec.decode(made.codec.encode(pixels))):
            raise _mismatch(source, number, tile)
        difference = np.abs(stored.astype(np.int16) - pixels)[: inside.height, : inside.width]
        return int(difference.max()), int(difference.sum()), difference.size

    extent = Box(0, 0, level.size.width, level.size.height)
    tiles = level.chunks_in(extent) if everything else _sample(source.slide, level, number)
    damaged = frozenset(made.facts.damaged_tiles)
    tiles = [tile for tile in tiles if tile not in damaged]
    with ThreadPoolExecutor(threads) as pool:
        found = list(track(pool.map(check, tiles), f"comparing level {number}", len(tiles)))
    compared: dict[str, float] = {"compared_tiles": len(tiles)}
    if values := sum(of_tile for *_, of_tile in found):
        mean = sum(total for _, total, _ in found) / values
        compared |= {"largest_difference": max(found)[0], "mean_difference": round(mean, 4)}
    return made.facts.model_copy(update=compared)


def matches_source(source: SourceSlide, pixels: NDArray[np.uint8], part: Box, box: Box, level: int) -> bool:
    """Whether `pixels`, which cover `box`, equal OpenSlide's pixels within `part`; boxes in pixels of `level`.

    Where OpenSlide interpolates between the pixels of the level, `pixels` are interpolated in the same way.
    """
    left, top = part.x - box.x, part.y - box.y
    pixels = pixels[top : top + part.height, left : left + part.width]
    if source.interpolation_offset(part, level) == (0, 0):
        return np.array_equal(pixels, source.read(part, level))
    inner = Box(part.x + 1, part.y + 1, part.width - 2, part.height - 2)
    if inner.width < 1 or inner.height < 1:
        return True
    right, below = source.interpolation_offset(inner, level)
    shifted = _shifted(_shifted(pixels.astype(np.float32), below, 0), right, 1)
    return bool(np.abs(shifted - source.read(inner, level)).max() <= _INTERPOLATION_TOLERANCE)


def central_box(box: Box) -> Box:
    """The centre of a tile, for comparisons where the whole tile would take too long."""
    width, height = min(box.width, _CENTRE_PX), min(box.height, _CENTRE_PX)
    return Box(box.x + (box.width - width) // 2, box.y + (box.height - height) // 2, width, height)


def _shifted(pixels: NDArray[np.float32], by: float, axis: int) -> NDArray[np.float32]:
    """Linear interpolation at a shift of `by` (-1 to 1) pixels along an axis; the first and last pixel are cut off."""
    steps = (1, 2 if by > 0 else 0)
    inner, neighbour = (pixels.take(range(k, pixels.shape[axis] - 2 + k), axis) for k in steps)
    return inner + np.float32(abs(by)) * (neighbour - inner)


def _sample(slide: str, level: Level, number: int) -> list[Tile]:
    """Up to `SAMPLE_TILES` present and as many absent tiles, the first of each in a seeded order."""
    order = generator(0, "compare", slide, number).permutation(level.grid.count)
    present, absent = list[Tile](), list[Tile]()
    for index in order.tolist():
        row, column = divmod(index, level.grid.columns)
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
