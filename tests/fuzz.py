"""Convert mutated slides for a given time and count the outcomes.

    python tests/fuzz.py --seconds 60 [--seed 0] [--most 1000] [--processes 2]

Each input must give either a one-line error and no leftovers, or a store in which every chunk decodes or
is named as damaged. A crash, a hang, a traceback or a leftover ends the run with the seed that reproduces
the input.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import tifffile

from helpers.slides import tissue_picture, write_tiff
from helpers.tiff import drop_tile, philips, write_pages
from wsi_pipeline.config import ConvertRun
from wsi_pipeline.errors import StoreError
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.slides.crash_isolation import CrashError, run_isolated
from wsi_pipeline.stages import convert

HANG_SECONDS = 60
SOURCES = ("generic", "aperio", "philips", "tables", "deflate", "flat", "strips")


def write_sources(folder: Path) -> None:
    """Write small slides of several formats into a folder."""
    picture = tissue_picture(600, 520)
    pages = [picture, np.ascontiguousarray(picture[::2, ::2])]
    write_pages(folder / "generic", pages, tile=(128, 128))
    write_pages(folder / "flat", pages[:1], tile=(128, 128), outcolorspace="rgb")
    aperio = "Aperio Image Library v10\r\n600x520 (128x128) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5"
    write_pages(folder / "aperio", pages, tile=(128, 128), description=aperio)
    drop_tile(folder / "aperio", 0, 3)
    write_pages(folder / "philips", [np.pad(p, ((0, 0), (0, 40), (0, 0)))[:512] for p in pages[:1]], **philips(1))
    tifffile.imwrite(
        folder / "strips",
        picture,
        photometric="rgb",
        rowsperstrip=16,
        compression="lzw",
        resolution=(20000, 20000),
        resolutionunit=3,
    )
    write_tiff(folder / "tables.tif", picture).rename(folder / "tables")
    write_tiff(folder / "deflate.tif", picture, compression="deflate").rename(folder / "deflate")


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip, overwrite, copy or cut off bytes, mostly near the TIFF directories."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        near_end = len(data) - 1 - int(rng.exponential(2000)) % len(data)
        at = int(rng.choice([rng.integers(len(data)), rng.integers(min(4096, len(data))), near_end]))
        length = int(rng.choice([1, 2, 4, 8, 64]))
        kind = rng.integers(5)
        if kind == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[at : at + length] = rng.bytes(len(data[at : at + length]))
        elif kind == 2:
            value = int(rng.choice([0, 1, 0x7F, 0xFF]))
            data[at : at + length] = bytes([value]) * len(data[at : at + length])
        elif kind == 3:
            other = int(rng.integers(len(data)))
            data[at : at + length] = data[other : other + length]
        elif rng.random() < 0.3:
            del data[max(at, 8) :]
    return bytes(data)


def check(sources: Path, seed: int) -> str:
    """Convert the input of this seed and return the outcome; raises for any violation."""
    rng = np.random.default_rng(seed)
    content = (sources / SOURCES[int(rng.integers(len(SOURCES)))]).read_bytes()
    options = ConvertRun(
        chunk_px=128,
        shard_px=256,
        passthrough=bool(rng.random() < 0.8),
        verify="all" if rng.random() < 0.5 else "sample",
        damaged_tiles="white" if rng.random() < 0.3 else "error",
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = folder / "s.tif"
        slide.write_bytes(mutated(content, rng))
        out = folder / "out"
        stderr = folder / "stderr"
        try:
            with stderr.open("w") as log:
                code = run_isolated(lambda: run(slide, out, options, log.fileno()))
        except CrashError:
            # In OpenSlide; the command line reports slide, file and remedy.
            return "reported crash of a library"
        text = stderr.read_text()
        if code == 2:
            assert text.startswith("error: slide s: "), text
            assert len(text.splitlines()) == 1, text
            assert str(slide) in text, text
            assert not out.exists() or not list(out.iterdir()), list(out.iterdir())
            return "refused"
        assert code == 0, text
        return read_all(out / "p.ome.zarr")


def run(slide: Path, out: Path, options: ConvertRun, log: int) -> None:
    os.dup2(log, sys.stderr.fileno())
    outputs = convert.Outputs(out / "p.ome.zarr", out / "p.json")
    convert.run("s", convert.Inputs(slide), outputs, options, mpp=0.5)


def read_all(store: Path) -> str:
    damaged = 0
    for level in Pyramid(store).levels:
        for row in range(level.grid.rows):
            for column in range(level.grid.columns):
                try:
                    level.chunk(column, row)
                except StoreError as error:
                    assert f"column {column}, row {row} is damaged" in str(error), error
                    damaged += 1
    return "whole" if not damaged else "tiles named as damaged when read"


def work(
    sources: Path, seeds: list[int], seconds: float, results: multiprocessing.SimpleQueue[tuple[int, str]]
) -> None:
    logging.disable(logging.CRITICAL)
    deadline = time.monotonic() + seconds
    for seed in seeds:
        if time.monotonic() > deadline:
            return
        results.put((seed, "begun"))
        signal.alarm(HANG_SECONDS)
        results.put((seed, check(sources, seed)))
        signal.alarm(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most", type=int, default=10**6, help="maximum number of inputs")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    sources = Path(tempfile.mkdtemp())
    context = multiprocessing.get_context("fork")
    # libvips must not have started threads before the fork.
    writer = context.Process(target=write_sources, args=(sources,))
    writer.start()
    writer.join()
    children = []
    for k in range(arguments.processes):
        results = context.SimpleQueue()
        seeds = list(range(arguments.seed + k, arguments.seed + arguments.most, arguments.processes))
        child = context.Process(target=work, args=(sources, seeds, arguments.seconds, results))
        child.start()
        children.append((child, results))
    outcomes, last = Counter[str](), dict[int, int]()
    while any(child.is_alive() or not results.empty() for child, results in children):
        for k, (_, results) in enumerate(children):
            while not results.empty():
                seed, outcome = results.get()
                last[k] = seed
                outcomes[outcome] += 1
        time.sleep(0.05)
    shutil.rmtree(sources)
    begun = outcomes.pop("begun", 0)
    print(f"{begun} mutated slides, {arguments.seconds:g} s at most: {dict(outcomes)}")
    failed = [last[k] for k, (child, _) in enumerate(children) if child.exitcode != 0]
    for seed in failed:
        print(f"failed: --seed {seed} --most 1", file=sys.stderr)
    return 1 if failed or not begun else 0


if __name__ == "__main__":
    sys.exit(main())
