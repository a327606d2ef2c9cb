"""Conversion side by side: our stage, OpenSlide to zarr (zstd), and `cp` with `sync`.

    python benchmarks/convert.py SLIDE [--repeat 3]

Every way reads the same file, which is read once before the clock starts, and writes to the same disk.
Prints a Markdown table: best wall time of the repeats, bytes written, ratio to our stage.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from wsi_pipeline.config import PyramidOptions
from wsi_pipeline.stages import convert


def stage(passthrough: bool, threads: int) -> Callable[[Path, Path], None]:
    """Our stage, digests and comparison of tiles included."""

    def run(source: Path, out: Path) -> None:
        options = PyramidOptions(passthrough=passthrough)
        convert.run("slide", source, out / "p.ome.zarr", out / "p.json", options, mpp=0.25, threads=threads)

    return run


def copy(source: Path, out: Path) -> None:
    subprocess.run(["cp", str(source), str(out / "copy")], check=True)  # noqa: S603, S607
    subprocess.run(["sync", str(out / "copy")], check=True)  # noqa: S603, S607


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "this stage, tiles copied": stage(True, 2),
    "OpenSlide to zarr zstd-3 bitshuffle, 2 threads": stage(False, 2),
    "OpenSlide to zarr zstd-3 bitshuffle, 1 thread": stage(False, 1),
    "cp and sync": copy,
}


def measured(way: Callable[[Path, Path], None], source: Path, repeat: int) -> tuple[float, int]:
    best, size = float("inf"), 0
    for _ in range(repeat):
        out = Path(tempfile.mkdtemp(dir=os.environ.get("TMPDIR", ".")))
        start = time.perf_counter()
        way(source, out)
        best = min(best, time.perf_counter() - start)
        size = sum(p.stat().st_size for p in out.rglob("*") if p.is_file())
        shutil.rmtree(out)
    return best, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    source: Path = arguments.slide
    source.read_bytes()
    results = {name: measured(way, source, arguments.repeat) for name, way in WAYS.items()}
    ours = next(iter(results.values()))[0]
    print(
        f"{source.name}, {source.stat().st_size / 1e6:.1f} MB; {os.cpu_count()} cores, {platform.machine()}, ", end=""
    )
    print(f"Python {platform.python_version()}\n")
    print("| way | wall, s | MB written | times this stage |\n|---|---|---|---|")
    for name, (seconds, size) in results.items():
        print(f"| {name} | {seconds:.2f} | {size / 1e6:.1f} | {seconds / ours:.1f} |")


if __name__ == "__main__":
    sys.exit(main())
