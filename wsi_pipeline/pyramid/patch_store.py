"""Patch stores: a sharded zarr array (patch, y, x, c) with one chunk per patch, JPEG or lossless.

Patches are decoded one by one from open shard files. Any zarr library can read the array.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray

from wsi_pipeline.errors import StoreError
from wsi_pipeline.geometry import Size
from wsi_pipeline.progress_bar import ProgressBar
from wsi_pipeline.pyramid.codecs import ChunkCodec, image_array_codecs, image_codec_from_metadata
from wsi_pipeline.pyramid.level import MAX_OPEN_SHARDS, LruCache
from wsi_pipeline.pyramid.shards import Chunk, Shard, write_shard

_PATCHES_PER_SHARD = 256
# Patches read and encoded together: bounds memory to this many decoded patches per thread.
_BATCH_SIZE = 32

# Maps (start, stop) to the pixels of these patches, (n, edge, edge, 3) uint8.
ReadPatches = Callable[[int, int], NDArray[np.uint8]]


def write_patches(
    folder: Path, count: int, edge: int, border_px: int, codec: ChunkCodec, read: ReadPatches, threads: int
) -> dict[str, str]:
    """Write a store of `count` patches of `edge` px, which include a border of `border_px` on each side for jitter.

    Returns the digest of each shard file by its path below `folder`.
    """
    zarr.create_array(
        folder,
        shape=(count, edge, edge, 3),
        chunks=(1, edge, edge, 3),
        shards=(_PATCHES_PER_SHARD, edge, edge, 3),
        dtype="uint8",
        fill_value=0,
        dimension_names=["patch", "y", "x", "c"],
        attributes={"border_px": border_px},
        **image_array_codecs(codec),
    )

    def encoded(start: int, stop: int) -> list[Chunk | None]:
        return [(codec.encode(pixels),) for pixels in read(start, stop)]

    digests = {}
    with ThreadPoolExecutor(threads) as pool, ProgressBar("patches", count) as shown:
        for start in range(0, count, _PATCHES_PER_SHARD):
            stop = min(start + _PATCHES_PER_SHARD, count)
            starts = range(start, stop, _BATCH_SIZE)
            parts = pool.map(encoded, starts, (min(first + _BATCH_SIZE, stop) for first in starts))
            chunks = [chunk for part in parts for chunk in part]
            name = _shard_path(start // _PATCHES_PER_SHARD)
            _, digests[name] = write_shard(folder / name, range(len(chunks)), chunks, _PATCHES_PER_SHARD)
            shown.update(stop)
    return digests


class PatchStore:
    """Reader of a patch store; thread-safe. Several stores may share `files`, a cache of open shard files."""

    def __init__(self, path: Path, files: LruCache[Shard] | None = None) -> None:
        """Open a store. Raises `StoreError`."""
        self._path = path
        self._files: LruCache[Shard] = LruCache(MAX_OPEN_SHARDS) if files is None else files
        try:
            metadata = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
            count, edge, _, _ = metadata["shape"]
            self._patches_per_shard = int(metadata["chunk_grid"]["configuration"]["chunk_shape"][0])
            (sharding,) = metadata["codecs"]
            self._codec = image_codec_from_metadata(sharding["configuration"]["codecs"], Size(edge, edge))
            self.border_px = int(metadata["attributes"]["border_px"])
            self._count, self.edge = int(count), int(edge)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: not a patch store ({error})", remedy="Run the stage patches again") from error

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Size of all decoded patches in bytes."""
        return self._count * self.edge * self.edge * 3

    @property
    def stored_bytes(self) -> int:
        """Size of all shard files in bytes."""
        return sum(path.stat().st_size for path in (self._path / "c").rglob("*") if path.is_file())

    def stream(self, number: int) -> bytes:
        """The encoded bytes of a patch. Raises `StoreError` where it cannot be read."""
        shard_number = number // self._patches_per_shard
        try:
            path = self._path / _shard_path(shard_number)
            shard = self._files.get((self._path, shard_number), lambda: Shard(path, self._patches_per_shard))
            stream = shard.chunk(number % self._patches_per_shard)
        except (ValueError, OSError) as error:
            raise self._damaged(number, error) from error
        if stream is None:
            raise self._damaged(number, "it is missing")
        return stream

    def decode(self, number: int, stream: bytes) -> NDArray[np.uint8]:
        """Decode patch `number` with its border: (edge, edge, 3) uint8. Raises `StoreError` for a damaged stream."""
        try:
            pixels = self._codec.decode(stream)
        except ValueError as error:
            raise self._damaged(number, error) from error
        if pixels.shape != (self.edge, self.edge, 3):
            raise self._damaged(number, f"an image of shape {pixels.shape}")
        return pixels

    def read(self, number: int) -> NDArray[np.uint8]:
        """Read a patch with its border: (edge, edge, 3) uint8. Raises `StoreError`, naming the patch."""
        return self.decode(number, self.stream(number))

    def _damaged(self, number: int, problem: object) -> StoreError:
        return StoreError(f"{self._path}: patch {number} is damaged ({problem})", remedy="Run the stage patches again")


def _shard_path(number: int) -> str:
    return f"c/{number}/0/0/0"
