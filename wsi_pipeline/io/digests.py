"""SHA-256 digests of values, files, folders and slides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from wsi_pipeline.io.slide_files import slide_files

# Large, because each read waits for its turn behind the writing threads.
_CHUNK_BYTES = 1 << 22


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
    buffer = memoryview(bytearray(min(_CHUNK_BYTES, max(1, path.stat().st_size))))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def digest_names(digests: Mapping[str, str]) -> str:
    """SHA-256 over a mapping of names to digests, in order of name."""
    return digest_bytes("".join(f"{name}\0{digests[name]}\n" for name in sorted(digests)).encode())


def digest_tree(folder: Path, threads: int = 1, known: Mapping[str, str] | None = None) -> str:
    """SHA-256 over the relative names and contents of all files below `folder`.

    `known` maps names to digests that were computed when the files were written; these files are not read.
    """
    given = known or {}
    # Snakemake writes this marker into the folders that it tracks.
    paths = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.name != ".snakemake_timestamp"}
    files = {name: path for name, path in paths.items() if name in given or path.is_file()}
    with ThreadPoolExecutor(threads) as pool:
        digests = pool.map(lambda name: given.get(name) or digest_file(files[name]), files)
        return digest_names(dict(zip(files, digests, strict=True)))


def digest_source(source: Path) -> str:
    """SHA-256 of a slide file; of a slide of several files over their names, relative to its folder, and contents."""
    files = slide_files(source)
    if files == [source]:
        return digest_file(source)
    return digest_names({file.relative_to(source.parent).as_posix(): digest_file(file) for file in files})
