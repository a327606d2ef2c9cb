"""Convert small TIFF files of many layouts, and count those that are read right, refused, or read wrong.

    python tests/fuzz_kinds.py --count 1000 [--seed 0] [--processes 2]

`helpers/tiff_layouts.py` draws the layouts. Read right: level 0 is the slide, and each level that comes from the file
has the pixels of its page, as they were written or as tifffile decodes them. Refused: one line with slide, file and
remedy, and no leftovers. Anything else is wrong: other pixels or scale, a traceback, or a usual layout that is refused.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from helpers.tiff_layouts import MPP, Layout, draw, write
from wsi_pipeline.config import ConvertRun
from wsi_pipeline.errors import SlideError
from wsi_pipeline.geometry import Box
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.stages import convert

OPTIONS = ConvertRun(codec="zstd", chunk_px=256, shard_px=1024)
# OpenSlide multiplies by alpha and divides again, each time with rounding.
ALPHA_TOLERANCE = 2


def outcome(seed: int) -> str:
    """`right`, `refused: ...` or `wrong: ...` for the layout of a seed."""
    layout = draw(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, out = folder / "s.tif", folder / "out"
        write(layout, source)
        try:
            convert.run("s", convert.Inputs(source), convert.Outputs(out / "p.ome.zarr", out / "p.json"), OPTIONS)
        except SlideError as error:
            return _refusal(layout, source, out, error)
        except Exception:  # noqa: BLE001 (whatever it is, the file that caused it is to be named)
            return f"wrong: {layout}: {traceback.format_exc()}"
        problem = _difference(layout, out)
        return f"wrong: {layout}: {problem}" if problem else "right"


def _refusal(layout: Layout, source: Path, out: Path, error: SlideError) -> str:
    text = str(error)
    is_clean = not out.exists() or not list(out.iterdir())
    is_line = text.startswith(f"slide s: {source}: ") and "\n" not in text and bool(error.remedy)
    if not is_clean or not is_line or layout.is_legitimate:
        return f"wrong: {layout}: refused with {text!r}, leftovers: {not is_clean}"
    return f"refused: {layout}: {error.problem}"


def _difference(layout: Layout, out: Path) -> str:
    """What differs between the store and the pages of the file, or nothing."""
    receipt = json.loads((out / "p.json").read_text())
    pyramid = Pyramid(out / "p.ome.zarr")
    if abs(receipt["mpp"] / MPP - 1) > 1e-3:
        return f"scale {receipt['mpp']}"
    if (pyramid.size.width, pyramid.size.height) != layout.size:
        return f"level 0 is {pyramid.size}"
    tolerance = ALPHA_TOLERANCE if "alpha" in layout.colors else 0
    for number, level in enumerate(receipt["levels"]):
        if level["method"] == "halved":
            continue
        size = level["width"], level["height"]
        if size not in layout.pixels:
            return f"level {number} is no page of the slide: {size}"
        found = pyramid.read(Box(0, 0, *size), number).astype(int)
        most = int(np.abs(found - layout.pixels[size]).max())
        if most > tolerance:
            return f"level {number} ({level['method']}) differs by up to {most} of 255"
    return ""


def outcomes(seeds: Sequence[int], processes: int) -> list[str]:
    """The outcome of each seed."""
    logging.disable(logging.CRITICAL)
    if processes == 1:
        return [outcome(seed) for seed in seeds]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(outcome, seeds, chunksize=10))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the first file; each next one has the next seed")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print each refusal")
    arguments = parser.parse_args()
    found = outcomes(range(arguments.seed, arguments.seed + arguments.count), arguments.processes)
    table = Counter(text.split(":")[0] for text in found)
    for text in found:
        if text.startswith("wrong") or (arguments.list and text.startswith("refused")):
            print(text, file=sys.stderr)
    print(f"{len(found)} TIFF files of different layouts")
    for kind in ("right", "refused", "wrong"):
        print(f"{kind:8}{table[kind]:6}")
    return 1 if table["wrong"] or not table["right"] or not table["refused"] else 0


if __name__ == "__main__":
    sys.exit(main())
