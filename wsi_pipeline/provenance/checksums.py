"""Whether results are still what they were: the SHA-256 of each file and store of a results folder, then and now."""

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
# Of a training that is not over.
_PASSING = ("checkpoints",)
_SAY_EVERY_S = 30.0


def list_contents(results: Path) -> list[str]:
    """Relative names of the files and the stores of a results folder, sorted; a store's name ends with a slash.

    Without hidden ones: what a killed process has left, and Snakemake's marks.
    """
    found: list[str] = []
    for folder, folders, files in os.walk(results):
        here = Path(folder).relative_to(results)
        folders[:] = [name for name in folders if not name.startswith(".")]
        stores = [name for name in folders if name.endswith(".zarr")]
        found += [f"{(here / name).as_posix()}/" for name in stores]
        folders[:] = [name for name in folders if name not in stores and (here / name).as_posix() not in _PASSING]
        found += [(here / name).as_posix() for name in files if not name.startswith(".")]
    return sorted(name for name in found if name != CRATE)


def digest_paths(paths: dict[str, Path], threads: int) -> dict[str, str]:
    """SHA-256 of files and, as `files.digest_tree` takes it, of folders; what is not there is left out."""
    began = said = time.monotonic()
    taken: dict[str, str] = {}
    with ThreadPoolExecutor(threads) as pool, ProgressBar("files and stores", len(paths)) as shown:
        for done, (name, digest) in enumerate(zip(paths, pool.map(_digest, paths.values()), strict=True), 1):
            if digest is not None:
                taken[name] = digest
            shown.update(done)
            if time.monotonic() - said > _SAY_EVERY_S and not on_terminal():
                said = time.monotonic()
                log.info("%d of %d files and stores, %.0f s", done, len(paths), said - began)
    return taken


def _digest(path: Path) -> str | None:
    try:
        return digest_tree(path) if path.is_dir() else digest_source(path)
    except FileNotFoundError:
        return None


@dataclass
class Differences:
    """Names of what is not as it was, out of `checked`."""

    checked: int = 0
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    remote: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.changed or self.missing or self.new)

    def text(self) -> str:
        """For a terminal: a line for each difference and a last one with the counts."""
        lines = [f"{kind}\t{name}" for kind in ("changed", "missing", "new") for name in getattr(self, kind)]
        if self.remote:
            lines.append(f"not looked at: {len(self.remote)} inputs that do not lie on this machine")
        same = self.checked - len(self.changed) - len(self.missing)
        counts = f"{len(self.changed)} changed, {len(self.missing)} missing, {len(self.new)} new"
        return "\n".join([*lines, f"{same} of {self.checked} files and stores are what they were; {counts}"])


def compare_digests(results: Path, inside: dict[str, str], outside: dict[str, str], threads: int) -> Differences:
    """What differs from known digests: of `list_contents` of the results, and of inputs by their path or URI."""
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
