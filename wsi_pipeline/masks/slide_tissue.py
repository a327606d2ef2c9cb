"""The tissue mask of a whole slide, block by block.

The slide is reduced to one grey or saturation value a pixel with dask. The threshold comes from the histogram of the
whole slide, and closing, filling and removal of small pieces act on the whole mask, so the result depends neither on
the blocks nor on the number of threads.
"""

from __future__ import annotations

import dask
import dask.array as da
import numpy as np
from dask.delayed import delayed
from numpy.typing import NDArray

from wsi_pipeline.config import TissueOptions
from wsi_pipeline.geometry import Box, Size
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
    lefts, tops = range(0, size.width, block_px), range(0, size.height, block_px)
    shown = ProgressBar("tissue", len(lefts) * len(tops))

    def block(box: Box) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = np.stack(tissue_features(pyramid.read_scaled(box, options.mpp), options))
        shown.advance()
        return found

    rows = [
        da.concatenate([_lazy(block, Box(x, y, *_extent(x, y, size, block_px))) for x in lefts], axis=2) for y in tops
    ]
    with shown, dask.config.set(scheduler="threads", num_workers=threads):
        feature, ink = da.concatenate(rows, axis=1).compute()
    return feature, ink.astype(bool)


def _extent(x: int, y: int, size: Size, block_px: int) -> tuple[int, int]:
    return min(block_px, size.width - x), min(block_px, size.height - y)


def _lazy(block: object, box: Box) -> da.Array:
    lazy: da.Array = da.from_delayed(delayed(block)(box), shape=(2, box.height, box.width), dtype=np.uint8)
    return lazy
