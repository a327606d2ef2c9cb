"""Size, time and memory of the report page of many large slides.

    python benchmarks/report.py SLIDE [--slides 130] [--stride 1.0]

SLIDE is converted once and used for all test slides. Each has an annotation and random scores on a fifth of its grid
positions (patches of 299 px at 0.5 um per pixel, `--stride` patches apart). All outputs of the stages are real. Prints
a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.special import logit

from wsi_pipeline.cohort.sheet import Sheet, SlideRow
from wsi_pipeline.config import (
    CalibrateRun,
    ConfusionRun,
    ConvertRun,
    DetectRun,
    EvaluateRun,
    HeatmapRun,
    ReportRun,
    ScoresRun,
    TruthRun,
)
from wsi_pipeline.geometry import Grid
from wsi_pipeline.pyramid.heatmap_store import write_heatmap
from wsi_pipeline.pyramid.ome_zarr import Image, write_image
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.receipts.base import write_receipt
from wsi_pipeline.receipts.models import HeatmapReceipt, PrecisionFacts
from wsi_pipeline.receipts.slides import PixelCounts, TruthReceipt
from wsi_pipeline.stages import calibrate, confusion, convert, detect, evaluate, report, scores

PATCH_UM = 299 * 0.5
MASK_MPP = 8.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slide", type=Path)
    parser.add_argument("--slides", type=int, default=130)
    parser.add_argument("--stride", type=float, default=1.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as name:
        root = Path(name)
        store = root / "pyramid.ome.zarr"
        outputs = convert.Outputs(store, root / "pyramid.json")
        convert.run("slide", convert.Inputs(arguments.slide), outputs, ConvertRun(), mpp=0.25, threads=2)
        pyramid = Pyramid(store)
        calibrate.run(
            Sheet(), calibrate.Inputs(root, root), calibrate.Outputs(root / "calibration.json"), CalibrateRun()
        )
        sheet = Sheet()
        for number in range(arguments.slides):
            slide = f"slide-{number:03}"
            positions = write_slide_results(root, slide, store, pyramid, number, arguments.stride)
            sheet[slide] = SlideRow(slide, "none", "test", label="tumor" if number % 2 else "normal")
        inputs = evaluate.Inputs(
            scores=root / "scores",
            confusion=root / "confusion",
            detections=root / "detections",
            calibration=root / "calibration.json",
        )
        evaluate.run(sheet, inputs, evaluate.Outputs(root / "evaluation"), EvaluateRun())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        report.run(sheet, None, report.Inputs(root), report.Outputs(root / "report.html"), ReportRun())
        took = time.perf_counter() - began
        page = (root / "report.html").read_text()
    shown = re.findall(r'"pictureSize":\[(\d+),(\d+)\]', page)
    every = {int(one) for one in re.findall(r'"every":(\d+)', page)}
    print(f"{arguments.slides} slides of {pyramid.size.width} x {pyramid.size.height} px, {positions:,} scores each\n")
    print("| what | figure |\n|---|---|")
    print(f"| size of the page | {len(page) / 1e6:.1f} MB |")
    print(f"| slides with pictures | {len(shown)}, of {'x'.join(shown[0])} px |")
    print(f"| maps: every n-th row and column | {', '.join(map(str, sorted(every)))} |")
    print(f"| time | {took:.1f} s |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"| peak memory | {peak / 1024:.0f} MiB ({before / 1024:.0f} before) |")


def write_slide_results(root: Path, slide: str, store: Path, pyramid: Pyramid, seed: int, stride: float) -> int:
    """Write synthetic masks and a heatmap of a slide and run the later stages; return the number of scores."""
    rng = np.random.default_rng(seed)
    here = root / "slides" / slide
    here.mkdir(parents=True)
    (here / "pyramid.ome.zarr").symlink_to(store)
    size = pyramid.size_at(MASK_MPP)
    coarse = ndimage.gaussian_filter(rng.normal(size=(-(-size.height // 16), -(-size.width // 16))), 4)

    def mask(share: float) -> np.ndarray:
        areas = np.kron(coarse > np.quantile(coarse, 1 - share), np.ones((16, 16), np.uint8)).astype(np.uint8)
        return areas[: size.height, : size.width]

    tissue, tumor = mask(0.2), mask(0.01) * (seed % 2)
    for name, data in (("tissue", tissue), ("truth", tumor)):
        write_image(here / f"{name}.ome.zarr", Image.from_corner(data, MASK_MPP), name=name, slide_mpp=pyramid.mpp)
    write_receipt(
        here / "truth.json",
        TruthReceipt(
            slide=slide,
            label="tumor" if tumor.any() else "normal",
            exhaustive=True,
            annotation_sha256="0" * 64,
            polygons=0,
            tumor_mm2=float(tumor.sum()),
            pixels=PixelCounts(normal=0, tumor=0, ignore=0),
            shape=tumor.shape,
            truth_sha256="",
            options=TruthRun(),
        ),
    )
    patch_px = PATCH_UM / pyramid.mpp
    grid = Grid.over(pyramid.size, patch_px, patch_px * stride)
    at = [((edges + patch_px / 2) * pyramid.mpp / MASK_MPP).astype(int) for edges in (grid.y(), grid.x())]
    rows, columns = (np.minimum(index, limit - 1) for index, limit in zip(at, (size.height, size.width), strict=True))
    known, is_tumor = (data[rows[:, None], columns[None, :]] > 0 for data in (tissue, tumor))
    drawn = rng.beta(0.3, 6, known.shape) + is_tumor * rng.beta(3, 2, known.shape)
    heat = np.where(known, logit(np.clip(drawn, 1e-12, 1 - 1e-12)), np.nan).astype(np.float32)
    image = Image(heat, grid.stride_px * pyramid.mpp, PATCH_UM / 2)
    heatmap, receipt = root / "heatmaps" / f"{slide}.ome.zarr", root / "heatmaps" / f"{slide}.json"
    write_heatmap(heatmap, image, known.astype(np.float32), pyramid.mpp)
    write_receipt(
        receipt,
        HeatmapReceipt(
            slide=slide,
            model_sha256="0" * 64,
            slide_mpp=pyramid.mpp,
            slide_size=(pyramid.size.width, pyramid.size.height),
            patch_mpp=0.5,
            factor=1,
            grid=grid,
            stains=None,
            precision=PrecisionFacts(device="cpu", dtype="float32"),
            positions=int(known.sum()),
            unread_positions=0,
            maximum_log_odds=float(np.nanmax(heat)),
            heatmap_sha256="",
            options=HeatmapRun(),
        ),
    )
    truth = here / "truth.ome.zarr"
    histogram = scores.Outputs(root / "scores" / f"{slide}.parquet", root / "scores" / f"{slide}.json")
    judged = scores.Inputs(truth=truth, truth_receipt=here / "truth.json", heatmap=heatmap, heatmap_receipt=receipt)
    scores.run(slide, judged, histogram, ScoresRun())
    compared = confusion.Inputs(
        pyramid=store,
        truth=truth,
        truth_receipt=here / "truth.json",
        heatmap=heatmap,
        heatmap_receipt=receipt,
        calibration=root / "calibration.json",
    )
    folder = root / "confusion"
    written = confusion.Outputs(
        store=folder / f"{slide}.ome.zarr",
        receipt=folder / f"{slide}.json",
        picture=folder / f"{slide}.png",
        geojson=folder / f"{slide}.geojson",
    )
    confusion.run(slide, compared, written, ConfusionRun())
    outputs = [root / "detections" / f"{slide}.{kind}" for kind in ("csv", "geojson", "json")]
    searched = detect.Inputs(truth=truth, truth_receipt=here / "truth.json", heatmap=heatmap, heatmap_receipt=receipt)
    detect.run(slide, searched, detect.Outputs(*outputs), DetectRun())
    return int(known.sum())


if __name__ == "__main__":
    main()
