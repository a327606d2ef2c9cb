"""Tissue masks, truth and patches: our stages against OpenSlide on one slide, and their time and memory at full size.

    python benchmarks/masks.py SLIDE [--repeat 3] [--mpp 0.25]     tissue and patches against OpenSlide
    python benchmarks/masks.py HUGE.tif --full                     each stage on a slide made by slides.py

Each method runs in a process of its own, in turns; the best of the repeats counts. SLIDE is converted
first, outside the times. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

THREADS = 2
POLYGONS, VERTICES = 5000, 400
PATCH_PX = 299
# Not timed.
IMPORTS = (
    "openslide",
    "imagecodecs",
    "skimage.color",
    "skimage.morphology",
    *(f"wsi_pipeline.stages.{stage}" for stage in ("tissue", "truth", "patches")),
)
Method = Callable[[Path, Path], None]


def tissue_ours(_: Path, folder: Path) -> None:
    from wsi_pipeline.config import TissueRun
    from wsi_pipeline.stages import tissue

    made = tissue.Outputs(folder / "tissue.ome.zarr", folder / "tissue.json", folder / "tissue.png")
    tissue.run("s", tissue.Inputs(folder / "pyramid.ome.zarr"), made, TissueRun(), threads=THREADS)


def mask_ours(_: Path, folder: Path) -> None:
    """Only the mask, without its store, picture and receipt."""
    from wsi_pipeline.config import TissueRun
    from wsi_pipeline.masks.slide_tissue import find_tissue
    from wsi_pipeline.pyramid.pyramid import Pyramid

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        tissue = find_tissue(Pyramid(folder / "pyramid.ome.zarr"), TissueRun(), THREADS, Path(scratch) / "features")
        list(tissue.bands())


def openslide_regions(source: Path, folder: Path) -> Iterator[tuple[int, int, Any]]:
    """Row, column and pixels of regions of 512 px at 8 um, from the level of the slide that is nearest to it."""
    import openslide

    from wsi_pipeline.pyramid.pyramid import Pyramid

    mpp, mpps = 8.0, Pyramid(folder / "pyramid.ome.zarr").mpps
    slide = openslide.OpenSlide(source)
    level = min(range(slide.level_count), key=lambda k: abs(np.log(mpps[k] / mpp)))
    step = max(1, round(mpp / mpps[level]))
    scale = slide.level_downsamples[level]
    width, height = slide.level_dimensions[level]
    edge = 512 * step
    for y in range(0, height, edge):
        for x in range(0, width, edge):
            size = (min(edge, width - x), min(edge, height - y))
            region = slide.read_region((round(x * scale), round(y * scale)), level, size).convert("RGB")
            yield y // edge, x // edge, np.asarray(region.reduce(step))


def put_together(parts: list[tuple[int, int, Any]]) -> Any:
    rows = sorted({row for row, _, _ in parts})
    return np.concatenate([np.concatenate([p for r, _, p in parts if r == row], axis=-1) for row in rows], axis=-2)


def mask_openslide(source: Path, folder: Path) -> None:
    """Our own functions on regions that OpenSlide reads in one thread."""
    from wsi_pipeline.config import TissueRun
    from wsi_pipeline.masks.tissue_detection import segment_tissue

    regions = openslide_regions(source, folder)
    picture = put_together([(y, x, np.moveaxis(pixels, -1, 0)) for y, x, pixels in regions])
    segment_tissue(np.moveaxis(picture, 0, -1), TissueRun(), has_canvas=False)


def mask_skimage(source: Path, folder: Path) -> None:
    """The same method with scikit-image on regions that OpenSlide reads in one thread; ink is not looked for."""
    from skimage import color, filters, morphology

    regions = openslide_regions(source, folder)
    saturation = put_together([(y, x, color.rgb2hsv(pixels)[..., 1]) for y, x, pixels in regions])
    mask = saturation > filters.threshold_otsu(saturation)
    mask = morphology.closing(mask, morphology.disk(2))
    mask = morphology.remove_small_holes(mask, max_size=40_000 // 64)
    morphology.remove_small_objects(mask, max_size=20_000 // 64)


def truth_ours(_: Path, folder: Path) -> None:
    from wsi_pipeline.config import TruthRun
    from wsi_pipeline.stages import truth

    annotation = folder / "annotation.xml"
    given = annotation if annotation.is_file() else None
    truth.run(
        "s",
        truth.Inputs(folder / "pyramid.ome.zarr", given),
        truth.Outputs(
            store=folder / "truth.ome.zarr",
            receipt=folder / "truth.json",
            picture=folder / "truth.png",
            geojson=folder / "truth.geojson",
        ),
        TruthRun(),
        label="tumor" if given else "normal",
        threads=THREADS,
    )


def patches_ours(_: Path, folder: Path) -> None:
    from wsi_pipeline.config import PatchesRun
    from wsi_pipeline.pyramid.pyramid import Pyramid
    from wsi_pipeline.stages import patches

    options = PatchesRun(mpp=Pyramid(folder / "pyramid.ome.zarr").mpp, size_px=PATCH_PX)
    patches.run(
        "s",
        patches.Inputs(*(folder / f"{kind}.ome.zarr" for kind in ("pyramid", "tissue", "truth"))),
        patches.Outputs(*(folder / f"patches.{kind}" for kind in ("zarr", "parquet", "json"))),
        options,
        threads=THREADS,
    )


def patches_openslide(source: Path, folder: Path, encode: bool = True) -> None:
    """The same patches by `read_region`, one after the other, each a JPEG of the same quality in a file."""
    import imagecodecs
    import openslide
    import pyarrow.parquet as pq

    slide = openslide.OpenSlide(source)
    out = folder / "peer"
    out.mkdir(exist_ok=True)
    index = pq.read_table(folder / "patches.parquet")
    for number, (x, y) in enumerate(zip(index["x"].to_pylist(), index["y"].to_pylist(), strict=True)):
        pixels = np.asarray(slide.read_region((x, y), 0, (PATCH_PX, PATCH_PX)).convert("RGB"))
        if encode:
            stream = imagecodecs.jpeg8_encode(pixels, 95, colorspace="RGB", outcolorspace="YCbCr", subsampling="444")
            (out / f"{number}.jpg").write_bytes(stream)


METHODS: dict[str, Method] = {
    "tissue, this stage": tissue_ours,
    "mask, this stage": mask_ours,
    "mask, OpenSlide regions and our functions": mask_openslide,
    "mask, OpenSlide regions and scikit-image": mask_skimage,
    "truth, this stage": truth_ours,
    "patches, this stage": patches_ours,
    "patches, OpenSlide `read_region` and JPEG": patches_openslide,
    "patches, OpenSlide `read_region` alone": lambda s, f: patches_openslide(s, f, encode=False),
}


def measured(name: str, source: Path, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--method", name, str(source), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def converted(source: Path, folder: Path, mpp: float | None) -> None:
    from wsi_pipeline.config import ConvertRun
    from wsi_pipeline.stages import convert

    outputs = convert.Outputs(folder / "pyramid.ome.zarr", folder / "pyramid.json")
    convert.run("s", convert.Inputs(source), outputs, ConvertRun(), mpp=mpp, threads=THREADS)


def write_polygons(path: Path, width: int, height: int, count: int) -> None:
    """ASAP XML of wavy rings all over the slide, every tenth of them cut out."""
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, VERTICES, endpoint=False)
    with path.open("w") as file:
        file.write("<ASAP_Annotations><Annotations>")
        for number in range(count):
            radius = rng.uniform(100, 1500) * (1 + 0.2 * np.sin(7 * angle + rng.uniform(0, 6)))
            x, y = rng.uniform(2000, width - 2000), rng.uniform(2000, height - 2000)
            group = "_2" if number % 10 == 9 else "_0"
            file.write(f'<Annotation Name="{number}" Type="Polygon" PartOfGroup="{group}"><Coordinates>')
            points = zip(x + radius * np.cos(angle), y + radius * np.sin(angle), strict=True)
            file.writelines(f'<Coordinate Order="{k}" X="{a:.2f}" Y="{b:.2f}"/>' for k, (a, b) in enumerate(points))
            file.write("</Coordinates></Annotation>")
        file.write("</Annotations></ASAP_Annotations>")


def compare(source: Path, folder: Path, repeat: int, mpp: float | None) -> None:
    converted(source, folder, mpp)
    best: dict[str, float] = {}
    for _ in range(repeat):
        for name in METHODS:
            seconds = measured(name, source, folder)["seconds"]
            best[name] = min(seconds, best.get(name, seconds))
    print("| method | wall, s | times ours |\n|---|---|---|")
    for name, seconds in best.items():
        ours = best[f"{name.split(',')[0]}, this stage"]
        print(f"| {name} | {seconds:.2f} | {seconds / ours:.2f} |")


def full(source: Path, folder: Path) -> None:
    from wsi_pipeline.pyramid.pyramid import Pyramid

    converted(source, folder, None)
    size = Pyramid(folder / "pyramid.ome.zarr").size
    print("| stage | wall, s | peak memory, MiB |\n|---|---|---|")
    for count in (POLYGONS // 2, POLYGONS, 2 * POLYGONS):
        write_polygons(folder / "annotation.xml", size.width, size.height, count)
        found = measured("truth, this stage", source, folder)
        print(f"| truth, {count:,} polygons of {VERTICES} | {found['seconds']:.1f} | {found['peak_mib']:.0f} |")
    for name in (
        "tissue, this stage",
        "patches, this stage",
        *(one for one in METHODS if one.startswith("mask")),
    ):
        found = measured(name, source, folder)
        print(f"| {name} | {found['seconds']:.2f} | {found['peak_mib']:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--mpp", type=float)
    parser.add_argument("--method")
    arguments: Any = parser.parse_args()
    if arguments.method:
        for name in IMPORTS:
            importlib.import_module(name)
        started = time.perf_counter()
        METHODS[arguments.method](arguments.slide, arguments.folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": time.perf_counter() - started, "peak_mib": peak}))
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as folder:
        if arguments.full:
            full(arguments.slide, Path(folder))
        else:
            compare(arguments.slide, Path(folder), arguments.repeat, arguments.mpp)


if __name__ == "__main__":
    sys.exit(main())
