"""Zarr v3 shard files: written from encoded chunks, read one chunk at a time.

Layout of `sharding_indexed` with the index at the end: the chunks, then offset and length of each chunk as
little-endian uint64 (both 2^64 - 1 for an absent chunk), then the CRC-32C of the index. Zeros before the index pad the
file to a whole number of blocks.
Specification: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.io.direct_io import write_blocks
from wsi_pipeline.progress_bar import track

_ABSENT = np.uint64(2**64 - 1)
_CRC_BYTES = 4

# An encoded chunk in parts, which are written one after another without joining them in memory.
Chunk = tuple[bytes | memoryview, ...]


@dataclass(frozen=True, slots=True)
class ChunkGrid:
    """Division of a level of `size` into chunks, and of chunks into shards of `shard_columns` x `shard_rows`."""

    size: Size
    chunk: Size
    shard_columns: int
    shard_rows: int

    @classmethod
    def of(cls, size: Size, chunk: Size, shard_px: int) -> ChunkGrid:
        """A grid with as many chunks per shard as fit into `shard_px`, at least one."""
        return cls(size, chunk, max(1, shard_px // chunk.width), max(1, shard_px // chunk.height))

    @property
    def columns(self) -> int:
        return -(-self.size.width // self.chunk.width)

    @property
    def rows(self) -> int:
        return -(-self.size.height // self.chunk.height)

    @property
    def count(self) -> int:
        """Number of chunks."""
        return self.columns * self.rows

    @property
    def shard(self) -> Size:
        """Size of a shard in pixels."""
        return Size(self.shard_columns * self.chunk.width, self.shard_rows * self.chunk.height)

    def shards(self) -> list[tuple[int, int]]:
        """(column, row) of each shard."""
        return [
            (x, y)
            for y in range(-(-self.rows // self.shard_rows))
            for x in range(-(-self.columns // self.shard_columns))
        ]

    def chunks(self, shard: tuple[int, int]) -> list[tuple[int, int]]:
        """(column, row) of each chunk of a shard that overlaps the level."""
        x, y = shard[0] * self.shard_columns, shard[1] * self.shard_rows
        return [
            (column, row)
            for row in range(y, min(y + self.shard_rows, self.rows))
            for column in range(x, min(x + self.shard_columns, self.columns))
        ]

    def chunks_in(self, box: Box) -> list[tuple[int, int]]:
        """(column, row) of each chunk that overlaps `box`, in pixels of the level, row by row."""
        inside = box.clipped(self.size)
        if not inside.width or not inside.height:
            return []
        columns = range(inside.x // self.chunk.width, -(-inside.right // self.chunk.width))
        rows = range(inside.y // self.chunk.height, -(-inside.bottom // self.chunk.height))
        return [(column, row) for row in rows for column in columns]

    def index_in_shard(self, column: int, row: int) -> int:
        """Position of a chunk in the index of its shard."""
        return row % self.shard_rows * self.shard_columns + column % self.shard_columns

    def box(self, column: int, row: int) -> Box:
        """The chunk in pixels of the level; it may reach beyond the edge."""
        return Box(column * self.chunk.width, row * self.chunk.height, self.chunk.width, self.chunk.height)

    def path(self, shard: tuple[int, int]) -> str:
        """Path of the shard file below the folder of its array (c, y, x)."""
        return f"c/0/{shard[1]}/{shard[0]}"


def write_shards(
    folder: Path,
    grid: ChunkGrid,
    encoded: Callable[[list[tuple[int, int]]], Sequence[Chunk | None]],
    threads: int,
) -> tuple[int, dict[str, str]]:
    """Write all shards of the array `folder`; `encoded` maps the (column, row) of one shard's chunks to their bytes.

    Returns the number of present chunks, and the digest of each file by its path below `folder`. Memory is
    bounded by one shard per thread.
    """

    def write(shard: tuple[int, int]) -> tuple[int, str]:
        chunks = grid.chunks(shard)
        positions = [grid.index_in_shard(column, row) for column, row in chunks]
        return write_shard(folder / grid.path(shard), positions, encoded(chunks), grid.shard_columns * grid.shard_rows)

    shards = grid.shards()
    with ThreadPoolExecutor(threads) as pool:
        # Cancel all pending shards after the first error.
        futures = [pool.submit(write, shard) for shard in shards]
        try:
            finished = (future.result() for future in futures)
            written = list(track(finished, f"level {folder.name}", len(shards)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    digests = {grid.path(shard): digest for shard, (_, digest) in zip(shards, written, strict=True)}
    return sum(present for present, _ in written), digests


def write_shard(path: Path, positions: Sequence[int], chunks: Sequence[Chunk | None], count: int) -> tuple[int, str]:
    """Write a shard of `count` chunks; returns the number of present chunks, and CRC-32C and size of the file.

    A cryptographic digest would double the time, and the source has one already. A shard without any chunk is
    written too, so that a lost file is not read as fill values.
    """
    present = [(position, chunk) for position, chunk in zip(positions, chunks, strict=True) if chunk is not None]
    lengths = np.array([sum(map(len, chunk)) for _, chunk in present], np.int64)
    index = np.full((count, 2), _ABSENT, "<u8")
    places = np.array([position for position, _ in present], np.int64)
    index[places] = np.stack((np.cumsum(lengths) - lengths, lengths), axis=1)
    raw = index.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    checksum, length = write_blocks(
        path,
        [part for _, chunk in present for part in chunk],
        raw + google_crc32c.value(raw).to_bytes(_CRC_BYTES, "little"),
    )
    return len(present), f"crc32c:{checksum:08x}:{length}"


class Shard:
    """A shard file open for reading: the index is read once, chunks by `pread`; thread-safe."""

    __slots__ = ("_file", "_index", "_length")

    def __init__(self, path: Path, count: int) -> None:
        """Open a shard of `count` chunks. Raises `FileNotFoundError`, and `ValueError` for a damaged file."""
        self._file = os.open(path, os.O_RDONLY)
        self._length = os.fstat(self._file).st_size - 16 * count - _CRC_BYTES
        if self._length < 0:
            raise ValueError("the file is too short for its index")
        raw = os.pread(self._file, 16 * count + _CRC_BYTES, self._length)
        if google_crc32c.value(raw[:-_CRC_BYTES]) != int.from_bytes(raw[-_CRC_BYTES:], "little"):
            raise ValueError("the checksum of the index is wrong")
        self._index = np.frombuffer(raw, "<u8", 2 * count).reshape(count, 2)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def chunk(self, position: int) -> bytes | None:
        """The bytes of a chunk, None for an absent one. Raises `ValueError` for an invalid index."""
        offset, length = self._index[position].tolist()
        if length == _ABSENT:
            return None
        if offset + length > self._length:
            raise ValueError("the index points beyond the end of the file")
        return os.pread(self._file, length, offset)
