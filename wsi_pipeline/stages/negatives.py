"""Stage negatives: normal patches of a training slide that a model takes for tumour, to train on."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wsi_pipeline.config import CLASSES, NegativesRun
from wsi_pipeline.errors import StoreError
from wsi_pipeline.evaluation.labelled_heatmap import grid_of
from wsi_pipeline.geometry import Grid
from wsi_pipeline.io.atomic import atomic_output
from wsi_pipeline.io.digests import digest_file, digest_tree
from wsi_pipeline.io.receipts import read_receipt, write_receipt
from wsi_pipeline.pyramid.ome_zarr import read_image
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.pyramid.stain import stain_normalizer
from wsi_pipeline.stages.patches import Candidates, find_candidates, in_storage_order, patch_table, write_pixels

log = logging.getLogger(__name__)


def run(
    slide: str,
    pyramid_path: Path,
    tissue_path: Path,
    truth_path: Path,
    heatmap_path: Path,
    heatmap_receipt: Path,
    store: Path,
    index: Path,
    receipt: Path,
    options: NegativesRun,
    threads: int = 1,
) -> None:
    """Store the normal patches of one slide with the highest scores, at positions of its heatmap."""
    pyramid = Pyramid(pyramid_path)
    facts = read_receipt(heatmap_receipt, "heatmap")
    if facts["slide"] != slide:
        raise StoreError(f"{heatmap_receipt}: the heatmap of {facts['slide']}, not of {slide}")
    heat = read_image(heatmap_path, pyramid.mpp)
    tissue, truth = read_image(tissue_path, pyramid.mpp), read_image(truth_path, pyramid.mpp)
    grid = grid_of(facts)
    candidates = find_candidates(tissue, truth, grid, pyramid.mpp, options)
    normal = candidates.take(np.flatnonzero(candidates.label == 0))
    scores = scores_at(heat.data, grid, normal)
    drawn = in_storage_order(normal.take(worst(scores, options.min_score, options.per_slide)))
    normalise, stains = stain_normalizer(options.stain_normalisation, slide, pyramid, tissue)
    with atomic_output(store) as partial:
        digest = digest_tree(partial, known=write_pixels(partial, pyramid, drawn, normalise, options, threads))
    spec = pyramid.patch_spec(options.size_px, options.mpp)
    with atomic_output(index) as partial:
        pq.write_table(patch_table(slide, spec, drawn, "hard normal"), partial)
    content = {
        "slide": slide,
        "model_sha256": facts["model_sha256"],
        "size_px": spec.size_px,
        "border_px": options.border_px,
        "mpp": spec.mpp,
        "candidates": dict.fromkeys(CLASSES, 0) | {"normal": len(scores)},
        "drawn": dict.fromkeys(CLASSES, 0) | {"normal": len(drawn.x)},
        "stains": stains,
        "store_sha256": digest,
        "index_sha256": digest_file(index),
    }
    write_receipt(receipt, "negatives", content, options)
    log.info("%s: %d of %d normal patches at %g or above", slide, len(drawn.x), len(scores), options.min_score)


def scores_at(heat: NDArray[np.float32], grid: Grid, candidates: Candidates) -> NDArray[np.float32]:
    """The heatmap's value of each candidate, all of them positions of its grid; not a number where there is none."""
    rows, columns = np.searchsorted(grid.y(), candidates.y), np.searchsorted(grid.x(), candidates.x)
    found: NDArray[np.float32] = heat[rows, columns]
    return found


def worst(scores: NDArray[np.float32], min_score: float, most: int) -> NDArray[np.int64]:
    """Indices, ascending, of at most so many of the highest scores from `min_score` on; the first of equal ones."""
    order = np.argsort(-np.nan_to_num(scores, nan=-1.0), kind="stable")[:most]
    return np.sort(order[scores[order] >= min_score])
