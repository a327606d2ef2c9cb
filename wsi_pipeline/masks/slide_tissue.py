"""The tissue mask of a whole slide, block by block.

The slide is reduced to grey value and saturation of each pixel with dask. The threshold comes from the histogram of the
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
from wsi_pipeline.masks.tissue_detection import NO_INK, Features, Threshold, segment_tissue, tissue_features
from wsi_pipeline.progress_bar import ProgressBar
from wsi_pipeline.pyramid.pyramid import Pyramid

# Large, as each block costs dask some time; smaller where there would be too few for all threads.
_BLOCK_PX, _SMALL_BLOCK_PX = 1024, 512
_FEW_PIXELS = 4 * _BLOCK_PX**2


def find_tissue(
    pyramid: Pyramid, options: TissueOptions, threads: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Threshold]:
    """Tissue and pen ink (h, w) bool of the whole slide at `options.mpp`, and the threshold."""
    size = pyramid.size_at(options.mpp)
    block_px = _SMALL_BLOCK_PX if size.width * size.height <= _FEW_PIXELS else _BLOCK_PX
    features = read_features(pyramid, options, threads, block_px)
    mask, threshold = segment_tissue(features, options, has_canvas=pyramid.bounds is not None)
    return mask, features.ink != NO_INK, threshold


def read_features(pyramid: Pyramid, options: TissueOptions, threads: int, block_px: int) -> Features:
    """The features of the whole slide at `options.mpp`."""
    size = pyramid.size_at(options.mpp)
    chunks = da.core.normalize_chunks((3, block_px, block_px), (3, size.height, size.width))
    shown = ProgressBar("tissue", math.prod(map(len, chunks)))

    def block(block_info: Any) -> NDArray[np.uint8]:
        _, (top, bottom), (left, right) = block_info[None]["array-location"]
        box = Box(left, top, right - left, bottom - top)
        found = tissue_features(pyramid.read_scaled(box, options.mpp), options)
        shown.advance()
        return np.stack((found.gray, found.saturation, found.ink))

    blocks = da.map_blocks(block, name="tissue", chunks=chunks, meta=np.empty((0, 0, 0), np.uint8))
    with shown, dask.config.set(scheduler="threads", num_workers=threads):
        gray, saturation, ink = blocks.compute()
    return Features(gray, saturation, ink)
