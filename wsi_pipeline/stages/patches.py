"""Stage patches: which patches of a slide train the network, and their pixels.

Candidates lie on a grid, have at least `min_tissue` tissue and are labelled by the rule of the config.
Draws are seeded by (seed, slide), so that no slide changes another's, and a higher cap only adds
patches. They are stored in the order of the slide's shards, so that neighbours share what is decoded.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wsi_pipeline.config import CLASSES, PatchesRun
from wsi_pipeline.geometry import Grid, PatchSpec, Size
from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.io.digests import digest_file, digest_tree
from wsi_pipeline.io.receipts import write_receipt
from wsi_pipeline.masks.label_images import IGNORE, TUMOR, grid_fractions, grid_truth
from wsi_pipeline.pyramid.codecs import image_codec
from wsi_pipeline.pyramid.ome_zarr import Image, read_image
from wsi_pipeline.pyramid.patch_store import write_patches
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.pyramid.stain import stain_normalizer
from wsi_pipeline.seeds import generator

log = logging.getLogger(__name__)

# About as many pixels of level 0 as a shard; patches are stored square by square.
_SQUARE_PX = 4096


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
    options: PatchesRun,
    threads: int = 1,
) -> None:
    """Draw and store the patches of one slide."""
    pyramid = Pyramid(pyramid_path)
    spec = pyramid.patch_spec(options.size_px, options.mpp)
    grid = pyramid.grid(spec, options.stride_um)
    tissue, truth = read_image(tissue_path, pyramid.mpp), read_image(truth_path, pyramid.mpp)
    candidates = find_candidates(tissue, truth, grid, pyramid.mpp, options)
    drawn = candidates.take(draw(candidates.label, slide, options))
    normalise, stains = stain_normalizer(options.stain_normalisation, slide, pyramid, tissue)
    drawn = in_storage_order(drawn)
    with atomic_output(store) as partial:
        digest = digest_tree(partial, known=write_pixels(partial, pyramid, drawn, normalise, options, threads))
    with atomic_output(index) as partial:
        beside = "normal beside tumor" if drawn.label.any() else "normal"
        pq.write_table(patch_table(slide, spec, drawn, beside), partial)
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
            "border_px": options.border_px,
            "mpp": spec.mpp,
            "grid": [grid.columns, grid.rows],
            **counts,
            "stains": stains,
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


def find_candidates(tissue: Image, truth: Image, grid: Grid, slide_mpp: float, options: PatchesRun) -> Candidates:
    """Grid positions that may be a training patch, row by row."""
    tissue_share = grid_fractions(tissue.data > 0, tissue.mpp, grid, slide_mpp)
    tumor_share = grid_fractions(truth.data == TUMOR, truth.mpp, grid, slide_mpp)
    usable = tissue_share >= options.min_tissue
    if options.label_rule == "area_fraction":
        is_tumor = tumor_share >= options.min_tumor
        usable &= is_tumor | (tumor_share == 0)
        usable &= grid_fractions(truth.data == IGNORE, truth.mpp, grid, slide_mpp) == 0
    else:
        labels = grid_truth(
            truth,
            grid,
            slide_mpp,
            rule=options.label_rule,
            region_um=options.region_um,
            min_tumor=options.min_tumor,
        )
        is_tumor = labels == TUMOR
        usable &= labels != IGNORE
    rows, columns = np.nonzero(usable)
    return Candidates(
        x=grid.x()[columns],
        y=grid.y()[rows],
        label=is_tumor[rows, columns].astype(np.int8),
        tumor_fraction=tumor_share[rows, columns].astype(np.float32),
        tissue_fraction=tissue_share[rows, columns].astype(np.float32),
    )


def draw(labels: NDArray[np.int8], slide: str, options: PatchesRun) -> NDArray[np.int64]:
    """Indices of the candidates that are drawn, ascending; at most the cap of each class."""

    def of_class(label: int, cap: int) -> NDArray[np.int64]:
        members = np.flatnonzero(labels == label)
        order = generator(options.seed, "patches", slide, label).permutation(len(members))
        return members[order[:cap]]

    tumor = of_class(1, options.max_tumor)
    most_normal = options.max_normal
    if options.normal_per_tumor is not None and len(tumor):
        most_normal = min(most_normal, math.ceil(options.normal_per_tumor * len(tumor)))
    return np.sort(np.concatenate((of_class(0, most_normal), tumor)))


def in_storage_order(drawn: Candidates) -> Candidates:
    """Square by square, so that neighbours share what is decoded."""
    return drawn.take(np.lexsort((drawn.x, drawn.y, drawn.x // _SQUARE_PX, drawn.y // _SQUARE_PX)))


def write_pixels(
    store: Path,
    pyramid: Pyramid,
    drawn: Candidates,
    normalise: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    options: PatchesRun,
    threads: int,
) -> dict[str, str]:
    """Write the store of patches; returns the digest of each of its shards."""
    border = options.border_px
    spec = pyramid.patch_spec(options.size_px + 2 * border, options.mpp)
    margin = border * spec.mpp / pyramid.mpp
    x, y = np.rint(drawn.x - margin).astype(int).tolist(), np.rint(drawn.y - margin).astype(int).tolist()
    codec = image_codec(options.codec, Size(spec.size_px, spec.size_px), options.quality)

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        return normalise(pyramid.read_patches(x[start:stop], y[start:stop], spec))

    return write_patches(store, len(x), spec.size_px, border, codec, read, threads)


def patch_table(slide: str, spec: PatchSpec, drawn: Candidates, normal: str) -> pa.Table:
    """The index of a store; `normal` is what normal patches were drawn as."""
    return pa.table(
        {
            "slide": pa.array([slide] * len(drawn.x), pa.string()),
            "x": drawn.x,
            "y": drawn.y,
            "mpp": np.full(len(drawn.x), spec.mpp),
            "label": drawn.label,
            "tumor_fraction": drawn.tumor_fraction,
            "tissue_fraction": drawn.tissue_fraction,
            "drawn_as": pa.array(["tumor" if label else normal for label in drawn.label], pa.string()),
        }
    )
