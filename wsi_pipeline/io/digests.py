"""SHA-256 digests of values, files, folders and slides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Large, as each chunk waits for its turn among the threads that write.
_CHUNK = 1 << 22


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
