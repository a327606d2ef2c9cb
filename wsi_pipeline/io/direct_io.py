"""Direct I/O (O_DIRECT): write files of whole blocks past the page cache.

Copying into new pages of the cache takes longer than any other part of a conversion, and evicts the cached data of
other processes. File systems without direct I/O fall back to the page cache.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np

# O_DIRECT requires lengths and addresses in multiples of the device's block size, which is at most this.
BLOCK_BYTES = 4096
_O_DIRECT: int = getattr(os, "O_DIRECT", 0)


class _AlignedBuffer(threading.local):
    """One page-aligned buffer per thread, reused for all files."""

    memory: memoryview = memoryview(b"")

    def get(self, size: int) -> memoryview:
        if len(self.memory) < size:
            self.memory = memoryview(mmap.mmap(-1, size))
        return self.memory[:size]


_buffer = _AlignedBuffer()


def write_blocks(path: Path, parts: Sequence[bytes | memoryview], end: bytes) -> tuple[int, int]:
    """Write a file of `parts`, zero padding to a whole number of blocks, and `end` as the last bytes.

    Returns the CRC-32C and the length of the file.
    """
    used = sum(map(len, parts))
    length = -(-(used + len(end)) // BLOCK_BYTES) * BLOCK_BYTES
    buffer = _buffer.get(length)
    position = 0
    for part in (*parts, bytes(length - used - len(end)), end):
        stop = position + len(part)
        buffer[position:stop] = part
        position = stop
    file = _open(path)
    try:
        done = 0
        while done < length:
            try:
                done += os.write(file, buffer[done:])
            except OSError as error:
                flags = fcntl.fcntl(file, fcntl.F_GETFL)
                if error.errno != errno.EINVAL or not flags & _O_DIRECT:
                    raise
                fcntl.fcntl(file, fcntl.F_SETFL, flags & ~_O_DIRECT)
    finally:
        os.close(file)
    # google_crc32c does not accept a memoryview.
    return int(google_crc32c.value(np.frombuffer(buffer, np.uint8))), length


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags | _O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666)
