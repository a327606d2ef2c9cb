"""Tiles of TIFF files as they are stored, not decoded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import tifffile

from wsi_pipeline.geometry import Size
from wsi_pipeline.jpeg import self_contained

# A TIFF with more tiles than this in one level is not a slide; its lists alone would fill the memory.
_MOST_TILES = 20_000_000
_JPEG, _PLANAR_CONTIGUOUS = 7, 1
_COLORSPACES = {2: "RGB", 6: "YCbCr"}


@dataclass(frozen=True, slots=True)
class TileLevel:
    """One level that is a grid of JPEG tiles; `colorspace` is that inside the streams."""

    size: Size
    tile: Size
    colorspace: str
    columns: int
    rows: int
    tables: bytes | None
    offsets: Sequence[int]
    counts: Sequence[int]


class TiledTiff:
    """The JPEG-tiled levels of a TIFF file; `tile` may be called from several threads."""

    def __init__(self, path: Path) -> None:
        """Open a TIFF; a file that is none has no levels."""
        self._levels: dict[Size, TileLevel] = {}
        self._file = os.open(path, os.O_RDONLY)
        self._length = os.fstat(self._file).st_size
        try:
            with tifffile.TiffFile(path) as tiff:
                for page in tiff.pages:
                    level = _tile_level(page)
                    if level is not None:
                        self._levels.setdefault(level.size, level)
        except Exception:  # noqa: BLE001 (whatever tifffile makes of a file that it cannot read, OpenSlide decides)
            self._levels = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def level(self, size: Size) -> TileLevel | None:
        """The JPEG-tiled page of this size, if there is one."""
        return self._levels.get(size)

    def tile(self, level: TileLevel, column: int, row: int) -> bytes | None:
        """A tile as a JPEG stream that stands alone; None where there is none, `ValueError` where it is damaged."""
        index = row * level.columns + column
        offset, count = level.offsets[index], level.counts[index]
        if count == 0:
            return None
        if offset + count > self._length:
            raise ValueError("the file ends before the tile")
        return self_contained(level.tables, os.pread(self._file, count, offset))


def _tile_level(page: Any) -> TileLevel | None:
    if not isinstance(page, tifffile.TiffPage) or not page.is_tiled or page.compression != _JPEG:
        return None
    plain = page.samplesperpixel == 3 and page.bitspersample == 8 and page.planarconfig == _PLANAR_CONTIGUOUS
    colorspace = _COLORSPACES.get(int(page.photometric))
    if not plain or colorspace is None or page.imagedepth != 1:
        return None
    size, tile = Size(page.imagewidth, page.imagelength), Size(page.tilewidth, page.tilelength)
    columns, rows = -(-size.width // tile.width), -(-size.height // tile.height)
    if not columns * rows <= _MOST_TILES or len(page.dataoffsets) < columns * rows:
        return None
    return TileLevel(size, tile, colorspace, columns, rows, page.jpegtables, page.dataoffsets, page.databytecounts)
