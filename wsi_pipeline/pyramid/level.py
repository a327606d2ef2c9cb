"""Read one level of a pyramid; only the chunks that overlap the box are read and decoded.

Reads the shard files directly: zarr-python reads the same stores, but its indexer dominates the time of small reads.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import StoreError
from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.pyramid.codecs import level_codec_from_metadata
from wsi_pipeline.pyramid.ome_zarr import BACKGROUND
from wsi_pipeline.pyramid.shards import ChunkGrid, Shard

# Per slide, for all levels; the usual limit is 1,024 open files per process.
MAX_OPEN_SHARDS = 128

Value = TypeVar("Value")


class LruCache(Generic[Value]):
    """LRU cache of at least one value, with a capacity in units of `cost`; thread-safe and fork-safe."""

    def __init__(self, capacity: int, cost: Callable[[Value], int] = lambda _: 1) -> None:
        self._capacity = capacity
        self._cost = cost
        self._clear()

    def _clear(self) -> None:
        self._values: OrderedDict[Any, Value] = OrderedDict()
        self._used = 0
        self._lock = threading.Lock()
        self._process = os.getpid()

    def get(self, key: object, load: Callable[[], Value]) -> Value:
        """The value of `key`, from `load` on a miss. Two threads may load the same value at the same time."""
        if self._process != os.getpid():
            # The child of a fork inherits a lock that a thread of the parent may have held.
            self._clear()
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = load()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._used += self._cost(value)
            while self._used > self._capacity and len(self._values) > 1:
                self._used -= self._cost(self._values.popitem(last=False)[1])
        return value

    def __len__(self) -> int:
        return len(self._values)


def open_level(folder: Path) -> Level:
    """Open a level for one sequential pass; only the last decoded chunk is cached."""
    return Level(folder, *level_caches(0))


# Caches of decoded chunks and of open shard files.
LevelCaches = tuple[LruCache[NDArray[np.uint8]], LruCache[Shard]]


def level_caches(capacity_bytes: int) -> LevelCaches:
    """Caches of decoded chunks, up to `capacity_bytes`, and of open shard files, for levels to share."""
    return LruCache(capacity_bytes, lambda pixels: pixels.nbytes), LruCache(MAX_OPEN_SHARDS)


class Level:
    """A pyramid level (3, height, width), read as (height, width, 3) uint8; thread-safe and fork-safe."""

    def __init__(self, folder: Path, chunks: LruCache[NDArray[np.uint8]], shards: LruCache[Shard]) -> None:
        """Open the array `folder` with the given caches. Raises `StoreError`."""
        self._folder = folder
        self._chunks = chunks
        self._shards = shards
        # The path would be a wrong cache key: a new store may have replaced the folder.
        self._key = object()
        try:
            metadata = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
            _, height, width = metadata["shape"]
            _, shard_height, shard_width = metadata["chunk_grid"]["configuration"]["chunk_shape"]
            (sharding,) = metadata["codecs"]
            _, chunk_height, chunk_width = sharding["configuration"]["chunk_shape"]
            self.size, chunk = Size(width, height), Size(chunk_width, chunk_height)
            self.grid = ChunkGrid(self.size, chunk, shard_width // chunk_width, shard_height // chunk_height)
            self.codec = level_codec_from_metadata(sharding["configuration"]["codecs"], chunk)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{folder}: not a level of a pyramid ({error})", remedy="Convert the slide again"
            ) from error
        self._empty = np.broadcast_to(np.uint8(BACKGROUND), (chunk.height, chunk.width, 3))

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Read `box`, in pixels of this level, as (height, width, 3) uint8; white outside. Raises `StoreError`."""
        return self.assemble(box, self.chunk)

    def assemble(
        self, box: Box, source: Callable[[int, int], NDArray[np.uint8]], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """As `read`, with decoded chunks from `source(column, row)`, and into `out` where it is given."""
        if out is None:
            out = np.empty((box.height, box.width, 3), np.uint8)
        inside = box.clipped(self.size)
        if inside != box:
            out.fill(BACKGROUND)
        chunk = self.grid.chunk
        for column, row in self.grid.chunks_in(box):
            top, bottom = max(row * chunk.height, inside.y), min((row + 1) * chunk.height, inside.bottom)
            left, right = max(column * chunk.width, inside.x), min((column + 1) * chunk.width, inside.right)
            out[top - box.y : bottom - box.y, left - box.x : right - box.x] = source(column, row)[
                top - row * chunk.height : bottom - row * chunk.height,
                left - column * chunk.width : right - column * chunk.width,
            ]
        return out

    def chunk(self, column: int, row: int) -> NDArray[np.uint8]:
        """A whole decoded chunk from the cache; must not be modified. Raises `StoreError`, naming column and row."""
        return self._chunks.get((self._key, column, row), lambda: self.decode_chunk(column, row))

    def stream(self, column: int, row: int) -> bytes | None:
        """The encoded bytes of a chunk, None for an absent chunk. Raises `StoreError`."""
        grid = self.grid
        place = (column // grid.shard_columns, row // grid.shard_rows)
        try:
            shard = self._shards.get((self._key, *place), lambda: self._open_shard(place))
            return shard.chunk(grid.index_in_shard(column, row))
        except (ValueError, OSError) as error:
            raise self._damaged(column, row, error) from error

    def _open_shard(self, place: tuple[int, int]) -> Shard:
        return Shard(self._folder / self.grid.path(place), self.grid.shard_columns * self.grid.shard_rows)

    def decode_chunk(self, column: int, row: int) -> NDArray[np.uint8]:
        """As `chunk`, without the cache."""
        stream = self.stream(column, row)
        if stream is None:
            return self._empty
        try:
            pixels = self.codec.decode(stream)
            if pixels.shape != self._empty.shape:
                raise ValueError(f"an image of shape {pixels.shape}")
        except ValueError as error:
            raise self._damaged(column, row, error) from error
        return pixels

    def _damaged(self, column: int, row: int, error: Exception) -> StoreError:
        return StoreError(
            f"{self._folder}: the chunk in column {column}, row {row} is damaged ({error})",
            remedy="Convert the slide again; where the slide's own tile is damaged, set pyramid.damaged_tiles to white",
        )
