"""Small slides: pixels, pyramidal TIFF files and converted pyramids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyvips
from numpy.typing import NDArray

from wsi_pipeline.config import ConvertRun
from wsi_pipeline.stages import convert


def tissue_picture(width: int = 1600, height: int = 1200) -> NDArray[np.uint8]:
    """White glass with a pink rectangle of noisy tissue from (200, 200) to 200 px from the far edges."""
    rng = np.random.default_rng(0)
    rgb = np.full((height, width, 3), 244, np.uint8)
    tissue = rng.normal((200, 120, 180), 12, (height - 400, width - 400, 3))
    rgb[200 : height - 200, 200 : width - 200] = np.clip(tissue, 0, 255)
    return rgb


def write_tiff(path: Path, rgb: NDArray[np.uint8], mpp: float | None = 0.5, compression: str = "jpeg") -> Path:
    """Write a pyramidal tiled TIFF that OpenSlide can open."""
    height, width, _ = rgb.shape
    image = pyvips.Image.new_from_memory(np.ascontiguousarray(rgb).tobytes(), width, height, 3, "uchar")
    scale = {} if mpp is None else {"xres": 1000 / mpp, "yres": 1000 / mpp}
    image.copy(interpretation="srgb").tiffsave(
        str(path), compression=compression, Q=90, tile=True, tile_width=256, tile_height=256, pyramid=True, **scale
    )
    return path


def converted(folder: Path, source: Path, slide: str = "s1", mpp: float | None = None) -> Path:
    """Convert a slide and return the folder that holds pyramid.ome.zarr and pyramid.json."""
    target = folder / slide
    options = ConvertRun(chunk_px=256, shard_px=1024)
    outputs = convert.Outputs(target / "pyramid.ome.zarr", target / "pyramid.json")
    convert.run(slide, convert.Inputs(source), outputs, options, mpp=mpp)
    return target
