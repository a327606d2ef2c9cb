"""Tiles of a slide and outlines of its masks, in formats that browsers display."""

from __future__ import annotations

import threading
from pathlib import Path

import imagecodecs
import numpy as np

from wsi_pipeline.geometry import Box
from wsi_pipeline.io.layout import ResultNotFoundError
from wsi_pipeline.masks.label_images import LabelOverview
from wsi_pipeline.plots.overlays import outline_png, tissue_overlay, truth_overlay
from wsi_pipeline.pyramid.level import LruCache, level_caches
from wsi_pipeline.pyramid.ome_zarr import Image, open_image
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.slides.jpeg import JpegCodec, to_jpeg_file

# Masks of a slide of 100,000 px have 20 MB each, and none has more than 32 MiB.
_MASK_BYTES = 96 << 20
_OPEN_SLIDES = 256


class TileReader:
    """Reads tiles of any number of slides with bounded memory and a bounded number of open files. Thread-safe."""

    def __init__(self) -> None:
        # No cache of decoded chunks: JPEG streams are sent as stored.
        self._shared = level_caches(0)
        self._slides: LruCache[Pyramid] = LruCache(_OPEN_SLIDES)
        self._overlays: LruCache[Image] = LruCache(_MASK_BYTES, lambda mask: int(mask.data.nbytes))
        self._reading = threading.Lock()

    def pyramid(self, store: Path, version: str) -> Pyramid:
        """A slide's pyramid, from a cache. `version` changes when the store is replaced."""
        return self._slides.get((store, version), lambda: Pyramid(store, shared=self._shared))

    def tile(self, pyramid: Pyramid, level: int, column: int, row: int) -> tuple[str, bytes] | None:
        """Media type and bytes of a chunk; None for background. Raises `ResultNotFoundError` outside the level."""
        box = _box(pyramid, level, column, row)
        codec, stream = pyramid.levels[level].codec, pyramid.levels[level].stream(column, row)
        if stream is None:
            return None
        if isinstance(codec, JpegCodec):
            return "image/jpeg", to_jpeg_file(codec, stream)
        pixels = codec.decode(stream)[: box.height, : box.width]
        return "image/png", bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=1))

    def mask_tile(self, pyramid: Pyramid, store: Path, version: str, level: int, column: int, row: int) -> bytes | None:
        """PNG of the outlines of `tissue.ome.zarr` or `truth.ome.zarr` at a chunk; None without any.

        Raises `ResultNotFoundError` outside the level.
        """
        box = _box(pyramid, level, column, row)
        prepare = truth_overlay if store.name == "truth.ome.zarr" else tissue_overlay
        # Browsers request all tiles of a slide at once: without the lock each request would read the whole mask.
        with self._reading:
            overlay = self._overlays.get((store, version), lambda: prepare(_overview(store, pyramid)))
        return outline_png(overlay, box, pyramid.mpps[level])


def _overview(store: Path, pyramid: Pyramid) -> Image:
    return LabelOverview.of(open_image(store, pyramid.mpp))


def _box(pyramid: Pyramid, level: int, column: int, row: int) -> Box:
    """The chunk's box in pixels of its level, clipped to the slide. Raises `ResultNotFoundError` outside the level."""
    if level >= len(pyramid.levels):
        raise ResultNotFoundError(level)
    grid = pyramid.levels[level].grid
    if column >= grid.columns or row >= grid.rows:
        raise ResultNotFoundError(column, row)
    return grid.box(column, row).clipped(grid.size)
