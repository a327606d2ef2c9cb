"""Encoded tiles of JPEG-tiled TIFF files, read without decoding."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Size
from wsi_pipeline.slides.jpeg import EOI, read_header, strip_metadata
from wsi_pipeline.slides.tiff_pages import Page

# Above any slide: the offset tables alone would exhaust memory.
_MAX_TILES = 20_000_000
_JPEG, _PLANAR_CONTIGUOUS = 7, 1
_COLORSPACES = {2: "RGB", 6: "YCbCr"}
# Tiles separated by at most this many bytes are read with one call.
_MAX_GAP_BYTES = 1 << 16
_TOO_SHORT = "the file ends before the tile"
# Matches no stream.
_NO_HEADER = b"\0"

# The header of a tile, up to and including the SOS marker, and the entropy-coded data.
TileStream = tuple[bytes, memoryview]


@dataclass(frozen=True, slots=True)
class TileLevel:
    """A level stored as a grid of JPEG tiles; `colorspace` is that of the streams."""

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
        """Size of all tiles in bytes."""
        return int(self.counts.sum())

    @property
    def has_missing_tiles(self) -> bool:
        """Whether any tile has no data."""
        return not self.counts.all()

    def is_padded_form_of(self, size: Size) -> bool:
        """Whether this page is an image of `size` padded to whole tiles."""
        whole = Size(self.columns * self.tile.width, self.rows * self.tile.height)
        grid = (-(-size.width // self.tile.width), -(-size.height // self.tile.height))
        return self.size == whole and grid == (self.columns, self.rows)


class TiledTiff:
    """The JPEG-tiled levels of a TIFF file; `read` is thread-safe."""

    def __init__(self, path: Path, pages: list[Page]) -> None:
        """Open a file with these pages; those that are no grid of JPEG tiles are left out."""
        self._levels = [level for level in map(_tile_level, pages) if level is not None]
        self._buffer = _ReadBuffer()
        self._file = os.open(path, os.O_RDONLY)
        self._length = os.fstat(self._file).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    @property
    def has_missing_tiles(self) -> bool:
        """Whether any tile of any level has no data."""
        return any(level.has_missing_tiles for level in self._levels)

    def levels(self, size: Size) -> list[TileLevel]:
        """The JPEG-tiled pages of `size`, and those of `size` padded to whole tiles, cropped to `size`.

        Philips TIFF states padded sizes for coarser levels, so that several levels may have one size.
        """
        return [replace(page, size=size) for page in self._levels if page.size == size or page.is_padded_form_of(size)]

    def read(self, level: TileLevel, tiles: Sequence[tuple[int, int]]) -> list[TileStream | ValueError | None]:
        """Read the streams of tiles (column, row), in the given order, without their metadata segments.

        An absent tile gives None, a damaged one a `ValueError`. The next call in the same thread overwrites
        the memory of the returned streams.
        """
        indices = [row * level.columns + column for column, row in tiles]
        offsets = level.offsets[indices]
        counts = level.counts[indices]
        found: list[TileStream | ValueError | None] = [None] * len(tiles)
        outside = (offsets < 0) | (counts < 0) | (offsets > self._length - counts)
        oversized = ~outside & (counts > _max_bytes(level.tile))
        for k in np.flatnonzero(outside & (counts != 0)).tolist():
            found[k] = ValueError(_TOO_SHORT)
        for k in np.flatnonzero(oversized).tolist():
            found[k] = ValueError(f"{counts[k]} bytes are too many for the tile")
        good = np.flatnonzero(~outside & ~oversized & (counts != 0))
        good = good[np.argsort(offsets[good], kind="stable")]
        data, starts, bytes_read = self._read_ranges(offsets[good], counts[good])
        memory = memoryview(data)
        # All tiles of a page usually share one header: compare bytes before parsing.
        known = _Header()
        for k, start, stop in zip(good.tolist(), starts.tolist(), (starts + counts[good]).tolist(), strict=True):
            if stop > bytes_read:
                found[k] = ValueError(_TOO_SHORT)
                continue
            try:
                if not data.startswith(known.stored, start, stop):
                    known = _Header.parse(memory[start:stop], level.tile)
                begin = start + len(known.stored)
                # Writers may pad a tile behind its EOI marker.
                end = stop if data.endswith(EOI, begin, stop) else data.rfind(EOI, begin, stop) + len(EOI)
                if end <= begin:
                    raise ValueError("the JPEG stream of the tile does not end")
                found[k] = known.kept, memory[begin:end]
            except ValueError as error:
                found[k] = error
        return found

    def _read_ranges(
        self, offsets: NDArray[np.int64], counts: NDArray[np.int64]
    ) -> tuple[bytearray, NDArray[np.int64], int]:
        """Read byte ranges of the file, sorted by offset; ranges that lie close together are read with one call.

        Returns the buffer of this thread, the start of each range in it, and the number of bytes read.
        """
        if not len(offsets):
            return bytearray(), offsets, 0
        stops = np.maximum.accumulate(offsets + counts)
        firsts = np.concatenate(([0], np.flatnonzero(offsets[1:] > stops[:-1] + _MAX_GAP_BYTES) + 1))
        lasts = np.concatenate((firsts[1:], [len(offsets)])) - 1
        sizes = stops[lasts] - offsets[firsts]
        begins = np.cumsum(sizes) - sizes
        data = self._buffer.get(int(sizes.sum()))
        memory = memoryview(data)
        bytes_read = 0
        for offset, begin, size in zip(offsets[firsts].tolist(), begins.tolist(), sizes.tolist(), strict=True):
            while bytes_read < begin + size:
                count = os.preadv(self._file, [memory[bytes_read : begin + size]], offset + bytes_read - begin)
                if not count:
                    break
                bytes_read += count
            if bytes_read < begin + size:
                break
        return data, offsets + np.repeat(begins - offsets[firsts], lasts - firsts + 1), bytes_read


class _ReadBuffer(threading.local):
    """One buffer per thread, reused for all reads: page faults of new memory would take longer than the reads."""

    memory = bytearray()

    def get(self, size: int) -> bytearray:
        if len(self.memory) < size:
            self.memory = bytearray(size)
        return self.memory


@dataclass(frozen=True, slots=True)
class _Header:
    """The header of a tile, as stored and without metadata segments."""

    stored: bytes = _NO_HEADER
    kept: bytes = b""

    @classmethod
    def parse(cls, stream: memoryview, tile: Size) -> Self:
        """Parse the header of a stream. Raises `ValueError` unless it is that of a JPEG stream of size `tile`."""
        stored = read_header(stream, tile)
        return cls(stored, strip_metadata(stored))


def _max_bytes(tile: Size) -> int:
    # Generous upper bound: four times the raw pixels.
    return 4 * 3 * tile.width * tile.height + (1 << 16)


def _tile_level(page: Page) -> TileLevel | None:
    tiff = page.tiff
    colorspace = _COLORSPACES.get(int(tiff.photometric))
    is_copyable = page.tiled and page.problem is None and tiff.compression == _JPEG and tiff.samplesperpixel == 3
    if not is_copyable or colorspace is None or tiff.planarconfig != _PLANAR_CONTIGUOUS:
        return None
    size, tile = page.size, Size(tiff.tilewidth, tiff.tilelength)
    columns, rows = -(-size.width // tile.width), -(-size.height // tile.height)
    if not columns * rows <= _MAX_TILES or min(len(page.offsets), len(page.counts)) < columns * rows:
        return None
    tables = None if tiff.jpegtables is None else strip_metadata(tiff.jpegtables)
    return TileLevel(size, tile, colorspace, columns, rows, tables, page.offsets, page.counts)
