"""Stores of patches: a zarr array (patch, y, x, c) with one chunk a patch, in shards, each patch a JPEG or lossless.

Patches are decoded one by one from open shard files; the whole array opens with zarr too.
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

_SHARD_PATCHES = 256
# Read and encoded together; memory is bounded by this many decoded patches a thread.
_BATCH = 32

# Pixels (n, edge, edge, 3) of the patches from the first number up to the second.
ReadPatches = Callable[[int, int], NDArray[np.uint8]]


def write_patches(
    folder: Path, count: int, edge: int, border_px: int, codec: ChunkCodec, read: ReadPatches, threads: int
) -> dict[str, str]:
    """Write a store of `count` patches of `edge` px, `border_px` of them on each side for jitter.

    Returns the digest of each shard file by its path below `folder`.
    """
    zarr.create_array(
        folder,
        shape=(count, edge, edge, 3),
        chunks=(1, edge, edge, 3),
        shards=(_SHARD_PATCHES, edge, edge, 3),
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
        for start in range(0, count, _SHARD_PATCHES):
            stop = min(start + _SHARD_PATCHES, count)
            starts = range(start, stop, _BATCH)
            parts = pool.map(encoded, starts, (min(first + _BATCH, stop) for first in starts))
            chunks = [chunk for part in parts for chunk in part]
            name = _shard_path(start // _SHARD_PATCHES)
            _, digests[name] = write_shard(folder / name, range(len(chunks)), chunks, _SHARD_PATCHES)
            shown.update(stop)
    return digests


class PatchStore:
    """The patches of a slide, for reading from any thread; `files` keeps shard files open, for several stores."""

    def __init__(self, path: Path, files: LruCache[Shard] | None = None) -> None:
        """Open a store. Raises `StoreError`."""
        self._path = path
        self._files: LruCache[Shard] = LruCache(MAX_OPEN_SHARDS) if files is None else files
        try:
            metadata = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
            count, edge, _, _ = metadata["shape"]
            self._shard = int(metadata["chunk_grid"]["configuration"]["chunk_shape"][0])
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
        """Bytes of all pixels."""
        return self._count * self.edge * self.edge * 3

    @property
    def stored_bytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in (self._path / "c").rglob("*") if path.is_file())

    def stream(self, number: int) -> bytes:
        """A patch as it is stored. Raises `StoreError` where it cannot be read."""
        which = number // self._shard
        try:
            shard = self._files.get((self._path, which), lambda: Shard(self._path / _shard_path(which), self._shard))
            stream = shard.chunk(number % self._shard)
        except (ValueError, OSError) as error:
            raise self._damaged(number, error) from error
        if stream is None:
            raise self._damaged(number, "it is not there")
        return stream

    def decode(self, number: int, stream: bytes) -> NDArray[np.uint8]:
        """The patch of a stream with its border, (edge, edge, 3) uint8. `StoreError` where it is damaged."""
        try:
            pixels = self._codec.decode(stream)
        except ValueError as error:
            raise self._damaged(number, error) from error
        if pixels.shape != (self.edge, self.edge, 3):
            raise self._damaged(number, f"a picture of shape {pixels.shape}")
        return pixels

    def read(self, number: int) -> NDArray[np.uint8]:
        """A patch with its border, (edge, edge, 3) uint8. Raises `StoreError`, naming it, where it is damaged."""
        return self.decode(number, self.stream(number))

    def _damaged(self, number: int, why: object) -> StoreError:
        return StoreError(f"{self._path}: patch {number} is damaged ({why})", remedy="Run the stage patches again")


def _shard_path(number: int) -> str:
    return f"c/{number}/0/0/0"
