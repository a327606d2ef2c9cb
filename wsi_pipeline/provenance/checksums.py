"""SHA-256 checksums of the files and stores of a results folder, and their comparison with recorded ones."""

from __future__ import annotations

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from wsi_pipeline.io.digests import digest_source, digest_tree
from wsi_pipeline.progress_bar import ProgressBar, on_terminal

log = logging.getLogger(__name__)

CRATE = "ro-crate-metadata.json"
# Checkpoints exist only while a training runs.
_TEMPORARY = ("checkpoints",)
_LOG_EVERY_S = 30.0


def list_contents(results: Path) -> list[str]:
    """Relative names of the files and stores of a results folder, sorted. Names of stores end with a slash.

    Hidden ones are left out: partial outputs of killed processes and files of Snakemake.
    """
    found: list[str] = []
    for folder, folders, files in os.walk(results):
        here = Path(folder).relative_to(results)
        folders[:] = [name for name in folders if not name.startswith(".")]
        stores = [name for name in folders if name.endswith(".zarr")]
        found += [f"{(here / name).as_posix()}/" for name in stores]
        folders[:] = [name for name in folders if name not in stores and (here / name).as_posix() not in _TEMPORARY]
        found += [(here / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(name for name in found if name != CRATE)


def digest_paths(paths: dict[str, Path], threads: int) -> dict[str, str]:
    """SHA-256 by name, of files and (`digest_tree`) of folders. Missing ones are left out of the result."""
    began = logged = time.monotonic()
    digests: dict[str, str] = {}
    with ThreadPoolExecutor(threads) as pool, ProgressBar("files and stores", len(paths)) as shown:
        for done, (name, digest) in enumerate(zip(paths, pool.map(_digest, paths.values()), strict=True), 1):
            if digest is not None:
                digests[name] = digest
            shown.update(done)
            if time.monotonic() - logged > _LOG_EVERY_S and not on_terminal():
                logged = time.monotonic()
                log.info("%d of %d files and stores, %.0f s", done, len(paths), logged - began)
    return digests


def _digest(path: Path) -> str | None:
    try:
        return digest_tree(path) if path.is_dir() else digest_source(path)
    except FileNotFoundError:
        return None


@dataclass
class Differences:
    """Names of the files and stores that differ from their recorded checksums; `checked` counts all compared.

    True if there is any difference. `remote` inputs, in a bucket, are not compared.
    """

    checked: int = 0
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    remote: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changed or self.missing or self.new)

    def text(self) -> str:
        """Text for the terminal: one line per difference, then the counts."""
        lines = [f"{kind}\t{name}" for kind in ("changed", "missing", "new") for name in getattr(self, kind)]
        if self.remote:
            lines.append(f"not checked: {len(self.remote)} remote inputs")
        same = self.checked - len(self.changed) - len(self.missing)
        counts = f"{len(self.changed)} changed, {len(self.missing)} missing, {len(self.new)} new"
        return "\n".join([*lines, f"{same} of {self.checked} files and stores are unchanged; {counts}"])


def compare_digests(results: Path, inside: dict[str, str], outside: dict[str, str], threads: int) -> Differences:
    """Compare the present contents of `results` and its inputs with recorded digests.

    `inside`: digests by name as in `list_contents`; `outside`: digests of inputs by absolute path or remote URI.
    """
    found = Differences(checked=len(inside), new=[name for name in list_contents(results) if name not in inside])
    paths = {name: results / name for name in inside}
    for name in outside:
        if "://" in name:
            found.remote.append(name)
        else:
            paths[name] = Path(name)
            found.checked += 1
    now = digest_paths(paths, threads)
    then = inside | outside
    found.missing = [name for name in paths if name not in now]
    found.changed = [name for name in paths if name in now and now[name] != then[name]]
    return found
