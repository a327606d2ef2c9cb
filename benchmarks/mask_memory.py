"""Peak memory and time of each stage that reads or writes masks, on a large slide with fine masks.

    python benchmarks/slides.py 119808 221184 huge.tif
    python benchmarks/mask_memory.py huge.tif [--mpp 2] [--folder kept] [--only patches ...]

Each stage runs in a process of its own. Truth has `LESIONS` outlines with cut-outs, the heatmap random scores at the
positions with tissue. `--folder` keeps the results, and those that are there are used again. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from masks import converted, write_polygons

THREADS = 2
LESIONS = 200
PATCH_PX = 299
MODEL = "0" * 64


def tissue(folder: Path, mpp: float) -> None:
    from wsi_pipeline.config import TissueRun
    from wsi_pipeline.stages import tissue

    outputs = tissue.Outputs(*(folder / f"tissue.{kind}" for kind in ("ome.zarr", "json", "png")))
    tissue.run("s", tissue.Inputs(folder / "pyramid.ome.zarr"), outputs, TissueRun(mpp=mpp), threads=THREADS)


def truth(folder: Path, mpp: float) -> None:
    from wsi_pipeline.config import TruthRun
    from wsi_pipeline.stages import truth

    outputs = truth.Outputs(
        store=folder / "truth.ome.zarr",
        receipt=folder / "truth.json",
        picture=folder / "truth.png",
        geojson=folder / "truth.geojson",
    )
    inputs = truth.Inputs(folder / "pyramid.ome.zarr", folder / "annotation.xml")
    truth.run("s", inputs, outputs, TruthRun(mpp=mpp, min_on_tissue=0), label="tumor", threads=THREADS)


def patches(folder: Path, _: float) -> None:
    from wsi_pipeline.config import PatchesRun
    from wsi_pipeline.stages import patches

    inputs = patches.Inputs(*(folder / f"{kind}.ome.zarr" for kind in ("pyramid", "tissue", "truth")))
    outputs = patches.Outputs(*(folder / f"patches.{kind}" for kind in ("zarr", "parquet", "json")))
    patches.run("s", inputs, outputs, PatchesRun(size_px=PATCH_PX), threads=THREADS)


def positions(folder: Path, _: float) -> None:
    """The positions to predict, as the stages predict and heatmap find them."""
    from wsi_pipeline.config import HeatmapRun
    from wsi_pipeline.model.slide_prediction import SlidePatches

    model: Any = SimpleNamespace(size_px=PATCH_PX, mpp=0.25, stain_normalisation="none")
    SlidePatches.of("s", folder, model, HeatmapRun())


def write_scores(folder: Path) -> None:
    """A heatmap and the receipts of it and of an operating point."""
    from wsi_pipeline.cohort.sheet import Sheet
    from wsi_pipeline.config import CalibrateRun, HeatmapRun
    from wsi_pipeline.geometry import Grid
    from wsi_pipeline.pyramid.heatmap_store import write_heatmap
    from wsi_pipeline.pyramid.ome_zarr import Image
    from wsi_pipeline.pyramid.pyramid import Pyramid
    from wsi_pipeline.receipts.base import write_receipt
    from wsi_pipeline.receipts.models import HeatmapReceipt, PrecisionFacts
    from wsi_pipeline.stages import calibrate

    pyramid = Pyramid(folder / "pyramid.ome.zarr")
    grid = Grid.over(pyramid.size, PATCH_PX, PATCH_PX)
    rng = np.random.default_rng(0)
    share = rng.uniform(size=(grid.rows, grid.columns)).astype(np.float32)
    heat = np.where(share > 0.7, rng.normal(-2, 3, share.shape), np.nan).astype(np.float32)
    patch_um = PATCH_PX * pyramid.mpp
    write_heatmap(folder / "heatmap.ome.zarr", Image(heat, patch_um, patch_um / 2), share, pyramid.mpp)
    write_receipt(
        folder / "heatmap.json",
        HeatmapReceipt(
            slide="s",
            model_sha256=MODEL,
            slide_mpp=pyramid.mpp,
            slide_size=(pyramid.size.width, pyramid.size.height),
            patch_mpp=pyramid.mpp,
            factor=1,
            grid=grid,
            stains=None,
            precision=PrecisionFacts(device="cpu", dtype="float32"),
            positions=int(np.isfinite(heat).sum()),
            unread_positions=0,
            maximum_log_odds=float(np.nanmax(heat)),
            heatmap_sha256=MODEL,
            options=HeatmapRun(),
        ),
    )
    outputs = calibrate.Outputs(folder / "calibration.json")
    calibrate.run(Sheet(), calibrate.Inputs(folder, folder), outputs, CalibrateRun())


def scored(folder: Path) -> dict[str, Path]:
    """The paths that scores, detect and confusion have in common."""
    return {
        "truth": folder / "truth.ome.zarr",
        "truth_receipt": folder / "truth.json",
        "heatmap": folder / "heatmap.ome.zarr",
        "heatmap_receipt": folder / "heatmap.json",
    }


def negatives(folder: Path, _: float) -> None:
    from wsi_pipeline.config import NegativesRun
    from wsi_pipeline.stages import negatives

    inputs = negatives.Inputs(
        pyramid=folder / "pyramid.ome.zarr",
        tissue=folder / "tissue.ome.zarr",
        truth=folder / "truth.ome.zarr",
        heatmap=folder / "heatmap.ome.zarr",
        heatmap_receipt=folder / "heatmap.json",
    )
    outputs = negatives.Outputs(*(folder / f"negatives.{kind}" for kind in ("zarr", "parquet", "json")))
    negatives.run("s", inputs, outputs, NegativesRun(size_px=PATCH_PX), threads=THREADS)


def scores(folder: Path, _: float) -> None:
    from wsi_pipeline.config import ScoresRun
    from wsi_pipeline.stages import scores

    outputs = scores.Outputs(folder / "scores.parquet", folder / "scores.json")
    scores.run("s", scores.Inputs(**scored(folder)), outputs, ScoresRun(label_rule="area_fraction"))


def detect(folder: Path, _: float) -> None:
    from wsi_pipeline.config import DetectRun
    from wsi_pipeline.stages import detect

    outputs = detect.Outputs(folder / "detections.csv", folder / "detections.geojson", folder / "detections.json")
    detect.run("s", detect.Inputs(**scored(folder)), outputs, DetectRun())


def confusion(folder: Path, _: float) -> None:
    from wsi_pipeline.config import ConfusionRun
    from wsi_pipeline.stages import confusion

    inputs = confusion.Inputs(
        **scored(folder), pyramid=folder / "pyramid.ome.zarr", calibration=folder / "calibration.json"
    )
    outputs = confusion.Outputs(
        store=folder / "confusion.ome.zarr",
        receipt=folder / "confusion.json",
        picture=folder / "confusion.png",
        geojson=folder / "confusion.geojson",
    )
    confusion.run("s", inputs, outputs, ConfusionRun())


def pictures(folder: Path, _: float) -> None:
    """The pictures of a slide in the report."""
    from wsi_pipeline.report.slide_entries import _pictures

    files: Any = SimpleNamespace(pyramid=lambda: folder / "pyramid.ome.zarr", slide_file=lambda name: folder / name)
    _pictures(files, 1024)


def viewer(folder: Path, _: float) -> None:
    """The outlines of tissue and truth on each tile of the coarsest and some of the finest level, in the viewer."""
    from wsi_pipeline.view.tiles import TileReader

    reader = TileReader()
    pyramid = reader.pyramid(folder / "pyramid.ome.zarr", "0")
    last = len(pyramid.levels) - 1
    for name in ("tissue.ome.zarr", "truth.ome.zarr"):
        for level, column, row in ((last, 0, 0), *((0, 100 + k, 200) for k in range(40))):
            reader.mask_tile(pyramid, folder / name, "0", level, column, row)


STAGES: dict[str, Callable[[Path, float], None]] = {
    one.__name__: one
    for one in (tissue, truth, patches, positions, negatives, scores, detect, confusion, pictures, viewer)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--mpp", type=float, default=2.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="*", default=list(STAGES))
    parser.add_argument("--stage")
    arguments: Any = parser.parse_args()
    if arguments.stage:
        started = time.perf_counter()
        STAGES[arguments.stage](arguments.folder, arguments.mpp)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps([time.perf_counter() - started, peak]))
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as name:
        folder = arguments.folder or Path(name)
        folder.mkdir(exist_ok=True)
        if not (folder / "calibration.json").is_file():
            from wsi_pipeline.pyramid.pyramid import Pyramid

            converted(arguments.slide, folder, None)
            size = Pyramid(folder / "pyramid.ome.zarr").size
            write_polygons(folder / "annotation.xml", size.width, size.height, LESIONS)
            write_scores(folder)
        print("| stage | wall, s | peak memory, MiB |\n|---|---|---|")
        for stage in arguments.only:
            command = [sys.executable, __file__, str(arguments.slide), "--mpp", str(arguments.mpp)]
            done = subprocess.run(  # noqa: S603
                [*command, "--folder", str(folder), "--stage", stage], check=True, stdout=subprocess.PIPE, text=True
            )
            seconds, peak = json.loads(done.stdout.splitlines()[-1])
            print(f"| {stage} | {seconds:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
