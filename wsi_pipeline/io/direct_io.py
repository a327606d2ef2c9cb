"""Files of whole blocks, written in one go past the page cache.

Copying into new pages of the cache takes the kernel longer than all else in the conversion of a
slide, and puts out of memory what others have there. Where a file system cannot do without the
cache, it is used.
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

# No device has larger ones.
BLOCK_BYTES = 4096
_O_DIRECT: int = getattr(os, "O_DIRECT", 0)


class _Scratch(threading.local):
    """Memory of a thread that begins on a page, and is used again for each file."""

    memory: memoryview = memoryview(b"")

    def of(self, size: int) -> memoryview:
        if len(self.memory) < size:
            self.memory = memoryview(mmap.mmap(-1, size))
        return self.memory[:size]


_scratch = _Scratch()


def write_blocks(path: Path, parts: Sequence[bytes | memoryview], end: bytes) -> tuple[int, int]:
    """Write a new file: `parts`, zeros up to a whole number of blocks, and `end` as its last bytes.

    Returns its CRC-32C and its length.
    """
    used = sum(map(len, parts))
    length = -(-(used + len(end)) // BLOCK_BYTES) * BLOCK_BYTES
    buffer = _scratch.of(length)
    at = 0
    for part in (*parts, bytes(length - used - len(end)), end):
        stop = at + len(part)
        buffer[at:stop] = part
        at = stop
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
    # It takes no memory view.
    return int(google_crc32c.value(np.frombuffer(buffer, np.uint8))), length


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags | _O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, flags, 0o666)
