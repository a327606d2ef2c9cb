"""Reading side by side: `Pyramid`, plain zarr on the same store, OpenSlide and tiffslide on the slide.

    python benchmarks/read.py SLIDE [--repeat 3] [--peers PYTHON]

Random patches of 299 px on tissue at level 0, and tiles of 512 px in sequence, each with one thread
and a process of its own, in turns; the best of the repeats counts. PYTHON is that of an environment
with `benchmarks/peers.txt`. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path

from methods import METHODS, PATCH_PX, PATCHES, TILE_PX, Found, run_method

from wsi_pipeline.config import ConvertRun
from wsi_pipeline.stages import convert

PEER = "read by tiffslide"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peers", metavar="PYTHON")
    arguments = parser.parse_args()
    names = [name for name in METHODS if name.startswith("read") and (name != PEER or arguments.peers)]
    best: dict[str, Found] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as folder:
        store = Path(folder) / "p.ome.zarr"
        outputs = convert.Outputs(store, Path(folder) / "p.json")
        convert.run("slide", convert.Inputs(arguments.slide), outputs, ConvertRun(), mpp=0.25, threads=2)
        for _ in range(arguments.repeat):
            for name in names:
                found = run_method(name, arguments.slide, store, arguments.peers if name == PEER else sys.executable)
                last = best.setdefault(name, found)
                best[name] = {key: max(last[key], found[key]) for key in found}
    sums = {found["sum"] for found in best.values()}
    if len(sums) != 1:
        sys.exit(f"the methods read different pixels: {best}")
    print(f"{arguments.slide.name}; {os.cpu_count()} cores, {platform.machine()}, ", end="")
    print(f"Python {platform.python_version()}; one thread, best of {arguments.repeat}\n")
    print(f"| method | random {PATCH_PX} px patches ({PATCHES}), per s | times OpenSlide ", end="")
    print(f"| tiles of {TILE_PX} px in sequence, per s | times OpenSlide |\n|---|---|---|---|---|")
    base = best["read by OpenSlide"]
    for name, found in best.items():
        ratios = [f"{found[key]:.0f} | {found[key] / base[key]:.2f}" for key in ("patches", "tiles")]
        print(f"| {name.removeprefix('read by ')} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
