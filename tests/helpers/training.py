"""Training patches and the training command, for the tests of training."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from wsi_pipeline.config import PatchesRun, TrainRun
from wsi_pipeline.geometry import Size
from wsi_pipeline.io.digests import digest_bytes, digest_file
from wsi_pipeline.pyramid import patch_store
from wsi_pipeline.pyramid.codecs import ZstdCodec
from wsi_pipeline.receipts.base import write_receipt
from wsi_pipeline.receipts.slides import ClassCounts, PatchesReceipt

needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU does not support bfloat16"
)

EDGE = 75
OPTIONS = TrainRun(
    start="random", batch_size=8, max_steps=6, epochs=100, validate_every=2, learning_rate=1e-3, cpu_threads=1
)


def write_patches(folder: Path, labels: list[int], *, size_px: int = EDGE, seed: int = 0) -> Path:
    """Write patches of a slide: coarse blobs for tumour, fine blobs for normal, with equal means."""
    rng = np.random.default_rng(seed)
    pixels = np.empty((len(labels), size_px, size_px, 3), np.uint8)
    for k, label in enumerate(labels):
        cell = 15 if label else 3
        coarse = rng.integers(60, 220, (-(-size_px // cell),) * 2)
        pixels[k] = np.kron(coarse, np.ones((cell, cell)))[:size_px, :size_px, None]
    folder.mkdir(parents=True)
    codec = ZstdCodec(Size(size_px, size_px))
    patch_store.write_patches(
        folder / "patches.zarr", len(labels), size_px, 0, codec, lambda start, stop: pixels[start:stop], 1
    )
    rows = {"slide": [folder.name] * len(labels), "x": np.arange(len(labels)) * 100, "y": np.zeros(len(labels), int)}
    pq.write_table(pa.table({**rows, "label": np.array(labels, np.int8)}), folder / "patches.parquet")
    receipt = folder / "patches.json"
    counts = ClassCounts(normal=labels.count(0), tumor=labels.count(1))
    facts = PatchesReceipt(
        slide=folder.name,
        size_px=size_px,
        border_px=0,
        mpp=0.5,
        factor=1,
        grid=(len(labels), 1),
        candidates=counts,
        drawn=counts,
        stains=None,
        store_sha256=digest_bytes(pixels.tobytes()),
        index_sha256=digest_file(folder / "patches.parquet"),
        options=PatchesRun(mpp=0.5, size_px=size_px),
    )
    write_receipt(receipt, facts)
    return receipt


def write_cohort(root: Path) -> None:
    """Write a sheet with three training slides, one of them without patches, and one validation slide."""
    write_patches(root / "slides" / "n", [0] * 12, seed=1)
    write_patches(root / "slides" / "t", [1] * 5 + [0] * 3, seed=2)
    write_patches(root / "slides" / "empty", [], seed=3)
    write_patches(root / "slides" / "v", [0, 1] * 5, seed=4)
    rows = ["n\tn.tif\ttrain\tnormal\t", "t\tt.tif\ttrain\ttumor\tt.xml", "empty\te.tif\ttrain\tnormal\t"]
    rows.append("v\tv.tif\tvalidation\ttumor\tv.xml")
    (root / "slides.tsv").write_text("\n".join(["slide\tpath\tsplit\tlabel\tannotation", *rows]) + "\n")


def start(
    root: Path, out: Path, *arguments: str, code: str = "from wsi_pipeline.cli.app import main; main()", **options: Any
) -> subprocess.Popen[str]:
    """Start `wsi-pipeline train` on the cohort in `root`, with a checkpoint after every step."""
    command = [sys.executable, "-c", code, "train", "--sheet", str(root / "slides.tsv")]
    command += ["--slides", str(root / "slides"), "--output", str(out), "--checkpoints", str(out / "checkpoints")]
    command += ["--checkpoint-minutes", "0", *arguments]
    command += ["--options", OPTIONS.model_copy(update=options).model_dump_json()]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def losses(out: Path) -> list[float]:
    """Training loss of each row of the history."""
    return [float(row["train_loss"]) for row in csv.DictReader((out / "history.csv").read_text().splitlines())]


def model_facts(out: Path) -> dict[str, Any]:
    """Content of `model.json`."""
    facts: dict[str, Any] = json.loads((out / "model.json").read_text())
    return facts
