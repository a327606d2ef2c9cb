"""Training patches of a slide: which grid positions qualify, which are drawn, and how they are stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wsi_pipeline.config import PatchesRun
from wsi_pipeline.geometry import Grid, PatchSpec, Size
from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.io.digests import digest_file, digest_tree
from wsi_pipeline.masks.label_images import (
    IGNORE,
    TUMOR,
    AnyImage,
    grid_fractions,
    grid_truth,
    is_ignored,
    is_scored_tumor,
    is_tissue,
)
from wsi_pipeline.metrics.exact import share_of
from wsi_pipeline.model.patch_set import class_counts
from wsi_pipeline.pyramid.codecs import image_codec
from wsi_pipeline.pyramid.patch_store import write_patches
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.pyramid.stain import stain_normalizer
from wsi_pipeline.receipts.slides import ClassCounts, StainFacts
from wsi_pipeline.seeds import generator

# About the edge of a shard of the pyramid at level 0: patches are stored square by square.
_SQUARE_PX = 4096


@dataclass(frozen=True, slots=True)
class Candidates:
    """Grid positions that qualify; all arrays have one entry per candidate, in grid order.

    `x`, `y` are the top left corner in level-0 pixels, `label` is the index in `CLASSES`.
    """

    x: NDArray[np.int64]
    y: NDArray[np.int64]
    label: NDArray[np.int8]
    tumor_fraction: NDArray[np.float32]
    tissue_fraction: NDArray[np.float32]

    def take(self, index: NDArray[np.int64]) -> Candidates:
        return Candidates(*(getattr(self, field.name)[index] for field in fields(self)))

    def counts(self) -> ClassCounts:
        return class_counts(self.label)


@dataclass(frozen=True, slots=True)
class StoredPatches:
    """What the receipt of a store of patches states: scale, factor of resampling, stains, and digests of the files."""

    mpp: float
    factor: float
    stains: StainFacts | None
    store_sha256: str
    index_sha256: str


def find_candidates(tissue: AnyImage, truth: AnyImage, grid: Grid, slide_mpp: float, options: PatchesRun) -> Candidates:
    """Grid positions with enough tissue and a label by the rule of `options`, row by row."""
    tissue_fraction = grid_fractions(is_tissue(tissue), tissue.mpp, grid, slide_mpp)
    tumor_fraction = grid_fractions(is_scored_tumor(truth), truth.mpp, grid, slide_mpp)
    usable = tissue_fraction >= options.min_tissue
    if options.label_rule == "area_fraction":
        is_tumor = tumor_fraction >= options.min_tumor
        usable &= is_tumor | (tumor_fraction == 0)
        usable &= grid_fractions(is_ignored(truth), truth.mpp, grid, slide_mpp) == 0
    else:
        labels = grid_truth(truth, grid, slide_mpp, options)
        is_tumor = labels == TUMOR
        usable &= labels != IGNORE
    rows, columns = np.nonzero(usable)
    return Candidates(
        x=grid.x()[columns],
        y=grid.y()[rows],
        label=is_tumor[rows, columns].astype(np.int8),
        tumor_fraction=tumor_fraction[rows, columns].astype(np.float32),
        tissue_fraction=tissue_fraction[rows, columns].astype(np.float32),
    )


def draw_candidates(labels: NDArray[np.int8], slide: str, options: PatchesRun) -> NDArray[np.int64]:
    """Indices of randomly drawn candidates, ascending, at most the cap of each class.

    Draws are seeded by (seed, slide, class): no slide changes another's, and a higher cap only adds patches.
    """

    def of_class(label: int, cap: int) -> NDArray[np.int64]:
        members = np.flatnonzero(labels == label)
        order = generator(options.seed, "patches", slide, label).permutation(len(members))
        return members[order[:cap]]

    tumor = of_class(1, options.max_tumor)
    max_normal = options.max_normal
    if options.normal_per_tumor is not None and len(tumor):
        max_normal = min(max_normal, math.ceil(share_of(options.normal_per_tumor, len(tumor))))
    return np.sort(np.concatenate((of_class(0, max_normal), tumor)))


def scores_of(heatmap: NDArray[np.float32], grid: Grid, candidates: Candidates) -> NDArray[np.float32]:
    """Heatmap values of candidates, which must be positions of its grid; NaN where the heatmap has none."""
    rows, columns = np.searchsorted(grid.y(), candidates.y), np.searchsorted(grid.x(), candidates.x)
    return heatmap[rows, columns]


def highest_scores(scores: NDArray[np.float32], min_score: float, count: int) -> NDArray[np.int64]:
    """Indices, ascending, of at most `count` of the highest scores of at least `min_score`; ties by index."""
    # NaN is sorted last.
    order = np.argsort(-scores, kind="stable")[:count]
    return np.sort(order[scores[order].astype(np.float64) >= min_score])


def store_patches(
    slide: str,
    pyramid: Pyramid,
    tissue: AnyImage,
    drawn: Candidates,
    options: PatchesRun,
    *,
    store: Path,
    index: Path,
    normal_drawn_as: str,
    threads: int,
) -> StoredPatches:
    """Write pixels and index of patches, square by square, so that neighbours share decoded chunks.

    `normal_drawn_as` is the index's `drawn_as` of normal patches.
    """
    normalize, stains = stain_normalizer(options.stain_normalisation, slide, pyramid, tissue)
    ordered = drawn.take(np.lexsort((drawn.x, drawn.y, drawn.x // _SQUARE_PX, drawn.y // _SQUARE_PX)))
    with atomic_output(store) as partial:
        digest = digest_tree(partial, known=_write_pixels(partial, pyramid, ordered, normalize, options, threads))
    spec = pyramid.patch_spec(options.size_px, options.mpp)
    with atomic_output(index) as partial:
        pq.write_table(_index_table(slide, spec, ordered, normal_drawn_as), partial)
    return StoredPatches(spec.mpp, spec.factor, stains, digest, digest_file(index))


def _write_pixels(
    store: Path,
    pyramid: Pyramid,
    drawn: Candidates,
    normalize: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    options: PatchesRun,
    threads: int,
) -> dict[str, str]:
    """Write the store; returns the digest of each shard by its path."""
    border = options.border_px
    spec = pyramid.patch_spec(options.size_px + 2 * border, options.mpp)
    margin = border * spec.mpp / pyramid.mpp
    x = np.rint(drawn.x - margin).astype(int).tolist()
    y = np.rint(drawn.y - margin).astype(int).tolist()
    codec = image_codec(options.codec, Size(spec.size_px, spec.size_px), options.quality)

    def read(start: int, stop: int) -> NDArray[np.uint8]:
        return normalize(pyramid.read_patches(x[start:stop], y[start:stop], spec))

    return write_patches(store, len(x), spec.size_px, border, codec, read, threads)


def _index_table(slide: str, spec: PatchSpec, drawn: Candidates, normal_drawn_as: str) -> pa.Table:
    return pa.table(
        {
            "slide": pa.array([slide] * len(drawn.x), pa.string()),
            "x": drawn.x,
            "y": drawn.y,
            "mpp": np.full(len(drawn.x), spec.mpp),
            "label": drawn.label,
            "tumor_fraction": drawn.tumor_fraction,
            "tissue_fraction": drawn.tissue_fraction,
            "drawn_as": pa.array(["tumor" if label else normal_drawn_as for label in drawn.label], pa.string()),
        }
    )
