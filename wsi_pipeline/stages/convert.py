"""Stage convert: a slide becomes a sharded OME-Zarr pyramid with every level of the source.

A level that is a grid of JPEG tiles is copied: its chunks are the tiles' own streams, never decoded.
A seeded sample of them is compared with OpenSlide's pixels. Other levels are read through OpenSlide
and compressed without loss. Coarser levels are added by halving until the coarsest one is small.
Shards are written one by one in a few threads, so memory is bounded by the shards in flight.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from wsi_pipeline.config import PyramidOptions
from wsi_pipeline.files import digest_file, digest_tree, publish
from wsi_pipeline.geometry import Box, Size, tiles
from wsi_pipeline.passthrough import copy_level
from wsi_pipeline.pyramid import BACKGROUND
from wsi_pipeline.receipts import Facts, write_receipt
from wsi_pipeline.slides import SlideFacts, SourceSlide
from wsi_pipeline.store import compressor, pyramid_attributes
from wsi_pipeline.tiff import TiledTiff

log = logging.getLogger(__name__)

COARSEST_PX = 1024
_READ_PX = 1024

ReadRegion = Callable[[Box], NDArray[np.uint8]]


def run(
    slide: str,
    source: Path,
    store: Path,
    receipt: Path,
    options: PyramidOptions,
    mpp: float | None = None,
    threads: int = 1,
) -> None:
    """Convert one slide. `mpp` overrides the slide's own scale. Raises `SlideError`."""
    opened = SourceSlide(slide, source, mpp)
    try:
        facts = opened.facts
        sizes = [*facts.levels, *_added_levels(facts.levels[-1])]
        scales = _scales(facts, len(sizes))
        levels: list[Facts] = []
        with ThreadPoolExecutor(1) as hashing, TiledTiff(source) as tiff, publish(store) as partial:
            source_digest = hashing.submit(digest_file, source)
            group = zarr.create_group(partial, attributes=pyramid_attributes(slide, scales))
            for level, size in enumerate(sizes):
                jpeg = tiff.level(size) if options.passthrough and level < len(facts.levels) else None
                if jpeg is not None:
                    copied = copy_level(opened, tiff, jpeg, level, partial / str(level), options.shard_px, threads)
                    levels.append({"method": "copied", **copied})
                    continue
                array = _create_level(group, level, size, options)
                own = level < len(facts.levels)
                read = _from_slide(opened, level) if own else _from_finer(group, level)
                _fill(array, size, options, read, threads)
                levels.append({"method": "read" if own else "halved"})
            digest = digest_tree(partial, threads)
    finally:
        opened.close()
    write_receipt(
        receipt,
        "convert",
        {
            "slide": slide,
            "source_sha256": source_digest.result(),
            "vendor": facts.vendor,
            "objective_power": facts.objective_power,
            "background": list(facts.background),
            "mpp": facts.mpp,
            "mpp_source": facts.mpp_source,
            "levels": [
                {"width": size.width, "height": size.height, **how} for size, how in zip(sizes, levels, strict=True)
            ],
            "store_sha256": digest,
        },
        options,
    )
    log.info(
        "%s: %d x %d px at %.4g um per pixel, %d levels, %d of them copied (%s)",
        slide, sizes[0].width, sizes[0].height, facts.mpp, len(sizes),
        sum(how["method"] == "copied" for how in levels), facts.vendor,
    )  # fmt: skip


def _added_levels(coarsest: Size) -> list[Size]:
    added = []
    while max(coarsest.width, coarsest.height) > COARSEST_PX:
        coarsest = Size((coarsest.width + 1) // 2, (coarsest.height + 1) // 2)
        added.append(coarsest)
    return added


def _scales(facts: SlideFacts, levels: int) -> list[tuple[float, float]]:
    base = facts.levels[0]
    scales = [(facts.mpp * base.height / size.height, facts.mpp * base.width / size.width) for size in facts.levels]
    while len(scales) < levels:
        scales.append((2 * scales[-1][0], 2 * scales[-1][1]))
    return scales


def _create_level(group: zarr.Group, level: int, size: Size, options: PyramidOptions) -> zarr.Array[Any]:
    return group.create_array(
        str(level),
        shape=(3, size.height, size.width),
        chunks=(3, options.chunk_px, options.chunk_px),
        shards=(3, options.shard_px, options.shard_px),
        dtype="uint8",
        compressors=compressor(options.zstd_level),
        fill_value=BACKGROUND,
        dimension_names=["c", "y", "x"],
    )


def _fill(array: zarr.Array[Any], size: Size, options: PyramidOptions, read: ReadRegion, threads: int) -> None:
    def write(shard: Box) -> None:
        array[:, shard.y : shard.bottom, shard.x : shard.right] = read(shard).transpose(2, 0, 1)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(write, tiles(size, options.shard_px)):
            pass


def _from_slide(source: SourceSlide, level: int) -> ReadRegion:
    def read(shard: Box) -> NDArray[np.uint8]:
        out = np.empty((shard.height, shard.width, 3), np.uint8)
        for part in tiles(Size(shard.width, shard.height), _READ_PX):
            box = Box(shard.x + part.x, shard.y + part.y, part.width, part.height)
            out[part.y : part.bottom, part.x : part.right] = source.read(box, level)
        return out

    return read


def _from_finer(group: zarr.Group, level: int) -> ReadRegion:
    finer: Any = group[str(level - 1)]
    _, height, width = finer.shape

    def read(shard: Box) -> NDArray[np.uint8]:
        out = np.empty((shard.height, shard.width, 3), np.uint8)
        for part in tiles(Size(shard.width, shard.height), _READ_PX):
            y, x = 2 * (shard.y + part.y), 2 * (shard.x + part.x)
            pixels = finer[:, y : min(y + 2 * part.height, height), x : min(x + 2 * part.width, width)]
            halved = halve(np.asarray(pixels).transpose(1, 2, 0))
            out[part.y : part.bottom, part.x : part.right] = halved
        return out

    return read


def halve(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w, c) uint8 at half size: mean of 2 x 2, the last row and column repeated where odd."""
    odd = [(0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)]
    even = np.pad(pixels, odd, mode="edge").astype(np.uint16)
    total = even[0::2, 0::2] + even[1::2, 0::2] + even[0::2, 1::2] + even[1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)
