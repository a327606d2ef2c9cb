"""The methods that `convert.py` and `read.py` compare; each run has its own process.

    python benchmarks/methods.py METHOD SOURCE [OUT]

Prints the results of the method and the peak resident memory in MiB as JSON. Imports are not timed. Third-party tools
are imported only by their own methods, so that each method runs in an environment without the other tools.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

PATCH_PX, PATCHES, TILE_PX, AREA_PX = 299, 400, 512, 8192

Found = dict[str, float]


def timed(run: Callable[[], None]) -> Found:
    """Seconds until everything is on the disk."""
    os.sync()
    started = time.perf_counter()
    run()
    os.sync()
    return {"seconds": time.perf_counter() - started}


def stage(source: Path, out: Path, threads: int, **options: Any) -> Found:
    from wsi_pipeline.config import ConvertRun
    from wsi_pipeline.stages import convert

    chosen = ConvertRun(**options)
    outputs = convert.Outputs(out / "p.ome.zarr", out / "p.json")
    return timed(lambda: convert.run("slide", convert.Inputs(source), outputs, chosen, mpp=0.25, threads=threads))


def naive_zarr(source: Path, out: Path) -> Found:
    """The obvious first implementation: every region of every level from OpenSlide into zarr, one after the other."""
    import openslide
    import zarr
    from zarr.codecs import BloscCodec

    def run() -> None:
        slide = openslide.OpenSlide(source)
        group = zarr.create_group(out / "p.zarr")
        for level, (width, height) in enumerate(slide.level_dimensions):
            array = group.create_array(
                str(level),
                shape=(height, width, 3),
                chunks=(TILE_PX, TILE_PX, 3),
                dtype="uint8",
                compressors=BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle"),
            )
            for x, y, pixels in regions(slide, level, width, height):
                array[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels

    return timed(run)


def naive_jpeg(source: Path, out: Path) -> Found:
    """Every region of every level from OpenSlide, encoded as JPEG in the same thread, into one file a level."""
    import imagecodecs
    import openslide

    def run() -> None:
        slide = openslide.OpenSlide(source)
        for level, (width, height) in enumerate(slide.level_dimensions):
            with (out / str(level)).open("wb") as file:
                for _, _, pixels in regions(slide, level, width, height):
                    stream = imagecodecs.jpeg8_encode(
                        pixels, 90, colorspace="RGB", outcolorspace="YCbCr", subsampling="444"
                    )
                    file.write(stream)

    return timed(run)


def regions(slide: Any, level: int, width: int, height: int) -> Iterator[tuple[int, int, Any]]:
    scale = slide.level_downsamples[level]
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            size = (min(TILE_PX, width - x), min(TILE_PX, height - y))
            region = slide.read_region((round(x * scale), round(y * scale)), level, size)
            yield x, y, np.ascontiguousarray(np.asarray(region)[..., :3])


def cp(source: Path, out: Path) -> Found:
    return timed(lambda: subprocess.run(["cp", str(source), str(out / "copy")], check=True) and None)  # noqa: S603, S607


def vips_tiffsave(source: Path, out: Path) -> Found:
    import pyvips

    def run() -> None:
        pyvips.Image.new_from_file(str(source), access="sequential").tiffsave(
            str(out / "p.tif"),
            compression="jpeg",
            Q=90,
            tile=True,
            tile_width=TILE_PX,
            tile_height=TILE_PX,
            pyramid=True,
            bigtiff=True,
        )

    return timed(run)


def ngff_zarr(source: Path, out: Path) -> Found:
    """Its command line, as its users run it; the start of about a second is in the time."""
    command = [str(Path(sys.executable).with_name("ngff-zarr")), "-q", "-i", str(source), "-o", str(out / "p.ome.zarr")]
    return timed(lambda: subprocess.run(command, check=True, capture_output=True) and None)  # noqa: S603


def ome_zarr(source: Path, out: Path) -> Found:
    import dask.array as da
    import tifffile
    import zarr
    from ome_zarr.writer import write_image

    def run() -> None:
        array = da.from_zarr(zarr.open(tifffile.imread(source, aszarr=True, level=0), mode="r"))
        group = zarr.open_group(out / "p.ome.zarr", mode="w")
        write_image(da.moveaxis(array, -1, 0).rechunk((3, TILE_PX, TILE_PX)), group, axes="cyx")

    return timed(run)


def places(source: Path) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Seeded corners of patches on tissue, and that of the area that is read in sequence."""
    import openslide

    with openslide.OpenSlide(source) as slide:
        level = slide.level_count - 1
        while max(slide.level_dimensions[level]) < 256:
            level -= 1
        scale = slide.level_downsamples[level]
        overview = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))[..., :3].astype(int)
        tissue = np.argwhere(overview.max(2) - overview.min(2) > 30)
        width, height = slide.dimensions
    picked = tissue[np.random.default_rng(0).integers(len(tissue), size=4 * PATCHES)]
    corners = [(int(x * scale), int(y * scale)) for y, x in picked]
    inside = [(x, y) for x, y in corners if x + PATCH_PX < width and y + PATCH_PX < height][:PATCHES]
    middle = np.median(tissue, axis=0) * scale
    corner = np.clip(middle[::-1] - AREA_PX / 2, 0, np.maximum(0, np.array([width, height]) - AREA_PX))
    x, y = (int(c) // TILE_PX * TILE_PX for c in corner)
    return inside, (x, y)


def rates(source: Path, read: Callable[[int, int, int], Any]) -> Found:
    """Patches and tiles a second of a function of x, y and edge, one thread; and a sum that shows what was read."""
    corners, (left, top) = places(source)
    read(*corners[0], PATCH_PX)
    started = time.perf_counter()
    total = sum(int(read(x, y, PATCH_PX)[::13, ::13].sum()) for x, y in corners)
    patches = len(corners) / (time.perf_counter() - started)
    steps = range(0, AREA_PX, TILE_PX)
    started = time.perf_counter()
    for y in steps:
        for x in steps:
            read(left + x, top + y, TILE_PX)
    return {"patches": patches, "tiles": len(steps) ** 2 / (time.perf_counter() - started), "sum": total}


def read_openslide(source: Path, _: Path) -> Found:
    import openslide

    slide = openslide.OpenSlide(source)
    return rates(source, lambda x, y, edge: np.asarray(slide.read_region((x, y), 0, (edge, edge)).convert("RGB")))


def read_tiffslide(source: Path, _: Path) -> Found:
    import tiffslide

    slide = tiffslide.TiffSlide(source)
    return rates(source, lambda x, y, edge: slide.read_region((x, y), 0, (edge, edge), as_array=True))


def read_zarr(source: Path, store: Path) -> Found:
    import zarr

    import wsi_pipeline.pyramid.codecs  # noqa: F401 (registers the codec)

    array: Any = zarr.open_array(store / "0", mode="r")
    return rates(source, lambda x, y, edge: np.asarray(array[:, y : y + edge, x : x + edge]).transpose(1, 2, 0))


def read_pyramid(source: Path, store: Path) -> Found:
    from wsi_pipeline.geometry import Box
    from wsi_pipeline.pyramid.pyramid import Pyramid

    pyramid = Pyramid(store)
    return rates(source, lambda x, y, edge: pyramid.read(Box(x, y, edge, edge), 0))


METHODS: dict[str, Callable[[Path, Path], Found]] = {
    "this stage, tiles copied": lambda s, o: stage(s, o, 2),
    "this stage, decoded and encoded as JPEG, 2 threads": lambda s, o: stage(s, o, 2, passthrough=False),
    "this stage, decoded and encoded as JPEG, 1 thread": lambda s, o: stage(s, o, 1, passthrough=False),
    "this stage, decoded, zstd, 2 threads": lambda s, o: stage(s, o, 2, passthrough=False, codec="zstd"),
    "cp": cp,
    "OpenSlide to zarr zstd-3 bitshuffle, 1 thread": naive_zarr,
    "OpenSlide and JPEG encoding in the same thread": naive_jpeg,
    "vips tiffsave (JPEG, pyramid)": vips_tiffsave,
    "ngff-zarr": ngff_zarr,
    "ome-zarr": ome_zarr,
    "read by Pyramid": read_pyramid,
    "read by OpenSlide": read_openslide,
    "read by tiffslide": read_tiffslide,
    "read by zarr": read_zarr,
}


def run_method(name: str, source: Path, out: Path, python: str = sys.executable) -> Found:
    """Run a method in a new process; raises `CalledProcessError`."""
    command = [python, __file__, name, str(source), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    result = METHODS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({**result, "peak_mib": peak / 1024}))
