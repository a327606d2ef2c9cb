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
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wsi_pipeline.config import STEP_VERSIONS, ConfusionOptions, EvaluateOptions
from wsi_pipeline.files import canonical_json
from wsi_pipeline.heatmaps import STEPS
from wsi_pipeline.metrics.curves import Histogram, counts_at
from wsi_pipeline.sheet import Sheet, SlideRow
from wsi_pipeline.stages import evaluate

KINDS = 100


def write_kind(folder: Path, number: int, positions: int) -> None:
    rng = np.random.default_rng(number)
    share = 0.02 if number % 2 else 0.0
    truth = rng.random(positions) < share
    logits = rng.normal(np.where(truth, 2, -4), 2)
    steps = np.rint(STEPS / (1 + np.exp(-logits))).astype(np.int64)
    tumor = np.bincount(steps[truth], minlength=STEPS + 1)
    normal = np.bincount(steps[~truth], minlength=STEPS + 1)
    known = np.flatnonzero(tumor + normal)
    table = {"score": known.astype(np.uint16), "normal": normal[known], "tumor": tumor[known]}
    pq.write_table(pa.table(table), folder / f"{number}.scores.parquet")
    counts = counts_at(Histogram(known / STEPS, normal[known], tumor[known]), 0.8)
    options = ConfusionOptions().model_dump(mode="json")
    common = {"step_version": STEP_VERSIONS["confusion"], "model_sha256": "m"}
    (folder / f"{number}.confusion").write_text(canonical_json({
        **common, "stage": "confusion", "slide_score": float(known[-1] / STEPS), "options": options,
        "counts": {name: getattr(counts, name) for name in ("tp", "fp", "fn", "tn")},
    }))  # fmt: skip
    lesions = rng.random(rng.integers(1, 6)).tolist() if share else []
    (folder / f"{number}.detect").write_text(canonical_json({
        **common, "stage": "detect", "lesions": lesions, "false_positives": rng.random(5).tolist(),
        "isolated": 0, "reason": None, "detections": 5 + len(lesions),
    }))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=10_000)
    parser.add_argument("--positions", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", ".")) as name:
        folder = Path(name)
        for part in ("kinds", "confusion", "detections"):
            (folder / part).mkdir()
        for number in range(KINDS):
            write_kind(folder / "kinds", number, arguments.positions)
        sheet = Sheet()
        for number in range(arguments.slides):
            kind, slide = number % KINDS, f"s{number}"
            for source, target in (
                (f"{kind}.scores.parquet", f"confusion/{slide}.scores.parquet"),
                (f"{kind}.confusion", f"confusion/{slide}.json"),
                (f"{kind}.detect", f"detections/{slide}.json"),
            ):
                os.link(folder / "kinds" / source, folder / target)
            label = "tumor" if kind % 2 else "normal"
            sheet[slide] = SlideRow(slide, "x.tif", "test", label=label, centre=f"c{number % 3}")
        started = time.perf_counter()
        evaluate.run(sheet, (), folder / "confusion", folder / "detections", folder / "out", EvaluateOptions())
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("| slides | positions of each | wall, s | peak memory, MiB |\n|---|---|---|---|")
    print(f"| {arguments.slides:,} | {arguments.positions:,} | {seconds:.1f} | {peak:.0f} |")


if __name__ == "__main__":
    sys.exit(main())
