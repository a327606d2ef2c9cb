"""Outlines of tissue and truth on a slide, or as pictures to lay over it, at any scale."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage

from wsi_pipeline.geometry import Box
from wsi_pipeline.masks.label_images import IGNORE, NORMAL, TUMOR
from wsi_pipeline.plots.colors import (
    ENCLOSED_COLOR,
    IGNORED_COLOR,
    TISSUE_COLOR,
    TUMOR_COLOR,
    RgbImage,
    blend,
)
from wsi_pipeline.pyramid.ome_zarr import Image
from wsi_pipeline.pyramid.pyramid import Pyramid

QC_PX = 1024
_OUTLINE_PX = 1
# Values of an overlay, and their colours (red, green, blue, opacity).
_CLEAR, _TISSUE, _TUMOR, _INSIDE, _IGNORED = range(5)
_PALETTE = [(0, 0, 0, 0), (*TISSUE_COLOR, 255), (*TUMOR_COLOR, 255), (*ENCLOSED_COLOR, 255), (*IGNORED_COLOR, 140)]

Codes = NDArray[np.uint8]


def tissue_overlay(tissue: Image) -> Image:
    """What `outlines` takes, from the label image of the stage tissue."""
    codes = np.where(tissue.data > 0, _TISSUE, _CLEAR).astype(np.uint8)
    return Image(codes, tissue.mpp, tissue.first_centre_um)


def truth_overlay(truth: Image) -> Image:
    """What `outlines` takes, from the label image of the stage truth; what tumour encloses has a code of its own."""
    tumor = truth.data == TUMOR
    codes = np.where(tumor, _TUMOR, np.where(truth.data == IGNORE, _IGNORED, _CLEAR)).astype(np.uint8)
    codes[_enclosed(tumor) & (truth.data == NORMAL)] = _INSIDE
    return Image(codes, truth.mpp, truth.first_centre_um)


def _enclosed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What `mask` encloses; only where there is any of it is looked at."""
    holes = np.zeros_like(mask)
    for part in ndimage.find_objects(mask.astype(np.uint8)):
        holes[part] = ndimage.binary_fill_holes(mask[part]) & ~mask[part]
    return holes


def outline_png(overlay: Image, box: Box, mpp: float) -> bytes | None:
    """PNG of the outlines in `box`, in pixels of a virtual image at `mpp`; None where there are none."""
    painted = _painted(overlay, box, mpp)
    return _png(painted) if painted.any() else None


def draw_outlines(pyramid: Pyramid, overlay: Image, longest_px: int = QC_PX) -> tuple[RgbImage, float]:
    """The slide with its outlines, and the picture's scale in um per pixel.

    Tissue is blue; or tumour red, normal tissue inside it green, and what is ignored greyed.
    """
    picture, mpp = pyramid.thumbnail(longest_px)
    painted = _painted(overlay, Box(0, 0, picture.shape[1], picture.shape[0]), mpp)
    colors = np.array(_PALETTE, np.uint8)[painted]
    return blend(picture, colors[..., :3], (colors[..., 3] / np.float32(255)).astype(np.float32)), mpp


def _at(mask: Image, box: Box, mpp: float) -> Codes:
    """The mask at the pixels of a box of a level: the nearest, or where they are larger the highest of those there."""
    # Nothing small may vanish in coarse levels: tumour before what is inside it, that before what is ignored.
    rows = _starts(box.y, box.height, mpp / mask.mpp, mask.data.shape[0])
    columns = _starts(box.x, box.width, mpp / mask.mpp, mask.data.shape[1])
    if mpp <= mask.mpp:
        return mask.data[rows[:-1, None], columns[None, :-1]]
    part = mask.data[rows[0] : max(rows[-1], rows[0] + 1), columns[0] : max(columns[-1], columns[0] + 1)]
    found = np.full((box.height, box.width), _CLEAR, np.uint8)
    for code in (_IGNORED, _INSIDE, _TUMOR, _TISSUE):
        if (part == code).any():
            found[_any(_any(part == code, rows - rows[0], 0), columns - columns[0], 1)] = code
    return found


def _starts(start: int, count: int, ratio: float, length: int) -> NDArray[np.int64]:
    """Where in a mask the pixels of a box begin, and where the last one ends."""
    edges = np.arange(start, start + count + 1)
    middle = 0.5 if ratio <= 1 else 0.0
    found: NDArray[np.int64] = np.clip(((edges + middle) * ratio).astype(np.int64), 0, length - (ratio <= 1))
    return found


def _any(values: NDArray[np.bool_], edges: NDArray[np.int64], axis: int) -> NDArray[np.bool_]:
    """Whether any value from an edge up to the next is set; nothing is where there are none."""
    starts = np.minimum(edges[:-1], values.shape[axis] - 1)
    found: NDArray[np.bool_] = np.logical_or.reduceat(values, starts, axis=axis)
    empty = np.flatnonzero(edges[:-1] == edges[1:])
    if axis == 0:
        found[empty] = False
    else:
        found[:, empty] = False
    return found


def _painted(overlay: Image, box: Box, mpp: float) -> Codes:
    # As far beyond the box as a line reaches into it.
    edge = _OUTLINE_PX + 1
    codes = _at(overlay, Box(box.x - edge, box.y - edge, box.width + 2 * edge, box.height + 2 * edge), mpp)
    painted = np.where(codes == _IGNORED, _IGNORED, _CLEAR).astype(np.uint8)
    for code in (_TISSUE, _TUMOR, _INSIDE):
        mask = codes == code
        if mask.any():
            border = mask & ~ndimage.binary_erosion(mask, border_value=1)
            painted[ndimage.binary_dilation(border, iterations=_OUTLINE_PX)] = code
    return painted[edge:-edge, edge:-edge]


def _png(painted: Codes) -> bytes:
    picture = Pillow.fromarray(painted)
    picture.putpalette([value for color in _PALETTE for value in color[:3]])
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", transparency=bytes(color[3] for color in _PALETTE), compress_level=1)
    return buffer.getvalue()
