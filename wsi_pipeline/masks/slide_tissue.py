"""The tissue mask of a whole slide, block by block.

The slide is reduced to one grey or saturation value a pixel with dask. The threshold comes from the histogram of the
whole slide, and closing, filling and removal of small pieces act on the whole mask, so the result depends neither on
the blocks nor on the number of threads.
"""

from __future__ import annotations

import math
from typing import Any

import dask
import dask.array as da
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.config import TissueOptions
from wsi_pipeline.geometry import Box
from wsi_pipeline.masks.tissue_detection import segment_tissue, tissue_features
from wsi_pipeline.progress_bar import ProgressBar
from wsi_pipeline.pyramid.pyramid import Pyramid

# Large, as each block costs dask some time; smaller where there would be too few for all threads.
_BLOCK_PX, _SMALL_BLOCK_PX = 1024, 512
_FEW_PIXELS = 4 * _BLOCK_PX**2


def find_tissue(
    pyramid: Pyramid, options: TissueOptions, threads: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], float]:
    """Tissue and pen ink (h, w) bool of the whole slide at `options.mpp`, and the threshold."""
    size = pyramid.size_at(options.mpp)
    block_px = _SMALL_BLOCK_PX if size.width * size.height <= _FEW_PIXELS else _BLOCK_PX
    feature, ink = read_features(pyramid, options, threads, block_px)
    mask, threshold = segment_tissue(feature, ink, options)
    return mask, ink, threshold


def read_features(
    pyramid: Pyramid, options: TissueOptions, threads: int, block_px: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Saturation or grey (h, w) uint8 and pen ink (h, w) bool of the whole slide at `options.mpp`."""
    size = pyramid.size_at(options.mpp)
    chunks = da.core.normalize_chunks((2, block_px, block_px), (2, size.height, size.width))
    shown = ProgressBar("tissue", math.prod(map(len, chunks)))

    def block(block_info: Any) -> NDArray[np.uint8]:
        _, (top, bottom), (left, right) = block_info[None]["array-location"]
        box = Box(left, top, right - left, bottom - top)
        found: NDArray[np.uint8] = np.stack(tissue_features(pyramid.read_scaled(box, options.mpp), options))
        shown.advance()
        return found

    blocks = da.map_blocks(block, name="tissue", chunks=chunks, meta=np.empty((0, 0, 0), np.uint8))
    with shown, dask.config.set(scheduler="threads", num_workers=threads):
        feature, ink = blocks.compute()
    return feature, ink.astype(bool)
