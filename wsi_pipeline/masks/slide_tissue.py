"""The tissue mask of a whole slide, block by block.

The slide is reduced with dask to one value and an ink code of each pixel, in a scratch store. The threshold comes from
the histogram of the whole slide, and closing, filling and removal of small pieces act across the borders of blocks and
bands, so the result depends neither on them nor on the number of threads.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from wsi_pipeline.config import TissueOptions
from wsi_pipeline.geometry import Box
from wsi_pipeline.masks.label_images import TISSUE_LABELS, StoredLabels, store_labels
from wsi_pipeline.masks.tissue_detection import Threshold, find_threshold, tissue_bands, tissue_features
from wsi_pipeline.morphology import Mask
from wsi_pipeline.progress_bar import ProgressBar
from wsi_pipeline.pyramid.ome_zarr import StoredRows
from wsi_pipeline.pyramid.pyramid import Pyramid

# Large, as each block costs dask some time; smaller where there would be too few for all threads.
_BLOCK_PX, _SMALL_BLOCK_PX = 1024, 512
_FEW_PIXELS = 4 * _BLOCK_PX**2


@dataclass(frozen=True, slots=True)
class SlideTissue:
    """The tissue of a slide: the threshold, the number of pixels of ink, and the features in a scratch store.

    `value` is `Features.value` of each pixel, `ink` its ink code, (h, w) uint8.
    """

    options: TissueOptions
    threshold: Threshold
    ink_pixels: int
    value: StoredRows
    ink: StoredRows

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.value.shape
        return height, width

    def bands(self) -> Iterator[Mask]:
        """The bands of the cleaned mask (h, w)."""
        return tissue_bands(self.value, self.ink, self.threshold.value, self.options)


def find_tissue(pyramid: Pyramid, options: TissueOptions, threads: int, scratch: Path) -> SlideTissue:
    """Find the tissue of the whole slide at `options.mpp`.

    The folder `scratch`, which the caller removes, takes up to two bytes a pixel.
    """
    size = pyramid.size_at(options.mpp)
    block_px = _SMALL_BLOCK_PX if size.width * size.height <= _FEW_PIXELS else _BLOCK_PX
    value, ink, histogram = store_features(pyramid, options, threads, block_px, scratch)
    threshold = find_threshold(histogram, options, has_canvas=pyramid.bounds is not None)
    return SlideTissue(options, threshold, size.width * size.height - int(histogram.sum()), value, ink)


def store_tissue(path: Path, tissue: SlideTissue, slide_mpp: float) -> tuple[StoredLabels, str]:
    """Write the mask; returns what was stored and the SHA-256 of its bits. `slide_mpp` is the scale of level 0."""
    digest = hashlib.sha256()

    def masks() -> Iterator[NDArray[np.uint8]]:
        # The bits of all rows in turn: bands of a multiple of eight rows end with a whole byte.
        for band in tissue.bands():
            digest.update(np.packbits(band).data)
            yield band.view(np.uint8)

    labels, mpp = TISSUE_LABELS, tissue.options.mpp
    stored = store_labels(path, masks(), tissue.shape, mpp, name="tissue", slide_mpp=slide_mpp, labels=labels)
    return stored, digest.hexdigest()


def store_features(
    pyramid: Pyramid, options: TissueOptions, threads: int, block_px: int, scratch: Path
) -> tuple[StoredRows, StoredRows, NDArray[np.int64]]:
    """Write value and ink of each pixel of the slide, (h, w); returns them and their `Features.histogram`."""
    size = pyramid.size_at(options.mpp)
    chunks = da.core.normalize_chunks((2, block_px, block_px), (2, size.height, size.width))
    shown = ProgressBar("tissue", math.prod(map(len, chunks)))
    histogram, lock = np.zeros((256, 256), np.int64), threading.Lock()

    def block(block_info: Any) -> NDArray[np.uint8]:
        _, (top, bottom), (left, right) = block_info[None]["array-location"]
        box = Box(left, top, right - left, bottom - top)
        found = tissue_features(pyramid.read_scaled(box, options.mpp), options)
        counts = found.histogram()
        with lock:
            np.add(histogram, counts, out=histogram)
        shown.advance()
        return np.stack((found.value(options), found.ink))

    group = zarr.create_group(scratch)
    value, ink = (
        group.create_array(
            name,
            shape=(size.height, size.width),
            chunks=(min(block_px, size.height), min(block_px, size.width)),
            dtype=np.uint8,
            compressors=BloscCodec(cname="lz4", clevel=1, typesize=1),
        )
        for name in ("value", "ink")
    )
    blocks = da.map_blocks(block, name="tissue", chunks=chunks, meta=np.empty((0, 0, 0), np.uint8))
    targets: list[Any] = [value, ink]
    with shown, dask.config.set(scheduler="threads", num_workers=threads):
        # Without a lock: each block is a chunk of its own.
        da.store([blocks[0], blocks[1]], targets, lock=False)
    return StoredRows(scratch, value), StoredRows(scratch, ink), histogram
