"""Fingerprints of files by content, remembered by size and modification time.

The workflow tracks slides, annotations and given weights by fingerprint instead of path and time: files that were
moved, copied or touched are the same files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from wsi_pipeline.io.atomic import write_text
from wsi_pipeline.io.digests import canonical_json, digest_json
from wsi_pipeline.io.slide_files import is_folder_searched, slide_files

# Annotations, and files up to this size, are read whole. Of larger ones, samples at even distances from the first byte
# to the last are read: the headers and tables of offsets of a slide, and parts of its compressed pixels.
_WHOLE_BYTES = 8 << 20
_ANNOTATIONS = (".xml", ".json", ".geojson")
_SAMPLES = 16
_SAMPLE_BYTES = 1 << 16
_THREADS = 16
# Of files without content and of files that cannot be read, which are not the same file.
EMPTY, UNREADABLE = "empty", "unreadable"
_FOLDER = "."

# Names relative to the folder of a slide, sizes and modification times (ns), so that a plan reads no file again.
Stats = list[tuple[str, int, int]]


def fingerprint(path: Path) -> str:
    """SHA-256 of the size and the content (of large files: of samples) of a file and of those that belong to it.

    An empty file is `EMPTY`. Raises `OSError` for a file that cannot be read.
    """
    return digest_json([*map(_sampled, _files_of(path))]) if path.stat().st_size else EMPTY


class Fingerprints:
    """Fingerprints of files. Those in the file `cache` are reused for files of unchanged size and time."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._found: dict[str, str] = {}
        self._stats: dict[str, Stats] = {}
        try:
            known = json.loads(cache.read_text(encoding="utf-8"))
            self._known = {
                path: ([(str(name), int(size), int(time)) for name, size, time in stats], str(sha256))
                for path, (stats, sha256) in known.items()
            }
        except (OSError, ValueError, AttributeError, TypeError):
            # Only a cache: without it, files are read again.
            self._known = dict[str, tuple[Stats, str]]()

    @classmethod
    def of_results(cls, results: Path) -> Fingerprints:
        """Those of the files that the results in a folder are computed from."""
        return cls(results / "logs" / "fingerprints.json")

    def __getitem__(self, path: str) -> str:
        """The fingerprint of a file. One that cannot be read is `UNREADABLE`: its job reports why."""
        if path not in self._found:
            stats, sha256 = self._known.get(path, ([], ""))
            try:
                if not _is_current(stats, Path(path).parent):
                    before, stats = _of_files(stats), _stats(Path(path))
                    if _of_files(stats) != before:
                        sha256 = fingerprint(Path(path))
            except OSError:
                return UNREADABLE
            self._stats[path], self._found[path] = stats, sha256
        return self._found[path]

    def read(self, paths: Iterable[str]) -> None:
        """Read the fingerprints of many files, several at a time."""
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(self.__getitem__, paths))

    def save(self) -> None:
        """Write the cache where fingerprints have changed or files were added or removed."""
        content = {path: (self._stats[path], sha256) for path, sha256 in self._found.items()}
        if content != self._known:
            write_text(self._cache, canonical_json(content))


def _files_of(path: Path) -> list[Path]:
    """The file itself, and those that belong to it: of a slide, or the model.json beside weights."""
    model_json = path.with_name("model.json")
    if path.suffix == ".safetensors" and model_json.is_file():
        return [path, model_json]
    return slide_files(path)


def _stats(path: Path) -> Stats:
    """Of the files of a slide and, where it is searched for them, of its folder."""
    names = [file.relative_to(path.parent).as_posix() for file in _files_of(path)]
    return [_stat(path.parent, name) for name in names + [_FOLDER] * is_folder_searched(path)]


def _stat(folder: Path, name: str) -> tuple[str, int, int]:
    found = (folder / name).stat()
    return name, 0 if name == _FOLDER else found.st_size, found.st_mtime_ns


def _is_current(stats: Stats, folder: Path) -> bool:
    try:
        return bool(stats) and all(_stat(folder, name) == (name, *size_time) for name, *size_time in stats)
    except OSError:
        return False


def _of_files(stats: Stats) -> Stats:
    return [one for one in stats if one[0] != _FOLDER]


def _sampled(path: Path) -> list[Any]:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _WHOLE_BYTES or path.suffix.lower() in _ANNOTATIONS:
            digest.update(file.read())
        else:
            for number in range(_SAMPLES):
                file.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return [size, digest.hexdigest()]
