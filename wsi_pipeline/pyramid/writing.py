"""Shared by the writers of pyramid levels: the finished level, its damaged tiles, and padding at the edges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box
from wsi_pipeline.pyramid.codecs import ChunkCodec
from wsi_pipeline.pyramid.ome_zarr import BACKGROUND
from wsi_pipeline.receipts.slides import LevelFacts
from wsi_pipeline.slides.openslide_reader import DAMAGED_REMEDY, SourceSlide

# A slide with more damaged tiles is refused under either policy.
_MOST_DAMAGED_TILES, _MOST_DAMAGED_SHARE = 16, 0.01

Tile = tuple[int, int]


@dataclass(frozen=True, slots=True)
class WrittenLevel:
    """A finished level: its part of the receipt, the digests of its files, and the codec of its chunks.

    `codec` is None where chunks were copied.
    """

    facts: LevelFacts
    digests: dict[str, str]
    codec: ChunkCodec | None


class DamagedTiles:
    """The unreadable tiles of a level, counted against the number that the options allow."""

    def __init__(self, source: SourceSlide, number: int, count: int, policy: str) -> None:
        """`count` is the number of tiles of the level, `policy` is `error` or `white`."""
        self.tiles = set[Tile]()
        self._source = source
        self._number = number
        self._most = 0 if policy == "error" else max(_MOST_DAMAGED_TILES, int(_MOST_DAMAGED_SHARE * count))

    def add(self, tile: Tile, problem: str) -> None:
        """Count a damaged tile. Raises `SlideError`, naming the tile, where the limit is exceeded."""
        self.tiles.add(tile)
        if len(self.tiles) > self._most:
            where = f"damaged at level {self._number}, column {tile[0]}, row {tile[1]}"
            more = f", as {self._most} other tiles" if self._most else ""
            raise self._source.error(f"{where}{more} ({problem})", DAMAGED_REMEDY)


def pad_to_box(pixels: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    """`pixels` (h, w, 3) padded with background at the right and bottom to the size of `box`."""
    if pixels.shape[:2] == (box.height, box.width):
        return pixels
    out = np.full((box.height, box.width, 3), BACKGROUND, np.uint8)
    out[: pixels.shape[0], : pixels.shape[1]] = pixels
    return out
