"""Colours and opacities of the layers that are blended over thumbnails of slides."""

from __future__ import annotations

from typing import TypeVar

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.evaluation.confusion import CONFUSION_LABELS

# (h, w, 3).
RgbImage = NDArray[np.uint8]
# (h, w), 0 transparent to 1 opaque.
Alpha = NDArray[np.float32]
T = TypeVar("T", bound=np.generic)

TISSUE_COLOR = (0, 114, 178)
TUMOR_COLOR = (230, 25, 25)
# Normal tissue enclosed by tumour.
ENCLOSED_COLOR = (0, 158, 60)
IGNORED_COLOR = (128, 128, 128)
# Colour map of tumour probability in all static figures.
HEATMAP_COLOR_MAP = "viridis"
# Choices in the report and the viewer. All except turbo are safe for colour-blind readers.
_COLOR_MAPS = (HEATMAP_COLOR_MAP, "cividis", "magma", "turbo")


def resample_nearest(mask: NDArray[T], mask_mpp: float, picture: RgbImage, mpp: float) -> NDArray[T]:
    """`mask` (scale `mask_mpp`) resampled to the pixels of `picture` (scale `mpp`) by nearest neighbour.

    Both scales are um per pixel; both images start at the slide's top left corner.
    """
    rows = np.clip(((np.arange(picture.shape[0]) + 0.5) * mpp / mask_mpp).astype(int), 0, mask.shape[0] - 1)
    columns = np.clip(((np.arange(picture.shape[1]) + 0.5) * mpp / mask_mpp).astype(int), 0, mask.shape[1] - 1)
    picked: NDArray[T] = mask[rows[:, None], columns[None, :]]
    return picked


def scale_bar_um(most_um: float) -> float:
    """The longest 1, 2 or 5 times a power of ten that is at most `most_um`, um."""
    power = 10.0 ** np.floor(np.log10(most_um))
    return float(max(step * power for step in (1, 2, 5) if step * power <= most_um))


def format_length(um: float) -> str:
    """A length with its unit: µm below 1000 µm, else mm."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"


def blend(picture: RgbImage, color: RgbImage, alpha: Alpha) -> RgbImage:
    """Alpha-blend `color` over `picture`, with opacity `alpha` (h, w)."""
    mixed = picture * (1 - alpha[..., None]) + color * alpha[..., None]
    return (mixed + 0.5).astype(np.uint8)


def heatmap_palette(name: str = HEATMAP_COLOR_MAP) -> NDArray[np.uint8]:
    """Colour of each probability k / 255: (256, 3) uint8."""
    return (mpl.colormaps[name](np.arange(256))[:, :3] * 255 + 0.5).astype(np.uint8)


def heatmap_palettes() -> dict[str, list[list[int]]]:
    """Palettes of all colour maps by name, as JSON lists, for the colour map menu of the report and the viewer."""
    return {name: heatmap_palette(name).tolist() for name in _COLOR_MAPS}


def color_heatmap(heat: NDArray[np.float32], opacity: float = 0.6) -> tuple[RgbImage, Alpha]:
    """Colours (h, w, 3) and opacities (h, w) of a heatmap (h, w).

    Opacity rises with the probability, so low probabilities hide less of the tissue. NaN is transparent.
    """
    known = np.isfinite(heat)
    index = (np.nan_to_num(heat) * 255 + 0.5).astype(np.uint8)
    return heatmap_palette()[index], np.where(known, opacity * (0.2 + 0.8 * np.nan_to_num(heat)), 0).astype(np.float32)


def color_confusion(codes: NDArray[np.uint8], opacity: float = 0.5) -> tuple[RgbImage, Alpha]:
    """Colours (h, w, 3) and opacities (h, w) of confusion codes: FP cyan, FN yellow, TP red, others transparent."""
    color = np.zeros((*codes.shape, 3), np.uint8)
    alpha = np.zeros(codes.shape, np.float32)
    for label in CONFUSION_LABELS:
        color[codes == label.value] = label.rgba[:3]
        alpha[codes == label.value] = opacity * (label.rgba[3] / 255)
    return color, alpha
