"""Reading one level of a pyramid: only the chunks that a box touches are read and decoded.

zarr-python reads these stores as well; going straight to the shard files is what makes small reads fast.
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

# Shared by the levels of a slide; the usual limit of a process is 1,024 open files.
MAX_OPEN_SHARDS = 128

Value = TypeVar("Value")


class LruCache(Generic[Value]):
    """The values used last, up to `most` units of `cost`; safe between threads and across a fork."""

    def __init__(self, most: int, cost: Callable[[Value], int] = lambda _: 1) -> None:
        self._most, self._cost = most, cost
        self._forget()

    def _forget(self) -> None:
        self._values: OrderedDict[Any, Value] = OrderedDict()
        self._used = 0
        self._lock = threading.Lock()
        self._process = os.getpid()

    def get(self, key: object, make: Callable[[], Value]) -> Value:
        """The value of `key`, made where it is not there; two threads may make the same one."""
        if self._process != os.getpid():
            # After a fork another thread of the parent may hold the lock for ever.
            self._forget()
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._used += self._cost(value)
            while self._used > self._most and len(self._values) > 1:
                self._used -= self._cost(self._values.popitem(last=False)[1])
        return value

    def __len__(self) -> int:
        return len(self._values)


def open_level(folder: Path) -> Level:
    """A level by itself, for reading once: no chunk but the last is kept."""
    return Level(folder, *level_caches(0))


# Of decoded chunks, and of open shard files.
LevelCaches = tuple[LruCache[NDArray[np.uint8]], LruCache[Shard]]


def level_caches(most_bytes: int) -> LevelCaches:
    """A cache of decoded chunks and one of open shard files, for levels that share them."""
    return LruCache(most_bytes, lambda pixels: pixels.nbytes), LruCache(MAX_OPEN_SHARDS)


class Level:
    """An array (3, height, width) of a pyramid, read as (height, width, 3) uint8; safe between threads and forks."""

    def __init__(self, folder: Path, chunks: LruCache[NDArray[np.uint8]], shards: LruCache[Shard]) -> None:
        """Open the array `folder`, with caches of decoded chunks and of open files. Raises `StoreError`."""
        self._folder, self._chunks, self._shards = folder, chunks, shards
        # Not the folder: another store may have taken its place.
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
        """Pixels of `box`, (height, width, 3) uint8; white outside the level. Raises `StoreError`."""
        return self.assemble(box, self.chunk)

    def assemble(
        self, box: Box, source: Callable[[int, int], NDArray[np.uint8]], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """As `read`, with the decoded chunks that `source` gives for column and row, into `out` where there is one."""
        if out is None:
            out = np.empty((box.height, box.width, 3), np.uint8)
        inside = box.clipped(self.size)
        if inside != box:
            out.fill(BACKGROUND)
        chunk = self.grid.chunk
        for column, row in self.chunks_in(box):
            top, bottom = max(row * chunk.height, inside.y), min((row + 1) * chunk.height, inside.bottom)
            left, right = max(column * chunk.width, inside.x), min((column + 1) * chunk.width, inside.right)
            out[top - box.y : bottom - box.y, left - box.x : right - box.x] = source(column, row)[
                top - row * chunk.height : bottom - row * chunk.height,
                left - column * chunk.width : right - column * chunk.width,
            ]
        return out

    def chunks_in(self, box: Box) -> list[tuple[int, int]]:
        """(column, row) of each chunk that has pixels of `box`, row by row."""
        inside, chunk = box.clipped(self.size), self.grid.chunk
        if not inside.width or not inside.height:
            return []
        columns = range(inside.x // chunk.width, -(-inside.right // chunk.width))
        rows = range(inside.y // chunk.height, -(-inside.bottom // chunk.height))
        return [(column, row) for row in rows for column in columns]

    def chunk(self, column: int, row: int) -> NDArray[np.uint8]:
        """A whole decoded chunk, not to be written to. Raises `StoreError`, naming column and row."""
        return self._chunks.get((self._key, column, row), lambda: self.decode_chunk(column, row))

    def stream(self, column: int, row: int) -> bytes | None:
        """The bytes of a chunk as they are stored, None where there is none. Raises `StoreError`."""
        grid = self.grid
        where = (column // grid.shard_columns, row // grid.shard_rows)
        try:
            shard = self._shards.get((self._key, *where), lambda: self._opened(where))
            return shard.chunk(grid.index_in_shard(column, row))
        except (ValueError, OSError) as error:
            raise self._damaged(column, row, error) from error

    def _opened(self, where: tuple[int, int]) -> Shard:
        return Shard(self._folder / self.grid.path(where), self.grid.shard_columns * self.grid.shard_rows)

    def decode_chunk(self, column: int, row: int) -> NDArray[np.uint8]:
        """As `chunk`, decoded now and not kept."""
        stream = self.stream(column, row)
        if stream is None:
            return self._empty
        try:
            pixels = self.codec.decode(stream)
            if pixels.shape != self._empty.shape:
                raise ValueError(f"a picture of shape {pixels.shape}")
        except ValueError as error:
            raise self._damaged(column, row, error) from error
        return pixels

    def _damaged(self, column: int, row: int, error: Exception) -> StoreError:
        return StoreError(
            f"{self._folder}: the chunk in column {column}, row {row} is damaged ({error})",
            remedy="Convert the slide again; where its own tile is damaged, set pyramid.damaged_tiles to white",
        )
