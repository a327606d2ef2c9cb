"""Tiles of TIFF files as they are stored, not decoded."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import tifffile
from numpy.typing import NDArray

from wsi_pipeline.geometry import Size
from wsi_pipeline.slides.jpeg import EOI, has_end_marker, read_header, strip_metadata

# A TIFF with more tiles than this in one level is not a slide; its lists alone would fill the memory.
_MOST_TILES = 20_000_000
_JPEG, _PLANAR_CONTIGUOUS = 7, 1
_COLORSPACES = {2: "RGB", 6: "YCbCr"}
# Tiles this near to each other in the file are read at once.
_GAP_BYTES = 1 << 16
_TOO_SHORT = "the file ends before the tile"
# No stream begins with it.
_NO_HEAD = b"\0"

# What stands before the compressed data of a tile, and the rest.
TileStream = tuple[bytes, memoryview]


@dataclass(frozen=True, slots=True)
class TileLevel:
    """One level that is a grid of JPEG tiles; `colorspace` is that inside the streams."""

    size: Size
    tile: Size
    colorspace: str
    columns: int
    rows: int
    tables: bytes | None
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]

    @property
    def nbytes(self) -> int:
        """Bytes of all tiles together."""
        return int(self.counts.sum())

    @property
    def has_missing_tiles(self) -> bool:
        """Whether tiles are missing."""
        return not self.counts.all()

    def is_padded_form_of(self, size: Size) -> bool:
        """Whether this page is a level of `size` with its last column and row of tiles filled up."""
        whole = Size(self.columns * self.tile.width, self.rows * self.tile.height)
        grid = (-(-size.width // self.tile.width), -(-size.height // self.tile.height))
        return self.size == whole and grid == (self.columns, self.rows)


class TiledTiff:
    """The JPEG-tiled levels of a TIFF file; `read` may be called from several threads."""

    def __init__(self, path: Path) -> None:
        """Open a TIFF; a file that is none has no levels."""
        self._levels: dict[Size, TileLevel] = {}
        self._scratch = _Scratch()
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

    @property
    def has_missing_tiles(self) -> bool:
        """Whether any level does."""
        return any(level.has_missing_tiles for level in self._levels.values())

    def level(self, size: Size) -> TileLevel | None:
        """The JPEG-tiled page of this size, if there is one.

        Philips writes the sizes of coarser levels filled up to whole tiles.
        """
        exact = self._levels.get(size)
        if exact is not None:
            return exact
        return next((replace(page, size=size) for page in self._levels.values() if page.is_padded_form_of(size)), None)

    def read(self, level: TileLevel, tiles: Sequence[tuple[int, int]]) -> list[TileStream | ValueError | None]:
        """Streams of the tiles (column, row), in the order given; nothing is decoded, comments are left out.

        None stands for a tile that is not there, a `ValueError` for one that is damaged. The streams
        are overwritten by the next call from the same thread.
        """
        indices = [row * level.columns + column for column, row in tiles]
        offsets, counts = level.offsets[indices], level.counts[indices]
        found: list[TileStream | ValueError | None] = [None] * len(tiles)
        outside = (offsets < 0) | (counts < 0) | (offsets > self._length - counts)
        bloated = ~outside & (counts > _most_bytes(level.tile))
        for k in np.flatnonzero(outside & (counts != 0)).tolist():
            found[k] = ValueError(_TOO_SHORT)
        for k in np.flatnonzero(bloated).tolist():
            found[k] = ValueError(f"{counts[k]} bytes are too many for it")
        good = np.flatnonzero(~outside & ~bloated & (counts != 0))
        good = good[np.argsort(offsets[good], kind="stable")]
        data, starts, there = self._read_together(offsets[good], counts[good])
        memory, known = memoryview(data), _Head()
        for k, start, stop in zip(good.tolist(), starts.tolist(), (starts + counts[good]).tolist(), strict=True):
            if stop > there:
                found[k] = ValueError(_TOO_SHORT)
            elif data.startswith(known.stored, start, stop) and data.endswith(EOI, start, stop):
                found[k] = known.kept, memory[start + len(known.stored) : stop]
            else:
                try:
                    known = _Head.of(memory[start:stop], level.tile)
                except ValueError as error:
                    found[k] = error
                else:
                    found[k] = known.kept, memory[start + len(known.stored) : stop]
        return found

    def _read_together(
        self, offsets: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> tuple[bytearray, NDArray[np.int64], int]:
        """Read ranges of the file, in the order of their offsets, neighbours at once.

        Returns memory of this thread, where in it the ranges begin, and how much of it was read.
        """
        if not len(offsets):
            return bytearray(), offsets, 0
        stops = np.maximum.accumulate(offsets + counts)
        firsts = np.concatenate(([0], np.flatnonzero(offsets[1:] > stops[:-1] + _GAP_BYTES) + 1))
        lasts = np.concatenate((firsts[1:], [len(offsets)])) - 1
        sizes = stops[lasts] - offsets[firsts]
        begins = np.cumsum(sizes) - sizes
        data = self._scratch.of(int(sizes.sum()))
        memory = memoryview(data)
        there = 0
        for offset, begin, size in zip(offsets[firsts].tolist(), begins.tolist(), sizes.tolist(), strict=True):
            while there < begin + size:
                got = os.preadv(self._file, [memory[there : begin + size]], offset + there - begin)
                if not got:
                    break
                there += got
            if there < begin + size:
                break
        return data, offsets + np.repeat(begins - offsets[firsts], lasts - firsts + 1), there


class _Scratch(threading.local):
    """Memory of a thread that is used again for each read: new memory would take longer than reading."""

    memory = bytearray()

    def of(self, size: int) -> bytearray:
        if len(self.memory) < size:
            self.memory = bytearray(size)
        return self.memory


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands before the data of a tile, as it is stored and without comments; writers give all tiles the same."""

    stored: bytes = _NO_HEAD
    kept: bytes = b""

    @classmethod
    def of(cls, stream: memoryview, tile: Size) -> Self:
        """`ValueError` unless the stream has the outer form of a whole tile."""
        stored = read_header(stream, tile)
        if not has_end_marker(stream):
            raise ValueError("the JPEG stream of the tile does not end")
        return cls(stored, strip_metadata(stored))


def _most_bytes(tile: Size) -> int:
    # No JPEG stream is this much larger than its pixels.
    return 4 * 3 * tile.width * tile.height + (1 << 16)


def _tile_level(page: Any) -> TileLevel | None:
    if not isinstance(page, tifffile.TiffPage) or not page.is_tiled or page.compression != _JPEG:
        return None
    plain = page.samplesperpixel == 3 and page.bitspersample == 8 and page.planarconfig == _PLANAR_CONTIGUOUS
    colorspace = _COLORSPACES.get(int(page.photometric))
    if not plain or colorspace is None or page.imagedepth != 1:
        return None
    size, tile = Size(page.imagewidth, page.imagelength), Size(page.tilewidth, page.tilelength)
    columns, rows = -(-size.width // tile.width), -(-size.height // tile.height)
    if not columns * rows <= _MOST_TILES or min(len(page.dataoffsets), len(page.databytecounts)) < columns * rows:
        return None
    offsets, counts = np.array(page.dataoffsets, np.int64), np.array(page.databytecounts, np.int64)
    tables = None if page.jpegtables is None else strip_metadata(page.jpegtables)
    return TileLevel(size, tile, colorspace, columns, rows, tables, offsets, counts)
