"""Reading very many patches of a slide: in the order of its shards, each chunk decoded once.

Patches are visited stripe by stripe, a stripe being as high as a shard, and in it column by column. A chunk
is kept from the first patch that needs it to the last one, so that it is decoded once however much
the patches overlap. What is kept are the chunks between two columns and those that two stripes share, some
hundred MB for the widest slides.
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

# Beyond this the chunks that wait longest are dropped and, when their turn comes, decoded again.
PATCH_CACHE_BYTES = 1 << 30

Index = NDArray[np.int64]
Pixels = NDArray[np.uint8]
Chunk = tuple[int, int]


class PatchReader:
    """Patches of one slide, numbered in the order in which they are best read; safe between threads.

    `order[k]` is the index, into the corners given, of the patch with number k. `touched` says how many chunks
    they need and `decoded` how many have been decoded so far.
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
        """Patches with their top left corners at the level-0 pixels (x, y); those before `start` will not be read.

        `transform` is applied to each patch, (size_px, size_px, 3) uint8.
        """
        self._level, self._spec, self._transform = pyramid.levels[spec.level], spec, transform
        left, top = pyramid.corners(x, y, spec)
        self.order = np.lexsort((top, left, top // self._level.grid.shard.height))
        self._left, self._top = left[self.order], top[self.order]
        uses = self._uses(start)
        self.chunks_needed = int(np.count_nonzero(uses))
        self._kept = _Kept(self._level.decode_chunk, uses, cache_bytes)

    def __len__(self) -> int:
        return len(self.order)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the pixels of a patch."""
        return self._spec.size_px, self._spec.size_px, 3

    @property
    def chunks_decoded(self) -> int:
        return self._kept.chunks_decoded

    @property
    def cached_bytes(self) -> int:
        """Bytes of the decoded chunks that are kept now."""
        return self._kept.bytes

    def read(self, start: int, out: Pixels) -> NDArray[np.bool_]:
        """Read as many patches as `out`, (n, size_px, size_px, 3), has room for, from number `start` on.

        Returns which of them are whole; the others touch a damaged chunk and are left as they come.
        """
        whole = np.ones(len(out), np.bool_)
        for k in range(len(out)):
            whole[k] = self._read(start + k, out[k])
        return whole

    def _read(self, number: int, out: Pixels) -> bool:
        spec = self._spec
        box = Box(int(self._left[number]), int(self._top[number]), spec.read_px, spec.read_px)
        try:
            if spec.read_px == spec.size_px:
                self._level.assemble(box, self._kept.get, out)
            else:
                out[...] = resample_patch(self._level.assemble(box, self._kept.get), spec)
        except _DamagedError:
            return False
        finally:
            self._kept.release(self._level.chunks_in(box))
        if self._transform is not None:
            out[...] = self._transform(out)
        return True

    def _uses(self, start: int) -> NDArray[np.int32]:
        """How many of the patches from `start` on touch each chunk, (rows, columns)."""
        grid, size = self._level.grid, self._level.size
        edge = self._spec.read_px
        uses = np.zeros((grid.rows + 1, grid.columns + 1), np.int32)
        left, top = np.maximum(self._left[start:], 0), np.maximum(self._top[start:], 0)
        right, bottom = (
            np.minimum(first[start:] + edge, most)
            for first, most in ((self._left, size.width), (self._top, size.height))
        )
        inside = (right > left) & (bottom > top)
        first_column, first_row = (left // grid.chunk.width)[inside], (top // grid.chunk.height)[inside]
        past_column = -(-right // grid.chunk.width)[inside]
        past_row = -(-bottom // grid.chunk.height)[inside]
        # Each patch adds one to a rectangle of chunks: to its corners, of which the sums are taken.
        np.add.at(uses, (first_row, first_column), 1)
        np.add.at(uses, (past_row, past_column), 1)
        np.add.at(uses, (first_row, past_column), -1)
        np.add.at(uses, (past_row, first_column), -1)
        return uses.cumsum(0).cumsum(1)[:-1, :-1].astype(np.int32)


class _DamagedError(Exception):
    """A chunk that cannot be decoded."""


class _Kept:
    """Decoded chunks for as long as they are needed: `uses` (rows, columns) says by how many patches still."""

    def __init__(self, decode: Callable[[int, int], Pixels], uses: NDArray[np.int32], most_bytes: int) -> None:
        self._decode, self._uses, self._most = decode, uses, most_bytes
        self._chunks: OrderedDict[Chunk, Future[Pixels]] = OrderedDict()
        self.bytes = 0
        self._lock = threading.Lock()
        self.chunks_decoded = 0
        self._damaged: set[Chunk] = set()

    def get(self, column: int, row: int) -> Pixels:
        """A decoded chunk; one thread decodes it, the others that want it wait. Raises `_DamagedError`."""
        key = column, row
        with self._lock:
            future = self._chunks.get(key)
            mine = future is None
            if future is None:
                future = self._chunks[key] = Future()
        if mine:
            self._fill(key, future)
        return future.result()

    def release(self, chunks: list[Chunk]) -> None:
        """A patch that touches these chunks has been read."""
        with self._lock:
            for column, row in chunks:
                self._uses[row, column] -= 1
                if self._uses[row, column] == 0:
                    self._drop((column, row))

    def _fill(self, key: Chunk, future: Future[Pixels]) -> None:
        try:
            pixels = self._decode(*key)
        except StoreError as error:
            with self._lock:
                new = key not in self._damaged
                self._damaged.add(key)
            if new:
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
        """Chunks to drop so that the rest fits."""
        over, found = self.bytes - self._most, []
        for key, future in self._chunks.items():
            if over <= 0:
                break
            if future.done() and future.exception() is None:
                found.append(key)
                over -= future.result().nbytes
        return found

    def _drop(self, key: Chunk) -> None:
        future = self._chunks.pop(key, None)
        if future is not None and future.done() and future.exception() is None:
            self.bytes -= future.result().nbytes
