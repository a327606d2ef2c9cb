"""Outlines of the tissue mask and the truth image at any scale: on a thumbnail, or as transparent PNG tiles."""

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
# Codes of an overlay; they index _PALETTE (red, green, blue, opacity).
_CLEAR, _TISSUE, _TUMOR, _ENCLOSED, _IGNORED = range(5)
_PALETTE = [(0, 0, 0, 0), (*TISSUE_COLOR, 255), (*TUMOR_COLOR, 255), (*ENCLOSED_COLOR, 255), (*IGNORED_COLOR, 140)]

Codes = NDArray[np.uint8]


def tissue_overlay(tissue: Image) -> Image:
    """Overlay codes, for `outline_png` and `draw_outlines`, of a tissue mask."""
    codes = np.where(tissue.data > 0, _TISSUE, _CLEAR).astype(np.uint8)
    return Image(codes, tissue.mpp, tissue.first_centre_um)


def truth_overlay(truth: Image) -> Image:
    """Overlay codes, for `outline_png` and `draw_outlines`, of a truth image: tumour, enclosed normal, ignored."""
    tumor = truth.data == TUMOR
    codes = np.where(tumor, _TUMOR, np.where(truth.data >= IGNORE, _IGNORED, _CLEAR)).astype(np.uint8)
    codes[_enclosed(tumor) & (truth.data == NORMAL)] = _ENCLOSED
    return Image(codes, truth.mpp, truth.first_centre_um)


def _enclosed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Holes of `mask`."""
    holes = np.zeros_like(mask)
    # Within the bounding box only: filling the whole image takes longer, and tumour is mostly a small part of it.
    for part in ndimage.find_objects(mask.astype(np.uint8)):
        holes[part] = ndimage.binary_fill_holes(mask[part]) & ~mask[part]
    return holes


def outline_png(overlay: Image, box: Box, mpp: float) -> bytes | None:
    """Transparent PNG of the outlines in `box`, in pixels of an image of the slide at `mpp`; None without any.

    Outlines of neighbouring boxes join: those of the union are the same pixels.
    """
    codes = _outline_codes(overlay, box, mpp)
    return _png(codes) if codes.any() else None


def draw_outlines(pyramid: Pyramid, overlay: Image, longest_px: int = QC_PX) -> tuple[RgbImage, float]:
    """Thumbnail of the slide with outlines, and its scale in um per pixel."""
    picture, mpp = pyramid.thumbnail(longest_px)
    return outlines_over(picture, mpp, overlay), mpp


def outlines_over(picture: RgbImage, mpp: float, overlay: Image) -> RgbImage:
    """A picture of the whole slide at `mpp`, with outlines.

    Outlines of tissue are blue, of tumour red, of normal tissue enclosed by tumour green; ignored areas are filled
    grey.
    """
    codes = _outline_codes(overlay, Box(0, 0, picture.shape[1], picture.shape[0]), mpp)
    colors = np.array(_PALETTE, np.uint8)[codes]
    return blend(picture, colors[..., :3], (colors[..., 3] / np.float32(255)).astype(np.float32))


def _resample(overlay: Image, box: Box, mpp: float) -> Codes:
    """The overlay at the pixels of `box`: nearest neighbour to a finer scale, else the code of highest priority.

    Nearest neighbour to a coarser scale would lose small areas. Priority: tumour, enclosed, ignored.
    """
    rows = _pixel_edges(box.y, box.height, mpp / overlay.mpp, overlay.data.shape[0])
    columns = _pixel_edges(box.x, box.width, mpp / overlay.mpp, overlay.data.shape[1])
    if mpp <= overlay.mpp:
        return overlay.data[rows[:-1, None], columns[None, :-1]]
    part = overlay.data[rows[0] : max(rows[-1], rows[0] + 1), columns[0] : max(columns[-1], columns[0] + 1)]
    codes = np.full((box.height, box.width), _CLEAR, np.uint8)
    for code in (_IGNORED, _ENCLOSED, _TUMOR, _TISSUE):
        if (part == code).any():
            codes[_any_between(_any_between(part == code, rows - rows[0], 0), columns - columns[0], 1)] = code
    return codes


def _pixel_edges(start: int, count: int, ratio: float, length: int) -> NDArray[np.int64]:
    """Overlay indices of `count` pixels from `start` and of the one after them, (count + 1,), within `length`.

    `ratio` is overlay pixels per pixel. Up to 1 each index is that of the pixel's centre, above 1 that of its edge.
    """
    edges = np.arange(start, start + count + 1)
    offset = 0.5 if ratio <= 1 else 0.0
    return np.clip(((edges + offset) * ratio).astype(np.int64), 0, length - (ratio <= 1))


def _any_between(values: NDArray[np.bool_], edges: NDArray[np.int64], axis: int) -> NDArray[np.bool_]:
    """Logical or of `values` from each edge up to the next along `axis`; False where the two are equal."""
    starts = np.minimum(edges[:-1], values.shape[axis] - 1)
    result: NDArray[np.bool_] = np.logical_or.reduceat(values, starts, axis=axis)
    # reduceat gives the value at the start for an empty range.
    empty = np.flatnonzero(edges[:-1] == edges[1:])
    if axis == 0:
        result[empty] = False
    else:
        result[:, empty] = False
    return result


def _outline_codes(overlay: Image, box: Box, mpp: float) -> Codes:
    # With a margin: a line whose area lies beyond the box reaches into it.
    margin = _OUTLINE_PX + 1
    size = box.width + 2 * margin, box.height + 2 * margin
    codes = _resample(overlay, Box(box.x - margin, box.y - margin, *size), mpp)
    drawn = np.where(codes == _IGNORED, _IGNORED, _CLEAR).astype(np.uint8)
    for code in (_TISSUE, _TUMOR, _ENCLOSED):
        mask = codes == code
        if mask.any():
            border = mask & ~ndimage.binary_erosion(mask, border_value=1)
            drawn[ndimage.binary_dilation(border, iterations=_OUTLINE_PX)] = code
    return drawn[margin:-margin, margin:-margin]


def _png(codes: Codes) -> bytes:
    picture = Pillow.fromarray(codes)
    picture.putpalette([value for color in _PALETTE for value in color[:3]])
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", transparency=bytes(color[3] for color in _PALETTE), compress_level=1)
    return buffer.getvalue()
