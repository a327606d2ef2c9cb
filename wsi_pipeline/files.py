"""Writing files so that a half-written one cannot look finished, and digests of what was written."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


@contextmanager
def publish(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `target`; it takes the target's place when the block succeeds.

    The block may make a file or a folder there. On any exception it is removed and the target is
    left as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays at the end because writers choose the format by it.
    partial = target.with_name(f".partial-{os.getpid()}-{target.name}")
    leftover = re.compile(rf"\.partial-\d+-{re.escape(target.name)}")
    for path in target.parent.iterdir():
        if leftover.fullmatch(path.name):
            remove(path)
    try:
        yield partial
        if target.is_dir():
            remove(target)
        partial.replace(target)
    finally:
        remove(partial)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_tree(folder: Path, threads: int = 1) -> str:
    """SHA-256 over the relative names and contents of all files below `folder`, in name order."""
    # Snakemake puts its own marker into folders that it tracks.
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".snakemake_timestamp")
    digest = hashlib.sha256()
    with ThreadPoolExecutor(threads) as pool:
        for path, content in zip(paths, pool.map(digest_file, paths), strict=True):
            digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()
