"""The TIFF page of a level that OpenSlide would interpolate.

OpenSlide takes the corner of a region in whole level-0 pixels and divides it by one downsample factor for both axes.
Where that is not an integer, it interpolates between the pixels of the level, which are then read from their page.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from wsi_pipeline.geometry import Box, Size
from wsi_pipeline.seeds import generator
from wsi_pipeline.slides.page_reader import PageReader
from wsi_pipeline.slides.tiff_pages import Page

_PROBES = 16
_PROBE_PX = 128
# OpenSlide interpolates with 7-bit weights along each axis, and rounds.
_INTERPOLATION_TOLERANCE = 3


def page_of_level(path: Path, level: int, pages: list[Page]) -> PageReader | None:
    """The page that has the size and the content of a level of the slide; None where no page or more than one has."""
    # An OpenSlide handle fails in every call after its first error, so the caller's is not used.
    with closing(openslide.OpenSlide(path)) as handle:
        size = Size(*handle.level_dimensions[level])
        readers = [PageReader(path, page) for page in pages if page.size == size and page.problem is None]
        found = [reader for reader in readers if _has_pixels_of(handle, level, reader)]
    return found[0] if len(found) == 1 else None


def _has_pixels_of(handle: openslide.OpenSlide, level: int, reader: PageReader) -> bool:
    try:
        return all(_matches(handle, level, reader, box) for box in _probes(reader))
    except (openslide.OpenSlideError, OSError, ValueError):
        return False


def _probes(reader: PageReader) -> Iterator[Box]:
    """The corners of the page, up to one pixel from its edges, and places all over it."""
    width, height = (min(_PROBE_PX, length - 2) for length in (reader.size.width, reader.size.height))
    if min(width, height) < 1:
        return
    right, bottom = reader.size.width - width, reader.size.height - height
    yield from (Box(x, y, width, height) for y in {1, bottom - 1} for x in {1, right - 1})
    rng = generator(0, "pairing", reader.page.index)
    for x, y in zip(rng.integers(1, right, _PROBES), rng.integers(1, bottom, _PROBES), strict=True):
        yield Box(int(x), int(y), width, height)


def _matches(handle: openslide.OpenSlide, level: int, reader: PageReader, box: Box) -> bool:
    """Whether the page's pixels, interpolated as OpenSlide does, are those that OpenSlide reads, where it has any."""
    downsample = handle.level_downsamples[level]
    corner = round(box.x * downsample), round(box.y * downsample)
    region = np.asarray(handle.read_region(corner, level, (box.width, box.height)))
    pixels = reader.read(Box(box.x - 1, box.y - 1, box.width + 2, box.height + 2)).astype(np.float32)
    shifted = _shifted(_shifted(pixels, corner[1] / downsample - box.y, 0), corner[0] / downsample - box.x, 1)
    difference = np.abs(shifted - region[..., :3])[region[..., 3] == 255]
    return not difference.size or bool(difference.max() <= _INTERPOLATION_TOLERANCE)


def _shifted(pixels: NDArray[np.float32], by: float, axis: int) -> NDArray[np.float32]:
    """Linear interpolation at a shift of `by` (-1 to 1) pixels along an axis; the first and last pixel are cut off."""
    steps = (1, 2 if by > 0 else 0)
    inner, neighbour = (pixels.take(range(k, pixels.shape[axis] - 2 + k), axis) for k in steps)
    return inner + np.float32(abs(by)) * (neighbour - inner)
