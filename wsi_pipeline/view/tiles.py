"""Tiles of a slide and of its masks, as a browser takes them."""

from __future__ import annotations

import threading
from pathlib import Path

import imagecodecs
import numpy as np

from wsi_pipeline.geometry import Box
from wsi_pipeline.io.layout import ResultNotFoundError
from wsi_pipeline.plots.overlays import outline_png, tissue_overlay, truth_overlay
from wsi_pipeline.pyramid.level import LruCache, level_caches
from wsi_pipeline.pyramid.ome_zarr import Image, read_image
from wsi_pipeline.pyramid.pyramid import Pyramid
from wsi_pipeline.slides.jpeg import JpegCodec, to_jpeg_file

# Masks of a slide of 100,000 px have 20 MB each.
_MASK_BYTES = 96 << 20
_OPEN_SLIDES = 256


class TileReader:
    """Tiles of any number of slides, from bounded memory and a bounded number of open files; safe between threads."""

    def __init__(self) -> None:
        # Streams are sent as they are: no decoded chunk is kept.
        self._shared = level_caches(0)
        self._slides: LruCache[Pyramid] = LruCache(_OPEN_SLIDES)
        self._overlays: LruCache[Image] = LruCache(_MASK_BYTES, lambda mask: int(mask.data.nbytes))
        self._reading = threading.Lock()

    def pyramid(self, store: Path, version: str) -> Pyramid:
        """A slide's pyramid; `version` tells one from another that replaced it."""
        return self._slides.get((store, version), lambda: Pyramid(store, shared=self._shared))

    def tile(self, pyramid: Pyramid, level: int, column: int, row: int) -> tuple[str, bytes] | None:
        """Media type and bytes of a chunk; None for background. Raises `ResultNotFoundError` outside the level."""
        found = _box(pyramid, level, column, row)
        here = pyramid.levels[level]
        stream = here.stream(column, row)
        if stream is None:
            return None
        if isinstance(here.codec, JpegCodec):
            return "image/jpeg", to_jpeg_file(here.codec, stream)
        pixels = here.codec.decode(stream)[: found.height, : found.width]
        return "image/png", bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=1))

    def mask_tile(self, pyramid: Pyramid, store: Path, version: str, level: int, column: int, row: int) -> bytes | None:
        """Outlines of the mask `tissue.ome.zarr` or `truth.ome.zarr` at a chunk, as PNG; None where there is nothing.

        `ResultNotFoundError` where there is no such chunk.
        """
        box = _box(pyramid, level, column, row)
        prepare = truth_overlay if store.name == "truth.ome.zarr" else tissue_overlay
        # One at a time, as all tiles of a slide are asked for at once.
        with self._reading:
            overlay = self._overlays.get((store, version), lambda: prepare(read_image(store, pyramid.mpp)))
        return outline_png(overlay, box, pyramid.mpps[level])


def _box(pyramid: Pyramid, level: int, column: int, row: int) -> Box:
    """The chunk's pixels inside the slide; `ResultNotFoundError` where there are none."""
    if level >= len(pyramid.levels):
        raise ResultNotFoundError(level)
    grid = pyramid.levels[level].grid
    if column >= grid.columns or row >= grid.rows:
        raise ResultNotFoundError(column, row)
    return grid.box(column, row).clipped(grid.size)
