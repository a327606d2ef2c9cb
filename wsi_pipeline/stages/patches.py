"""Stage patches: which patches of a slide train the network, and their pixels.

Candidates lie on a grid. A tumour patch has at least `min_tumor` of its area in tumour, a normal one
none; both have at least `min_tissue` tissue, and neither touches anything that is to be ignored. What
lies between is left out. Draws are seeded by (seed, slide), and a higher cap only adds patches.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray

from wsi_pipeline.config import PatchDraw
from wsi_pipeline.files import digest_file, digest_tree, publish
from wsi_pipeline.geometry import Grid, PatchSpec
from wsi_pipeline.masks import IGNORE, TUMOR, grid_shares
from wsi_pipeline.pyramid import Pyramid
from wsi_pipeline.receipts import write_receipt
from wsi_pipeline.seeds import generator
from wsi_pipeline.store import Image, compressor, read_image

log = logging.getLogger(__name__)

CLASSES = ("normal", "tumor")
_SHARD = 64


@dataclass(frozen=True, slots=True)
class Candidates:
    """Grid positions that qualify; all arrays have one entry a candidate, in grid order."""

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    label: NDArray[np.int8]
    tumor_fraction: NDArray[np.float32]
    tissue_fraction: NDArray[np.float32]

    def take(self, index: NDArray[np.int64]) -> Candidates:
        return Candidates(
            self.x[index],
            self.y[index],
            self.label[index],
            self.tumor_fraction[index],
            self.tissue_fraction[index],
        )


def run(
    slide: str,
    pyramid_path: Path,
    tissue_path: Path,
    truth_path: Path,
    store: Path,
    index: Path,
    receipt: Path,
    options: PatchDraw,
    threads: int = 1,
) -> None:
    """Draw and store the patches of one slide."""
    pyramid = Pyramid(pyramid_path)
    spec = pyramid.patch_spec(options.size_px, options.mpp)
    grid = pyramid.grid(spec, options.stride_um)
    tissue, truth = read_image(tissue_path, pyramid.mpp), read_image(truth_path, pyramid.mpp)
    candidates = find_candidates(tissue, truth, grid, pyramid.mpp, options)
    drawn = candidates.take(draw(candidates.label, slide, options))
    with publish(store) as partial:
        _write_pixels(partial, pyramid, spec, drawn, threads)
        digest = digest_tree(partial)
    with publish(index) as partial:
        pq.write_table(_table(slide, spec, drawn), partial)
    counts = {
        kind: {name: int((group.label == k).sum()) for k, name in enumerate(CLASSES)}
        for kind, group in (("candidates", candidates), ("drawn", drawn))
    }
    write_receipt(
        receipt,
        "patches",
        {
            "slide": slide,
            "size_px": spec.size_px,
            "mpp": spec.mpp,
            "grid": [grid.columns, grid.rows],
            **counts,
            "store_sha256": digest,
            "index_sha256": digest_file(index),
        },
        options,
    )
    log.info(
        "%s: %d tumour patches of %d, %d normal of %d",
        slide,
        counts["drawn"]["tumor"],
        counts["candidates"]["tumor"],
        counts["drawn"]["normal"],
        counts["candidates"]["normal"],
    )


def find_candidates(tissue: Image, truth: Image, grid: Grid, slide_mpp: float, options: PatchDraw) -> Candidates:
    """Grid positions that may be a training patch, row by row."""
    tissue_share = grid_shares(tissue.data > 0, tissue.mpp, grid, slide_mpp)
    tumor_share = grid_shares(truth.data == TUMOR, truth.mpp, grid, slide_mpp)
    ignore_share = grid_shares(truth.data == IGNORE, truth.mpp, grid, slide_mpp)
    usable = (tissue_share >= options.min_tissue) & (ignore_share == 0)
    is_tumor = tumor_share >= options.min_tumor
    rows, columns = np.nonzero(usable & (is_tumor | (tumor_share == 0)))
    return Candidates(
        x=grid.x()[columns],
        y=grid.y()[rows],
        label=is_tumor[rows, columns].astype(np.int8),
        tumor_fraction=tumor_share[rows, columns].astype(np.float32),
        tissue_fraction=tissue_share[rows, columns].astype(np.float32),
    )


def draw(labels: NDArray[np.int8], slide: str, options: PatchDraw) -> NDArray[np.int64]:
    """Indices of the candidates that are drawn, ascending; at most the cap of each class."""
    caps = (options.max_normal, options.max_tumor)
    picked = []
    for label, cap in enumerate(caps):
        members = np.flatnonzero(labels == label)
        order = generator(options.seed, "patches", slide, label).permutation(len(members))
        picked.append(members[order[:cap]])
    return np.sort(np.concatenate(picked))


def _write_pixels(store: Path, pyramid: Pyramid, spec: PatchSpec, drawn: Candidates, threads: int) -> None:
    edge = spec.size_px
    array = zarr.create_array(
        store,
        shape=(len(drawn.x), edge, edge, 3),
        chunks=(1, edge, edge, 3),
        shards=(_SHARD, edge, edge, 3),
        dtype="uint8",
        compressors=compressor(),
        fill_value=0,
        dimension_names=["patch", "y", "x", "c"],
    )
    for start in range(0, len(drawn.x), _SHARD):
        part = slice(start, start + _SHARD)
        array[part] = pyramid.read_patches(drawn.x[part].tolist(), drawn.y[part].tolist(), spec, threads)


def _table(slide: str, spec: PatchSpec, drawn: Candidates) -> pa.Table:
    return pa.table(
        {
            "slide": pa.array([slide] * len(drawn.x), pa.string()),
            "x": drawn.x,
            "y": drawn.y,
            "mpp": np.full(len(drawn.x), spec.mpp),
            "label": drawn.label,
            "tumor_fraction": drawn.tumor_fraction,
            "tissue_fraction": drawn.tissue_fraction,
        }
    )
