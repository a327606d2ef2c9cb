"""Synthetic slides for the benchmarks: JPEG-tiled pyramidal TIFFs of any size, tissue on part of white glass.

    python benchmarks/slides.py WIDTH HEIGHT OUT.tif [--tile 512]

The picture is synthetic: blurred noise in the colours of H&E with grain, repeated over an ellipse.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyvips
from scipy import ndimage

MPP = 0.25
_TEXTURE_PX = 4096


def write_slide(path: Path, width: int, height: int, tile: int = 512) -> None:
    """Write a slide of about a third tissue; memory does not grow with its size."""
    texture = _texture()
    tissue = pyvips.Image.new_from_memory(texture.tobytes(), _TEXTURE_PX, _TEXTURE_PX, 3, "uchar")
    tissue = tissue.replicate(-(-width // _TEXTURE_PX), -(-height // _TEXTURE_PX)).crop(0, 0, width, height)
    small = 64
    y, x = np.mgrid[:small, :small] / small - 0.5
    inside = ((x / 0.45) ** 2 + (y / 0.35) ** 2 < 1).astype(np.uint8) * 255
    mask = pyvips.Image.new_from_memory(inside.tobytes(), small, small, 1, "uchar")
    mask = mask.resize(width / small, vscale=height / small, kernel="nearest").gravity("centre", width, height)
    glass = (pyvips.Image.black(width, height, bands=3) + 243).cast("uchar")
    picture = mask.ifthenelse(tissue, glass).copy(interpretation="srgb")
    picture.tiffsave(
        str(path),
        compression="jpeg",
        Q=80,
        tile=True,
        tile_width=tile,
        tile_height=tile,
        pyramid=True,
        bigtiff=True,
        xres=1000 / MPP,
        yres=1000 / MPP,
    )


def _texture() -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (_TEXTURE_PX, _TEXTURE_PX)
    nuclei = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), 5, mode="wrap")
    tone = ndimage.gaussian_filter(rng.standard_normal(shape).astype(np.float32), 60, mode="wrap")
    dark = np.clip((nuclei / nuclei.std() - 1) / 1.5, 0, 1)[..., None]
    pink = np.array([228, 165, 200], np.float32) + 14 * (tone / tone.std())[..., None]
    purple = np.array([110, 70, 150], np.float32)
    grain = rng.standard_normal((*shape, 3)).astype(np.float32) * 4
    return np.clip(pink * (1 - dark) + purple * dark + grain, 0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("width", type=int)
    parser.add_argument("height", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tile", type=int, default=512)
    arguments = parser.parse_args()
    write_slide(arguments.out, arguments.width, arguments.height, arguments.tile)


if __name__ == "__main__":
    main()
