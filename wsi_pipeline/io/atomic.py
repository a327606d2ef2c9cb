"""Writing files so that a half-written one cannot look finished, and digests of what was written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wsi_pipeline.errors import StoreError

# Large, as each chunk waits for its turn among the threads that write.
_CHUNK = 1 << 22

# In the folder of what is being written: it is the writer's own still.
_MARK = ".owned"

# What a file system answers when it has no room, or may not be written to at all.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_NO_PERMISSION = frozenset({errno.EACCES, errno.EPERM})


def no_room(error: OSError) -> bool:
    """Whether a file system refused to write for want of room, or altogether."""
    return error.errno in _NO_ROOM


@contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yield a path of the target's name in a hidden folder beside it; it takes the target's place in the end.

    The block may make a file or a folder there. On any exception it is removed and the target is
    left as it was. Raises `StoreError` where there is no room or no permission to write, or where
    another process has begun to write the same target: the first one gives way, as it may be what a lost
    node still does for a job that has been started again.
    """
    workshop = target.with_name(f".partial-{secrets.token_hex(4)}-{target.name}")
    mark = workshop / _MARK
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        leftovers = _leftovers(target)
        workshop.mkdir()
        try:
            mark.touch()
            for leftover in leftovers:
                _take_over(leftover, workshop)
            yield workshop / target.name
            # A writer that makes missing folders goes on where its own was taken away, with half of a store.
            mark.open().close()
            if target.is_dir():
                with suppress(FileNotFoundError):
                    target.rename(workshop / ".replaced")
            (workshop / target.name).replace(target)
        finally:
            remove(workshop)
    except OSError as error:
        name = None if error.filename is None else Path(os.fsdecode(error.filename))
        here = name is not None and name.is_relative_to(target.parent)
        # Not empty: the other one has put its own in place just now.
        if error.errno == errno.ENOTEMPTY or (
            error.errno == errno.ENOENT and name is not None and name.is_relative_to(workshop)
        ):
            raise StoreError(
                f"{target}: another process writes it too", remedy="Let one run end before another one starts here"
            ) from error
        if no_room(error) or (error.errno in _NO_PERMISSION and here):
            raise StoreError(
                f"{target}: cannot be written ({os.strerror(error.errno or 0)})",
                remedy="Free space or give permission there, or put the results elsewhere (results in the config)",
            ) from error
        raise


def remove_leftovers(target: Path) -> None:
    """Remove what a process that was killed has left of `target`."""
    for leftover in _leftovers(target) if target.parent.is_dir() else ():
        remove(leftover)


def _leftovers(target: Path) -> list[Path]:
    leftover = re.compile(rf"\.partial-[0-9a-f]{{8}}-{re.escape(target.name)}")
    return [path for path in target.parent.iterdir() if leftover.fullmatch(path.name)]


def _take_over(leftover: Path, workshop: Path) -> None:
    """Take away what may still be written to, at once, so that its process finds it gone and never half there."""
    # Another process may do the same.
    with suppress(FileNotFoundError):
        (leftover / _MARK).unlink(missing_ok=True)
        leftover.rename(workshop / leftover.name)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    # Another process may do the same.
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with publish(target) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def canonical_json(value: Any) -> str:
    """Stable JSON text: sorted keys, no NaN, a newline at the end."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def digest_bytes(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    return digest_bytes(canonical_json(value).encode())


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(_CHUNK, max(1, path.stat().st_size))))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def digest_names(digests: Mapping[str, str]) -> str:
    """SHA-256 over names and digests, in name order."""
    return digest_bytes("".join(f"{name}\0{digests[name]}\n" for name in sorted(digests)).encode())


def digest_tree(folder: Path, threads: int = 1, known: Mapping[str, str] | None = None) -> str:
    """SHA-256 over the relative names and contents of all files below `folder`.

    `known` has the digests of files that were taken when they were written.
    """
    given = known or {}
    # Snakemake puts its own marker into folders that it tracks.
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.name != ".snakemake_timestamp"}
    files = {name: path for name, path in paths.items() if name in given or path.is_file()}
    with ThreadPoolExecutor(threads) as pool:
        digests = pool.map(lambda name: given.get(name) or digest_file(files[name]), files)
        return digest_names(dict(zip(files, digests, strict=True)))


def digest_source(source: Path) -> str:
    """SHA-256 of the slide: of its file, and for MIRAX of the folder of data beside it."""
    folder = source.with_suffix("")
    if source.suffix.lower() == ".mrxs" and folder.is_dir():
        return digest_names({source.name: digest_file(source), folder.name: digest_tree(folder)})
    return digest_file(source)
