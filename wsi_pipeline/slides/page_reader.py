"""Pixels of one page of a TIFF file, decoded by tifffile strip by strip or tile by tile."""

from __future__ import annotations

import os
import weakref
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.slides.tiff_pages import Page, PageError

# Of decoded strips or tiles: a row of regions of 1,024 px fits up to a width of 40,000 px.
_CACHE_BYTES = 128 << 20
_MAX_SEGMENT_BYTES = 4 << 30
# Uncompressed pixels that lie in one piece are read in strips of this many rows, whatever the file's own strips are.
_ROWS = 64
_WHITE = 255
_WHITE_IS_ZERO, _PALETTE = 0, 3
_ASSOCIATED_ALPHA = 1
_SEPARATE = 2


class PageReader:
    """The pixels of one page as RGB; `read` is thread-safe."""

    def __init__(self, path: Path, page: Page) -> None:
        """Open a page. Raises `PageError` where its pixels cannot be read."""
        page.check()
        self.page = page
        self.size = page.size
        tiff = page.tiff
        self._samples = int(tiff.samplesperpixel)
        self._planes = self._samples if int(tiff.planarconfig) == _SEPARATE and self._samples > 1 else 1
        self._contiguous = bool(tiff.is_contiguous) and not tiff.is_tiled and self._planes == 1
        self._segment = self._segment_size()
        self._columns = -(-self.size.width // self._segment.width)
        self._rows = -(-self.size.height // self._segment.height)
        nbytes = self._segment.width * self._segment.height * self._samples
        if nbytes > _MAX_SEGMENT_BYTES:
            raise PageError(f"{page} is stored in tiles or strips of {nbytes} bytes")
        self._alpha = tuple(tiff.extrasamples) if self._samples == 4 else ()
        self._decode = tiff.decode
        self._tables, self._header = tiff.jpegtables, tiff.jpegheader
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._decoded = lru_cache(max(1, _CACHE_BYTES // nbytes))(self._decode_segment)

    def _segment_size(self) -> Size:
        tiff = self.page.tiff
        if self._contiguous:
            return Size(self.size.width, _ROWS)
        if tiff.is_tiled:
            return Size(tiff.tilewidth, tiff.tilelength)
        return Size(self.size.width, max(1, min(tiff.rowsperstrip, self.size.height)))

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Read `box`, which lies inside the page, as (height, width, 3) uint8; missing tiles are white.

        Raises `ValueError` for damaged data.
        """
        out = np.full((box.height, box.width, 3), _WHITE, np.uint8)
        width, height = self._segment.width, self._segment.height
        for row in range(box.y // height, -(-box.bottom // height)):
            for column in range(box.x // width, -(-box.right // width)):
                pixels = self._decoded(column, row)
                if pixels is None:
                    continue
                x, y = column * width, row * height
                top, left = max(y, box.y), max(x, box.x)
                bottom = min(y + pixels.shape[0], box.bottom)
                right = min(x + pixels.shape[1], box.right)
                out[top - box.y : bottom - box.y, left - box.x : right - box.x] = pixels[
                    top - y : bottom - y, left - x : right - x
                ]
        return out

    def _decode_segment(self, column: int, row: int) -> NDArray[np.uint8] | None:
        if self._contiguous:
            return self._rgb(self._read_rows(row))
        planes = []
        for plane in range(self._planes):
            index = (plane * self._rows + row) * self._columns + column
            if index >= min(len(self.page.offsets), len(self.page.counts)):
                raise ValueError("the page lists fewer tiles or strips than it has")
            stored = self._read_bytes(int(self.page.offsets[index]), int(self.page.counts[index]))
            if not stored:
                return None
            try:
                decoded, _, _ = self._decode(stored, index, jpegtables=self._tables, jpegheader=self._header)
                planes.append(np.asarray(decoded)[0])
            except Exception as error:  # Each codec raises its own.
                raise ValueError(" ".join(str(error).split())) from error
        return self._rgb(np.concatenate(planes, axis=2))

    def _read_rows(self, row: int) -> NDArray[np.uint8]:
        rows = min(_ROWS, self.size.height - row * _ROWS)
        stride = self.size.width * self._samples
        data = self._read_bytes(int(self.page.offsets[0]) + row * _ROWS * stride, rows * stride)
        return np.frombuffer(data, np.uint8).reshape(rows, self.size.width, self._samples)

    def _read_bytes(self, offset: int, count: int) -> bytes:
        # A damaged count must not allocate memory.
        available = os.fstat(self._file).st_size - offset
        if not 0 <= count <= available:
            raise ValueError("the file ends before the tile or strip")
        return os.pread(self._file, count, offset)

    def _rgb(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(h, w, samples) as (h, w, 3); transparent pixels are on white."""
        photometric = int(self.page.tiff.photometric)
        if photometric == _PALETTE:
            # Colour maps have 16 bits (TIFF 6.0, section 5).
            colors: NDArray[np.uint16] = np.asarray(self.page.tiff.colormap, np.uint16).T[pixels[..., 0]]
            return (colors >> 8).astype(np.uint8)
        if photometric == _WHITE_IS_ZERO:
            pixels = _WHITE - pixels
        if self._samples == 1:
            return np.repeat(pixels, 3, axis=2)
        if self._samples == 3:
            return pixels
        rgb, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
        if self._alpha == (_ASSOCIATED_ALPHA,):
            return np.asarray(np.minimum(rgb + (_WHITE - alpha), _WHITE), np.uint8)
        return np.asarray((rgb * alpha + _WHITE * (_WHITE - alpha) + 127) // 255, np.uint8)
