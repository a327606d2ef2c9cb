"""Read many patches of a slide in shard order, decoding each chunk once.

Patches are read in stripes of the height of a shard, and by column within a stripe. A chunk stays in the cache from the
first to the last patch that overlaps it, so that it is decoded once even where patches overlap. The cache then holds
the chunks between two columns and those that two stripes share: some hundred MB for the widest slides.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import StoreError
from wsi_pipeline.geometry import Box, PatchSpec
from wsi_pipeline.pyramid.pyramid import Pyramid, resample_patch

log = logging.getLogger(__name__)

# Limit of the cache. Beyond it the oldest chunks are evicted, and decoded again when they are needed.
PATCH_CACHE_BYTES = 1 << 30

Index = NDArray[np.int64]
Pixels = NDArray[np.uint8]
Chunk = tuple[int, int]


class PatchReader:
    """Patches of one slide, numbered in reading order; thread-safe.

    `order[k]` is the index of patch number k in the given coordinates. `chunks_needed` is the number of chunks that
    the patches overlap, `chunks_decoded` the number of chunks decoded so far.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        spec: PatchSpec,
        x: Index,
        y: Index,
        *,
        start: int = 0,
        transform: Callable[[Pixels], Pixels] | None = None,
        cache_bytes: int = PATCH_CACHE_BYTES,
    ) -> None:
        """Patches with top left corners at the level-0 pixels (x, y); numbers below `start` are not read.

        `transform` is applied to the pixels of each patch, (size_px, size_px, 3) uint8.
        """
        self._level = pyramid.levels[spec.level]
        self._spec = spec
        self._transform = transform
        left, top = pyramid.corners(x, y, spec)
        self.order = np.lexsort((top, left, top // self._level.grid.shard.height))
        self._left = left[self.order]
        self._top = top[self.order]
        uses = self._uses(start)
        self.chunks_needed = int(np.count_nonzero(uses))
        self._cache = _ChunkCache(self._level.decode_chunk, uses, cache_bytes)

    def __len__(self) -> int:
        return len(self.order)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a patch, (size_px, size_px, 3)."""
        return self._spec.size_px, self._spec.size_px, 3

    @property
    def chunks_decoded(self) -> int:
        return self._cache.chunks_decoded

    @property
    def cached_bytes(self) -> int:
        """Size of the cached chunks in bytes."""
        return self._cache.bytes

    def read(self, start: int, out: Pixels) -> NDArray[np.bool_]:
        """Read patches `start` to `start + n` into `out`, (n, size_px, size_px, 3) uint8.

        Returns (n,) bool: whether each patch was read. The others overlap a damaged chunk, and their pixels are
        undefined. Each patch may be read once.
        """
        is_read = np.ones(len(out), np.bool_)
        for k in range(len(out)):
            is_read[k] = self._read(start + k, out[k])
        return is_read

    def _read(self, number: int, out: Pixels) -> bool:
        spec = self._spec
        box = Box(int(self._left[number]), int(self._top[number]), spec.read_px, spec.read_px)
        try:
            if spec.factor == 1:
                self._level.assemble(box, self._cache.get, out)
            else:
                out[...] = resample_patch(self._level.assemble(box, self._cache.get), spec)
        except _DamagedError:
            return False
        finally:
            self._cache.release(self._level.grid.chunks_in(box))
        if self._transform is not None:
            out[...] = self._transform(out)
        return True

    def _uses(self, start: int) -> NDArray[np.int32]:
        """Number of patches, from `start` on, that overlap each chunk: (rows, columns)."""
        grid, size = self._level.grid, self._level.size
        edge = self._spec.read_px
        uses = np.zeros((grid.rows + 1, grid.columns + 1), np.int32)
        left = np.maximum(self._left[start:], 0)
        top = np.maximum(self._top[start:], 0)
        right = np.minimum(self._left[start:] + edge, size.width)
        bottom = np.minimum(self._top[start:] + edge, size.height)
        inside = (right > left) & (bottom > top)
        first_column = (left // grid.chunk.width)[inside]
        first_row = (top // grid.chunk.height)[inside]
        past_column = -(-right // grid.chunk.width)[inside]
        past_row = -(-bottom // grid.chunk.height)[inside]
        # 2-D difference array: mark the corners, then take cumulative sums.
        np.add.at(uses, (first_row, first_column), 1)
        np.add.at(uses, (past_row, past_column), 1)
        np.add.at(uses, (first_row, past_column), -1)
        np.add.at(uses, (past_row, first_column), -1)
        return uses.cumsum(0).cumsum(1)[:-1, :-1].astype(np.int32)


class _DamagedError(Exception):
    """A chunk cannot be decoded; the problem has been logged."""


class _ChunkCache:
    """Cache of decoded chunks with reference counts: `uses` (rows, columns) is the number of patches left to read."""

    def __init__(self, decode: Callable[[int, int], Pixels], uses: NDArray[np.int32], capacity_bytes: int) -> None:
        self._decode = decode
        self._uses = uses
        self._capacity = capacity_bytes
        self._chunks: OrderedDict[Chunk, Future[Pixels]] = OrderedDict()
        self.bytes = 0
        self._lock = threading.Lock()
        self.chunks_decoded = 0
        self._damaged: set[Chunk] = set()

    def get(self, column: int, row: int) -> Pixels:
        """A decoded chunk. One thread decodes it while others wait for the result. Raises `_DamagedError`."""
        key = column, row
        with self._lock:
            future = self._chunks.get(key)
            is_first = future is None
            if future is None:
                future = self._chunks[key] = Future()
        if is_first:
            self._load(key, future)
        return future.result()

    def release(self, chunks: list[Chunk]) -> None:
        """Count a read patch that overlaps these chunks, and drop those that no other patch needs."""
        with self._lock:
            for column, row in chunks:
                self._uses[row, column] -= 1
                if self._uses[row, column] == 0:
                    self._drop((column, row))

    def _load(self, key: Chunk, future: Future[Pixels]) -> None:
        try:
            pixels = self._decode(*key)
        except StoreError as error:
            with self._lock:
                is_new = key not in self._damaged
                self._damaged.add(key)
            if is_new:
                log.warning("%s", error)
            future.set_exception(_DamagedError())
        except BaseException as error:
            future.set_exception(error)
            raise
        else:
            with self._lock:
                self.chunks_decoded += 1
                self.bytes += pixels.nbytes
                future.set_result(pixels)
                for other in [k for k in self._oldest() if k != key]:
                    self._drop(other)

    def _oldest(self) -> list[Chunk]:
        """The oldest chunks whose eviction brings the cache below its capacity."""
        excess = self.bytes - self._capacity
        found = []
        for key, future in self._chunks.items():
            if excess <= 0:
                break
            if future.done() and future.exception() is None:
                found.append(key)
                excess -= future.result().nbytes
        return found

    def _drop(self, key: Chunk) -> None:
        future = self._chunks.pop(key, None)
        if future is not None and future.done() and future.exception() is None:
            self.bytes -= future.result().nbytes
