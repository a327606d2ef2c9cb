"""Pictures of slides with outlines and overlays, as (h, w, 3) uint8 arrays."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage

from wsi_pipeline.files import publish
from wsi_pipeline.masks import NORMAL, TUMOR
from wsi_pipeline.pyramid import Pyramid

Picture = NDArray[np.uint8]
Alpha = NDArray[np.float32]
T = TypeVar("T", bound=np.generic)

QC_PX = 1024
TISSUE_COLOR = (0, 114, 178)
TUMOR_COLOR = (230, 25, 25)
NORMAL_INSIDE_COLOR = (0, 158, 60)
HEAT_COLORS = "viridis"
# The example's colours of false positives, false negatives and true positives.
CONFUSION_COLORS = {1: (0, 255, 255), 2: (255, 255, 0), 3: (255, 0, 0)}


def save_picture(path: Path, picture: Picture) -> None:
    """Write a PNG atomically."""
    with publish(path) as partial:
        Pillow.fromarray(picture).save(partial, format="PNG", compress_level=3)


def on_picture(mask: NDArray[T], mask_mpp: float, picture: Picture, mpp: float) -> NDArray[T]:
    """`mask` at the pixels of a picture of scale `mpp`, by the nearest mask pixel."""
    rows = np.clip(((np.arange(picture.shape[0]) + 0.5) * mpp / mask_mpp).astype(int), 0, mask.shape[0] - 1)
    columns = np.clip(((np.arange(picture.shape[1]) + 0.5) * mpp / mask_mpp).astype(int), 0, mask.shape[1] - 1)
    picked: NDArray[T] = mask[rows[:, None], columns[None, :]]
    return picked


def draw_outline(picture: Picture, mask: NDArray[np.bool_], color: tuple[int, int, int], width_px: int = 3) -> None:
    """Draw the border of `mask` (of the picture's size) into the picture."""
    if not mask.any():
        return
    padded = np.pad(mask, 1)
    inside = ndimage.binary_erosion(padded)[1:-1, 1:-1]
    border = mask & ~inside
    picture[ndimage.binary_dilation(border, iterations=width_px // 2)] = color


def mask_outline(pyramid: Pyramid, mask: NDArray[np.bool_], mask_mpp: float) -> Picture:
    """The slide with the outline of its tissue."""
    picture, mpp = pyramid.thumbnail(QC_PX)
    draw_outline(picture, on_picture(mask, mask_mpp, picture, mpp).astype(bool), TISSUE_COLOR)
    return picture


def truth_outline(pyramid: Pyramid, truth: NDArray[np.uint8], truth_mpp: float, longest_px: int = QC_PX) -> Picture:
    """The slide with tumour outlined in red, normal tissue inside tumour in green and ignored parts greyed."""
    picture, mpp = pyramid.thumbnail(longest_px)
    here = on_picture(truth, truth_mpp, picture, mpp)
    ignored = here > TUMOR
    picture[ignored] = (picture[ignored].astype(np.uint16) + 128) // 2
    tumor = here == TUMOR
    draw_outline(picture, tumor, TUMOR_COLOR)
    inside = (here == NORMAL) & ndimage.binary_fill_holes(tumor)
    draw_outline(picture, inside, NORMAL_INSIDE_COLOR)
    return picture


def blend(picture: Picture, color: Picture, alpha: Alpha) -> Picture:
    """`color` over the picture with opacity `alpha` (h, w), 0 to 1."""
    mixed = picture * (1 - alpha[..., None]) + color * alpha[..., None]
    return (mixed + 0.5).astype(np.uint8)


def heat_palette() -> NDArray[np.uint8]:
    """Colours of the probabilities k / 255, (256, 3), which colour-blind readers tell apart."""
    return (mpl.colormaps[HEAT_COLORS](np.arange(256))[:, :3] * 255 + 0.5).astype(np.uint8)


def color_heat(heat: NDArray[np.float32], opacity: float = 0.6) -> tuple[Picture, Alpha]:
    """Colours and opacity of probabilities: fainter where they are low, clear where there is none."""
    known = np.isfinite(heat)
    index = (np.nan_to_num(heat) * 255 + 0.5).astype(np.uint8)
    return heat_palette()[index], np.where(known, opacity * (0.2 + 0.8 * np.nan_to_num(heat)), 0).astype(np.float32)


def paint_labels(codes: NDArray[np.uint8], opacity: float = 0.5) -> tuple[Picture, Alpha]:
    """Colours and opacity of confusion codes: FP cyan, FN yellow, TP red, the rest clear."""
    color = np.zeros((*codes.shape, 3), np.uint8)
    alpha = np.zeros(codes.shape, np.float32)
    for code, rgb in CONFUSION_COLORS.items():
        color[codes == code] = rgb
        alpha[codes == code] = opacity
    return color, alpha
