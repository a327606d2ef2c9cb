"""The evaluation of very many slides: time and memory of the stage evaluate.

    python benchmarks/aggregate.py [--slides 10000] [--positions 1000000]

Results of 100 synthetic slides are drawn and linked under the names of all. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from wsi_pipeline.cohort.sheet import Sheet, SlideRow
from wsi_pipeline.config import CalibrateRun, CalibrationOptions, ConfusionRun, DetectRun, EvaluateRun, ScoresRun
from wsi_pipeline.evaluation.confusion import ratios_of, shares_of
from wsi_pipeline.evaluation.score_histogram import ScoreHistogram
from wsi_pipeline.metrics.curves import confusion_counts
from wsi_pipeline.metrics.steps import STEPS, log_odds_of, quantize
from wsi_pipeline.receipts.base import write_receipt
from wsi_pipeline.receipts.evaluation import (
    ConfusionCells,
    ConfusionReceipt,
    ConfusionShares,
    DetectReceipt,
    PositionCounts,
    ScoresReceipt,
    SlideTruth,
)
from wsi_pipeline.stages import calibrate, evaluate

KINDS = 100
# As many as a slide has.
FEATURES = [f"f{number}" for number in range(20)]


def write_kind(folder: Path, number: int, positions: int) -> None:
    rng = np.random.default_rng(number)
    share = 0.02 if number % 2 else 0.0
    truth = rng.random(positions) < share
    logits = rng.normal(np.where(truth, 2, -4), 2)
    steps = quantize(logits)
    tumor = np.bincount(steps[truth], minlength=STEPS + 1)
    normal = np.bincount(steps[~truth], minlength=STEPS + 1)
    known = np.flatnonzero(tumor + normal)
    nothing = np.zeros(len(known), np.int64)
    histogram = ScoreHistogram(known, normal[known], tumor[known], nothing)
    histogram.write(folder / f"{number}.parquet")
    counts = confusion_counts(histogram.histogram, log_odds_of(0.8))
    slide = {"slide": "s", "model_sha256": "m"}
    write_receipt(
        folder / f"{number}.scores",
        ScoresReceipt(
            **slide,
            counts_sha256=histogram.digest,
            labels_sha256="",
            positions=PositionCounts(normal=int(normal.sum()), tumor=int(tumor.sum()), ignored=0),
            unread_positions=0,
            truth=SlideTruth(tumor=share > 0, ignored=False),
            features=dict.fromkeys(FEATURES, float(number)) | {"maximum": float(logits.max())},
            options=ScoresRun(),
        ),
    )
    write_receipt(
        folder / f"{number}.confusion",
        ConfusionReceipt(
            **slide,
            threshold=0.8,
            threshold_log_odds=log_odds_of(0.8),
            counts=ConfusionCells(**asdict(counts)),
            share_of_total=ConfusionShares(**shares_of(counts)),
            **ratios_of(counts),
            ignored=0,
            options=ConfusionRun(),
        ),
    )
    lesions = rng.random(rng.integers(1, 6)).tolist() if share else []
    write_receipt(
        folder / f"{number}.detect",
        DetectReceipt(
            **slide,
            detections=5 + len(lesions),
            detections_sha256="",
            truth_sha256="",
            lesions=lesions,
            false_positives=rng.random(5).tolist(),
            isolated=0,
            ignored=(),
            reason=None,
            options=DetectRun(),
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=10_000)
    parser.add_argument("--positions", type=int, default=1_000_000)
    parser.add_argument("--temperature", action="store_true", help="calibration at a temperature too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as name:
        folder = Path(name)
        for part in ("kinds", "scores", "confusion", "detections"):
            (folder / part).mkdir()
        for number in range(KINDS):
            write_kind(folder / "kinds", number, arguments.positions)
        sheet = Sheet()
        for number in range(arguments.slides):
            kind, slide = number % KINDS, f"s{number}"
            for source, target in (
                (f"{kind}.parquet", f"scores/{slide}.parquet"),
                (f"{kind}.scores", f"scores/{slide}.json"),
                (f"{kind}.confusion", f"confusion/{slide}.json"),
                (f"{kind}.detect", f"detections/{slide}.json"),
            ):
                os.link(folder / "kinds" / source, folder / target)
            label = "tumor" if kind % 2 else "normal"
            sheet[slide] = SlideRow(slide, "x.tif", "test", label=label, centre=f"c{number % 3}")
        options = CalibrateRun(calibration=CalibrationOptions(temperature=arguments.temperature))
        fitted = Sheet({slide: replace(row, split="validation") for slide, row in list(sheet.items())[:KINDS]})
        inputs = calibrate.Inputs(folder / "scores", folder / "detections")
        calibrate.run(fitted, inputs, calibrate.Outputs(folder / "calibration.json"), options)
        started = time.perf_counter()
        results = evaluate.Inputs(
            scores=folder / "scores",
            confusion=folder / "confusion",
            detections=folder / "detections",
            calibration=folder / "calibration.json",
        )
        evaluate.run(sheet, results, evaluate.Outputs(folder / "out"), EvaluateRun())
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("| slides | positions of each | wall, s | peak memory, MiB |\n|---|---|---|---|")
    print(f"| {arguments.slides:,} | {arguments.positions:,} | {seconds:.1f} | {peak:.0f} |")


if __name__ == "__main__":
    sys.exit(main())
