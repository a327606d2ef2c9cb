"""Conversion side by side: our stage, `cp`, OpenSlide to zarr, and other tools.

    python benchmarks/convert.py SLIDE [--repeat 3] [--peers PYTHON] [--methods TEXT ...]

Each method runs in a process of its own, in turns, with the source and nothing else in the page cache
(which requires root). Times include `sync`; the best of the repeats counts. PYTHON is the interpreter of an environment
with `benchmarks/peers.txt`. `--methods` selects the methods whose names start with one of the texts. Prints a Markdown
table.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from methods import METHODS, Found, run_method

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
PEERS = ("ngff-zarr", "ome-zarr")


def prepare(source: Path) -> None:
    """Nothing but the source in the page cache, where that is permitted: else the first to write pays for all."""
    os.sync()
    if os.access(DROP_CACHES, os.W_OK):
        DROP_CACHES.write_text("3")
    with source.open("rb") as file:
        while file.read(1 << 24):
            pass


def measured(name: str, source: Path, folder: Path, python: str) -> Found | None:
    out = Path(tempfile.mkdtemp(dir=folder))
    prepare(source)
    try:
        found = run_method(name, source, out, python)
        files = [p for p in out.rglob("*") if p.is_file()]
        return {**found, "megabytes": sum(p.stat().st_size for p in files) / 1e6, "files": len(files)}
    except subprocess.CalledProcessError as error:
        print(f"{name}: failed: {error.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--methods", nargs="*", default=[""])
    arguments = parser.parse_args()
    source: Path = arguments.slide
    names = [n for n in METHODS if not n.startswith("read") and n.startswith(tuple(arguments.methods))]
    names = [name for name in names if name not in PEERS or arguments.peers]
    best: dict[str, Found] = {}
    # Nothing is deleted before the end: ext4 is slow to make files where it has just deleted some.
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as folder:
        for _ in range(arguments.repeat):
            for name in names:
                python = arguments.peers if name in PEERS else sys.executable
                found = measured(name, source, Path(folder), python)
                if found is not None and found["seconds"] < best.get(name, found | {"seconds": 1e9})["seconds"]:
                    best[name] = found
    ours = best[names[0]]["seconds"]
    size = source.stat().st_size / 1e6
    print(f"{source.name}, {size:.1f} MB; {os.cpu_count()} cores, {platform.machine()}, ", end="")
    print(f"Python {platform.python_version()}; best of {arguments.repeat}\n")
    print("| method | wall, s | times the first | MB written | files | peak memory, MiB |\n|---|---|---|---|---|---|")
    for name, row in best.items():
        numbers = f"{row['seconds']:.2f} | {row['seconds'] / ours:.1f} | {row['megabytes']:.1f} | {row['files']:.0f}"
        print(f"| {name} | {numbers} | {row['peak_mib']:.0f} |")


if __name__ == "__main__":
    sys.exit(main())
