"""Writing zarr v3 shard files from chunks that are already encoded.

Layout of `sharding_indexed` with its index at the end: the chunks, then for each chunk its offset and
its length as little-endian uint64 (both 2^64 - 1 where there is none), then the CRC-32C of the index.
Specification: https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/index.html
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import google_crc32c
import numpy as np

_ABSENT = np.uint64(2**64 - 1)


def write_shard(path: Path, chunks: Iterable[tuple[int, bytes | None]], count: int) -> int:
    """Write a shard of `count` chunks, given as (position in the shard, bytes or None); returns how many there are.

    A shard without any chunk is not written, as zarr reads it as fill values.
    """
    index = np.full((count, 2), _ABSENT, "<u8")
    parts, offset = [], 0
    for position, data in chunks:
        if data is not None:
            index[position] = offset, len(data)
            parts.append(data)
            offset += len(data)
    if not parts:
        return 0
    raw = index.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.writelines(parts)
        file.write(raw)
        file.write(google_crc32c.value(raw).to_bytes(4, "little"))
    return len(parts)
